"""A certificate's fingerprint as people and tickets carry it: SHA-256, 32 bytes. Who makes one of a certificate is elsewhere."""

from __future__ import annotations

import base64
import re
from typing import Final

from trionat.text import quoted

FINGERPRINT_BYTES: Final = 32

_LABEL: Final = "SHA256:"
_HEX: Final = re.compile("[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}", re.ASCII)


def format_fingerprint(value: bytes) -> str:
    """Return `SHA256:` and unpadded base64, as ssh shows the fingerprints of its hosts."""
    return _LABEL + base64.b64encode(value).rstrip(b"=").decode()


def parse_fingerprint(text: str) -> bytes:
    """Read a fingerprint: base64 as `format_fingerprint` writes it, or 64 hex digits with or without colons.

    `SHA256:` may stand before either, in capitals or not.

    Raises:
        ValueError: It is neither.
    """
    digits = re.sub(f"^{_LABEL}", "", text.strip(), flags=re.IGNORECASE)
    try:
        if _HEX.fullmatch(digits):
            value = bytes.fromhex(digits.replace(":", ""))
        else:
            value = base64.b64decode(digits.rstrip("=") + "=", validate=True)
    except ValueError:
        value = b""
    if len(value) != FINGERPRINT_BYTES:
        raise ValueError(
            f"{quoted(text)} is not a valid fingerprint: write SHA256: and 32 bytes in base64 or hex"
        )
    return value
