"""Text that people bring, as editors, shells and mail programs leave it, and what of it is never shown.

Values only: nothing here opens a file or knows what a text is for.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import Final

_TICKET: Final = re.compile(r"(tn[0-9]+_)[\w-]+")
_MASK: Final = "********"
_BYTE_ORDER_MARK: Final = "\ufeff"
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_INVISIBLE: Final = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")
"""Soft hyphen, zero-width characters and the byte order mark: they come along with what is copied, and nobody sees them."""


def mask_tickets(text: str) -> str:
    """Return the text with every ticket in it as `tn1_********`: who has read a ticket can log in with it."""
    return _TICKET.sub(rf"\1{_MASK}", text)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 that begins with a byte order mark, as PowerShell's `>` writes it. Every line ends with a line feed.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_around(text: str) -> str:
    """Return the text without white space and byte order marks around it."""
    return text.strip().strip(_BYTE_ORDER_MARK).strip()


def strip_line_end(text: str) -> str:
    """Return the text without a byte order mark before it and line ends behind it; blanks stay, as a password may have them."""
    return text.removeprefix(_BYTE_ORDER_MARK).rstrip("\r\n")


def join_words(text: str) -> str:
    """Return the text without any white space, around or within, and without byte order marks around it."""
    return "".join(text.split()).strip(_BYTE_ORDER_MARK)


def invisible_in(text: str) -> str | None:
    """Name the first character that nobody sees or types, such as `an invisible character U+200B`; None without one."""
    for character in text:
        if character in _INVISIBLE:
            return f"an invisible character U+{ord(character):04X}"
        if unicodedata.category(character) == "Cc":
            return f"a control character U+{ord(character):04X}"
    return None
