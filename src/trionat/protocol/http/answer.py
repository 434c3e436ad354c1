"""The head of an answer, and where the answer ends (RFC 9112 6.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from trionat.protocol.http.fields import (
    FIELD,
    FRAMING,
    HOP_BY_HOP,
    HttpError,
    check_head,
    find_framing,
    parse_options,
    take_out,
    without,
)

if TYPE_CHECKING:
    from trionat.protocol.http.head import RequestHead

MOST_ANSWER_HEAD_BYTES: Final = 64 * 1024
MOST_ANSWER_FIELDS: Final = 256

NOT_HTTP: Final = "the service's answer is not HTTP"
NO_ANSWER: Final = "the service closed its connection without an answer"
"""What is wrong with a service that speaks TLS itself, and so takes a request without TLS for nonsense."""

BEGINNING: Final = b"HTTP/"
"""Of every answer."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_NOT_PLAIN: Final = re.compile(
    FIELD % b"|".join(sorted((FRAMING - {b"host"}) | HOP_BY_HOP - {b"proxy-authenticate"}))
)
_OWN: Final = {b"close", b"keep-alive", b"upgrade"}
_SWITCHED: Final = 101
_NO_CONTENT: Final = 204
_RESET_CONTENT: Final = 205
_NOT_MODIFIED: Final = 304
_UPGRADE_REQUIRED: Final = 426


@attrs.define(eq=False)  # frozen, it takes longer to make
class AnswerHead:
    """An answer as the visitor is to see it. Nobody changes it. `plain` has the fields that go on as they came, each with CRLF before it. Its body has `length` bytes, or is `chunked`; neither: it ends with the connection.

    `is_interim` says that another one follows (1xx), `is_switched` that from here on neither side speaks HTTP. `keep_alive` says that
    another answer may come on this connection.
    """

    status: int
    reason: bytes
    plain: bytes
    length: int | None
    chunked: bool
    keep_alive: bool
    upgrade: bytes

    @property
    def is_interim(self) -> bool:
        """Whether the answer itself is still to come."""
        return self.status // 100 == 1 and not self.is_switched

    @property
    def is_switched(self) -> bool:
        """Whether the connection is something else now."""
        return self.status == _SWITCHED

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing else tells where it ends."""
        return self.length is None and not self.chunked

    def encode(self, *, keep_alive: bool, minor: int) -> bytes:
        """Write it anew for a visitor that speaks HTTP/1.`minor`, with what becomes of its connection."""
        lines = [b"HTTP/1.1 %d %b%b" % (self.status, self.reason, self.plain)]
        if self.upgrade:
            lines += [b"Upgrade: " + self.upgrade, b"Connection: Upgrade"]
        elif self.is_interim:
            pass
        elif not keep_alive:
            lines.append(b"Connection: close")
        elif minor == 0:
            lines.append(b"Connection: keep-alive")
        lines.append(b"\r\n")
        return b"\r\n".join(lines)


def parse_answer(head: bytes, request: RequestHead) -> AnswerHead:
    """Read the whole head of an answer, with the empty line at its end.

    Raises:
        HttpError: it is no answer to that request that a visitor could read in one way only (502).
    """
    found = _STATUS_LINE.fullmatch(head[: head.index(b"\r\n")])
    if found is None:
        raise HttpError(502, NOT_HTTP)
    if head.count(b"\r\n") - 2 > MOST_ANSWER_FIELDS:
        raise HttpError(502, f"the service's answer has more than {MOST_ANSWER_FIELDS} fields")
    check_head(head, request=False, status=502)
    minor, status = int(found[1]), int(found[2])
    plain, special = take_out(_NOT_PLAIN, head)
    lengths = special.get(b"content-length", [])
    encodings = special.get(b"transfer-encoding", [])
    length, chunked = find_framing(lengths, encodings, minor=minor, status=502)
    if chunked and request.minor == 0:
        raise HttpError(502, "the service answers HTTP/1.0 in chunks")
    keep_alive = minor == 1
    if b"connection" in special:
        options = parse_options(special[b"connection"], 502)
        keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
        if len(options) > 1 or not _OWN.issuperset(options):
            plain = without(plain, options)
    upgrade = b""
    if status in {_SWITCHED, _UPGRADE_REQUIRED}:
        upgrade = b", ".join(special.get(b"upgrade", []))
        if status == _SWITCHED and not (request.upgrade and upgrade):
            raise HttpError(502, "the service switches to what nobody asked for")
    interim = status // 100 == 1
    if status == _RESET_CONTENT and length is None and not chunked:
        # It has no body, but visitors wait for one where nobody says so (RFC 9110 15.3.6).
        length = 0
    if not interim and status != _NO_CONTENT:  # where neither field is allowed
        if chunked:
            plain += b"\r\nTransfer-Encoding: chunked"
        elif length is not None:
            plain += b"\r\nContent-Length: %d" % length
    if interim or status in {_NO_CONTENT, _NOT_MODIFIED} or request.method == b"HEAD":
        length, chunked = 0, False
    return AnswerHead(
        status,
        found[3] or b"",
        plain,
        length,
        chunked,
        keep_alive and (length is not None or chunked),
        upgrade,
    )
