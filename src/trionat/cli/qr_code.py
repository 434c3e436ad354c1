"""A QR code for a phone to read from the terminal."""

from __future__ import annotations

import io


def qr_code(text: str) -> str:
    """Return the code of a text as lines of block characters, light on dark, two rows of it in each line.

    The library is imported here, since few ask for it.
    """
    import segno  # noqa: PLC0415 - see above

    lines = io.StringIO()
    segno.make(text, micro=False).terminal(out=lines, compact=True)
    return lines.getvalue().rstrip("\n")
