"""A QR code for a phone to read from the terminal."""

from __future__ import annotations

import io
import ipaddress
import sys
from typing import Final
from urllib.parse import urlsplit

NO_PHONE: Final = "no phone gets there: a loopback address"
"""What is told beside the code of such an address."""


def is_loopback(url: str) -> bool:
    """Tell whether a URL leads whoever follows it to their own machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def qr_code(text: str) -> str:
    """Return the code of a text as lines of block characters, light on dark, two rows of it in each line; where standard output cannot have those, a line that says so.

    The library is imported here, since few ask for it.
    """
    import segno  # noqa: PLC0415 - see above

    lines = io.StringIO()
    segno.make(text, micro=False).terminal(out=lines, compact=True)
    code = lines.getvalue().rstrip("\n")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        code.encode(encoding)
    except UnicodeEncodeError:
        return f"no QR code: it needs characters that {encoding} does not have: set LC_ALL=C.UTF-8"
    return code
