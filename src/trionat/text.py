"""Text that people bring: in files, variables, arguments, or pasted from a page or a mail.

Owns what is taken off without a word, because its meaning is clear: byte order marks, the line ends of other systems, white
space around a value. Whatever else cannot be seen is refused by name, since nobody could find it otherwise. Also owns what a
ticket looks like, so that no message shows one.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MASK: Final = "********"

_TICKET: Final = re.compile(r"(tn[0-9]+_)[\w-]+", re.IGNORECASE)
_TICKET_IN_TEXT: Final = re.compile(
    r"((?i:tn)[0-9]+_)[\w-]+(?:(?:\s|\\[nrt])+(?=[\w-]*[0-9A-Z_])[\w-]{6,})*"
)
"""With the rests of one that was cut: words behind it with a digit or a capital in them, as base64 has, and hardly any other word."""
_MASKED_TICKET: Final = rf"\1{MASK}"
TOKEN_PREFIX: Final = "trn_"  # noqa: S105 - it is none
"""What the text of an API token begins with."""

_TOKEN_IN_TEXT: Final = re.compile(rf"({TOKEN_PREFIX})[\w-]{{8,}}", re.IGNORECASE)
_QUOTED: Final = 40
"""Characters of a value that a message shows; what is longer may be a part of a ticket."""

_BYTE_ORDER_MARK: Final = "\ufeff"
_ENCODINGS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
"""By the byte order mark; PowerShell's `>` writes UTF-16, many an editor of Windows a mark before UTF-8."""

_NOT_TEXT: Final = "this is not UTF-8 text: save the file as UTF-8"
_ZERO_BYTE: Final = "there is a zero byte, which no text has: save the file as UTF-8"
_WRAPPING: Final = "\"'`<>\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
"""What people, mail programs and variables of a file put around a value: quotes of all kinds, and angle brackets."""
_LINE_ENDS: Final = re.compile(r"\r\n?")
_URL_USER: Final = re.compile(r"//[^\s:/@]*:")
_WORD: Final = re.compile(r"\S+")
_SERVICE: Final = re.compile(
    r"[^\w\s]*(?:https?|tls):"
    r"(?:[0-9]{1,5}|[^\s:/@]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|(?:unix:)?[/.][^\s:@]*)(?::[0-9]{1,5})?"
    r"@[^\s@]*"
)
"""A service as people write it, such as `http:8080@shop`, and what stands around it: no user has such a password."""

# Cc and Cf are control and format characters (zero-width ones, soft hyphens, direction marks), Zl, Zp and Zs separators.
_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
# Letters and symbols that have no width or no ink: Default_Ignorable_Code_Point of Unicode 15 where the category does not tell,
# and the empty Braille pattern.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


class NotTextError(ValueError):
    """These bytes are no text; `line` is where that begins, counted from 1."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def decode_text(data: bytes, default: str = "utf-8") -> str:
    r"""Return the text of a file or of standard input, without its byte order mark; all line ends are `\n`.

    Args:
        data: UTF-8 or UTF-16 with a byte order mark, or the `default` encoding without one.
        default: An encoding's name.

    Raises:
        NotTextError: It is none of these, or holds zero bytes, as UTF-16 without its mark does.
    """
    mark, encoding = next(
        ((mark, name) for mark, name in _ENCODINGS if data.startswith(mark)), (b"", default)
    )
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as exc:
        before = body[: exc.start].decode(encoding, "ignore")
        raise NotTextError(_NOT_TEXT, _count_lines(before)) from None
    before, zero, _ = text.partition("\0")
    if zero:
        raise NotTextError(_ZERO_BYTE, _count_lines(before))
    return _LINE_ENDS.sub("\n", text)


def _count_lines(text: str) -> int:
    return _LINE_ENDS.sub("\n", text).count("\n") + 1


def tidy(text: str) -> str:
    """Return a value without the white space and the byte order marks around it.

    Raises:
        ValueError: There is a character within that cannot be seen; the message names it and its position, and nothing else.
    """
    inner = strip_around(text)
    if (found := invisible_in(inner, offset=text.find(inner))) is not None:
        raise ValueError(f"has {found}: type it again")
    return inner


def strip_around(text: str) -> str:
    """Return a value without the white space and the byte order marks around it, whatever is within."""
    while (inner := text.strip().strip(_BYTE_ORDER_MARK)) != text:
        text = inner
    return text


def unwrap(text: str) -> str:
    """Return a value without quotes and angle brackets around it either, of which none can be part of a ticket."""
    while (inner := strip_around(text).strip(_WRAPPING)) != text:
        text = inner
    return text


def strip_line_end(text: str) -> str:
    """Return a password without a byte order mark before it and line ends behind it: nothing that anybody means by it.

    A blank may be part of a password, so it stays.
    """
    return text.removeprefix(_BYTE_ORDER_MARK).rstrip("\r\n")


def join_words(text: str) -> str:
    """Return a text without any white space, around or within, and without byte order marks around it."""
    return "".join(strip_around(text).split())


def invisible_in(text: str, *, offset: int = 0) -> str | None:
    """Name the first character that cannot be seen, and its position from 1; None where all can. A blank can be seen."""
    if text.isascii() and text.isprintable():
        return None
    for position, character in enumerate(text, start=offset + 1):
        category = unicodedata.category(character)
        if character != " " and (category in _INVISIBLE_CATEGORIES or _INVISIBLE.match(character)):
            return f"an invisible character U+{ord(character):04X} at position {position}"
    return None


def mask_tickets(text: str) -> str:
    """Return a text without the tickets in it; what is left of each is its beginning, `tn1_`."""
    return _TICKET_IN_TEXT.sub(_MASKED_TICKET, text) if "_" in text else text


def mask_secrets(text: str) -> str:
    """Return a message without the tickets and tokens in it, and without the passwords of URLs."""
    text = mask_tickets(text)
    text = _TOKEN_IN_TEXT.sub(_MASKED_TICKET, text) if "_" in text else text
    return "\n".join(map(_mask_password, text.split("\n"))) if "@" in text else text


def _mask_password(line: str) -> str:
    """Mask from the first colon behind a URL's user to the last @, whatever is between; without `//` in each word."""
    end = line.rfind("@")
    if end >= 0 and (user := _URL_USER.search(line, 0, end)) is not None:
        return line[: user.end()] + MASK + line[end:]
    return _WORD.sub(lambda word: _mask_between(word[0]), line) if end >= 0 else line


def _mask_between(word: str) -> str:
    if _SERVICE.fullmatch(word):
        return word
    end = word.rfind("@")
    start = word.find(":", 0, end) + 1 if end > 0 else 0
    return word[:start] + MASK + word[end:] if 0 < start < end else word


def quoted(text: str) -> str:
    """Return a wrong value as a message shows it; of a long one only its length."""
    return repr(text) if len(text) <= _QUOTED else f"a value of {len(text)} characters"


def counted(number: int, thing: str) -> str:
    """Return a number and what it counts, in the plural where it is not one: `1 visit port`, `2 visit ports`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def is_ticket_like(text: str) -> bool:
    """Tell whether a text is a ticket of this or a later version, or what a damaged copy left of one."""
    return _TICKET.match(unwrap(text)) is not None
