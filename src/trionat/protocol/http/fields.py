"""What heads of requests and of answers have in common: when one is complete, and the fields in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs
import httptools

from trionat.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_HEAD_BYTES: Final = 32 * 1024
MOST_FIELDS: Final = 100

FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"host"})
"""What nobody may call his own affair by naming it in `Connection`, nor bring behind the body."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"upgrade",
        b"http2-settings",
    }
)
"""What is meant for the next hop only, and is never passed on as it came (RFC 9110 7.6.1)."""

_END: Final = b"\r\n\r\n"
_BARE: Final = re.compile(rb"(?<!\r)\n")
_MOST_EMPTY: Final = 2
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")
# "\\r\\n", and not only the first of the two: llhttp lets neither through alone, and so a name begins nowhere else.
FIELD: Final = rb"\r\n(%b):([^\r]*)"
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_USUAL: Final = {b"keep-alive": [b"keep-alive"], b"close": [b"close"], b"Upgrade": [b"upgrade"]}
"""What `Connection` mostly is. Nobody changes the lists."""


class HttpError(RemoteProtocolError):
    """The peer's HTTP is not to be passed on; `status` is the answer that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@attrs.define(eq=False)
class HeadReader:
    """Collects heads that come in pieces, one after another. Holds at most `most_bytes` of one, and a piece.

    Empty lines before a head are skipped, two at most (RFC 9112 2.2).
    """

    most_bytes: int = MOST_HEAD_BYTES
    _held: bytearray = attrs.field(init=False, factory=bytearray)
    _skipped: int = attrs.field(init=False, default=0)

    @property
    def begun(self) -> bool:
        """Whether some of a head has come, and not all."""
        return bool(self._held)

    @property
    def first_line(self) -> bytes | None:
        """The first line of what has come so far, where that is complete."""
        end = self._held.find(b"\r\n")
        return bytes(self._held[:end]) if end >= 0 else None

    def begins_otherwise(self, beginning: bytes) -> bool:
        """Tell whether what has come so far of a head cannot begin like that any more."""
        begun = bytes(self._held[: len(beginning)])
        return begun != b"\r" and not beginning.startswith(begun)

    def feed(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Return the head, with the empty line at its end, and what comes behind it; None and nothing: there has to be more.

        Raises:
            HttpError: it is longer than `most_bytes`, or has lines that end otherwise than in CRLF.
        """
        if not self._held and not data.startswith((b"\r", b"\n")):
            at = data.find(_END)
            if 0 <= at <= self.most_bytes - len(_END):
                self._skipped = 0
                at += len(_END)
                return data[:at], data[at:]
        held = self._held
        before = len(held)
        looked = max(0, before - len(_END) + 1)
        held += data
        while self._skipped < _MOST_EMPTY and held.startswith(b"\r\n"):
            del held[:2]
            self._skipped += 1
            before = looked = 0
        at = held.find(_END, looked)
        if at > self.most_bytes - len(_END) or (at < 0 and len(held) > self.most_bytes):
            raise HttpError(431, f"the head has more than {self.most_bytes} bytes")
        if at >= 0:
            at += len(_END)
            head, rest = bytes(held[:at]), bytes(held[at:])
            held.clear()
            self._skipped = 0
            return head, rest
        if _BARE.search(held, before):  # else whoever waits for the end would wait in vain
            raise HttpError(400, "a line of the head does not end in CR LF")
        return None, b""


class _Complete:
    """What httptools calls; that it calls back for nothing else is what makes it fast."""

    __slots__ = ("complete",)

    def __init__(self) -> None:
        self.complete = 0

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.complete += 1


def check_head(head: bytes, *, request: bool, status: int) -> None:
    """Let llhttp judge a whole head.

    Raises:
        HttpError: it is not well-formed, told with that status, or its method is not known (501).
    """
    seen = _Complete()
    parser = httptools.HttpRequestParser(seen) if request else httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserInvalidMethodError as error:
        raise HttpError(501, "the method is not known") from error
    except httptools.HttpParserError as error:
        raise HttpError(status, f"no well-formed head: {error}") from error
    if seen.complete != 1:
        raise HttpError(status, "no well-formed head")


def take_out(pattern: re.Pattern[bytes], head: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    """Split the fields of a head that llhttp has judged: those that go on as they came, each with CRLF before it, and the others' values by name.

    The pattern finds the others in small letters: CRLF, the name as its first group, a colon, and the value as its second. Most heads have few of
    them, and to take each line apart instead takes 10 us more.
    """
    at = head.index(b"\r\n")
    plain, taken = b"", dict[bytes, list[bytes]]()
    for found in pattern.finditer(head.lower(), at):
        start, end = found.span()
        plain += head[at:start]
        at = end
        taken.setdefault(found[1], []).append(head[found.start(2) : end].strip(b" \t"))
    return plain + head[at : -len(_END)], taken


def without(plain: bytes, names: Sequence[bytes]) -> bytes:
    """Return the fields that have none of those names."""
    return b"".join(
        b"\r\n" + line
        for line in plain.split(b"\r\n")[1:]
        if line.partition(b":")[0].lower() not in names
    )


def parse_options(values: list[bytes], status: int) -> list[bytes]:
    """Return the words of `Connection`, which is a list (RFC 9110 5.6.1), in small letters.

    Raises:
        HttpError: something in it is no word, or names what is not its own.
    """
    if len(values) == 1 and (known := _USUAL.get(values[0])) is not None:
        return known
    words = [word for value in values for each in value.split(b",") if (word := each.strip(b" \t"))]
    if not all(_TOKEN.fullmatch(word) for word in words):
        raise HttpError(status, "Connection is no list of words")
    options = [word.lower() for word in words]
    if not FRAMING.isdisjoint(options):
        raise HttpError(status, "Connection names a field that is not its own")
    return options


def parse_length(value: bytes, status: int) -> int:
    """Return a Content-Length.

    Raises:
        HttpError: it is no plain decimal number of at most 18 digits.
    """
    if not _NUMBER.fullmatch(value):
        raise HttpError(status, "Content-Length is no number")
    return int(value)


def find_framing(
    lengths: list[bytes], encodings: list[bytes], *, minor: int, status: int
) -> tuple[int | None, bool]:
    """Return the length of a body, None where none is told, and whether it comes in chunks.

    Raises:
        HttpError: two readers could see its end at different places.
    """
    if encodings:
        if lengths:
            raise HttpError(status, "Content-Length together with Transfer-Encoding")
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise HttpError(status, "a Transfer-Encoding other than chunked")
        if minor == 0:
            raise HttpError(status, "Transfer-Encoding in HTTP/1.0")
        return None, True
    if len(lengths) > 1:
        raise HttpError(status, "more than one Content-Length")
    return (parse_length(lengths[0], status) if lengths else None), False
