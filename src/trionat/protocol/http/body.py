"""A body in chunks: taken apart by llhttp, and framed anew, or only followed to its end."""

from __future__ import annotations

import re
from typing import Final

import attrs
import httptools

from trionat.protocol.http.fields import MOST_FIELDS, MOST_HEAD_BYTES, HttpError
from trionat.protocol.http.head import keep_trailers

_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
"""llhttp reads chunks behind a head only. That of the message itself was judged already. No other message may follow: what does is an error."""

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")
_LINE: Final = 18
"""Bytes of a line that matter: a size, or whether it is empty."""


class _Follower:
    """What httptools calls for a body of which only the end is wanted: no byte of it is copied."""

    def __init__(self) -> None:
        self.complete = False

    def on_message_complete(self) -> None:
        """See httptools."""
        self.complete = True


class _Collector(_Follower):
    """What httptools calls for a body that is framed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.trailers: list[bytes] = []
        self.reading = False

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        self.pieces.append(piece)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self.reading:  # else it is that of `_HEAD`
            self.trailers.append(name + b": " + value.strip(b" \t"))


@attrs.define(eq=False)
class ChunkFollower:
    """Says where a body in chunks ends. `status` is told where it is not well-formed.

    That is for llhttp to judge. It does not say where the end is, so sizes are counted here, and both have to agree on it.
    """

    status: int
    _seen: _Follower = attrs.field(factory=_Follower)
    _parser: httptools.HttpRequestParser = attrs.field(init=False)
    _left: int = attrs.field(init=False, default=0)
    _line: bytes = attrs.field(init=False, default=b"")
    _in_trailers: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self._seen)
        self._parser.feed_data(_HEAD)

    @property
    def complete(self) -> bool:
        """Whether its end has come."""
        return self._seen.complete

    def follow(self, data: bytes) -> int:
        """Read on; return how many of the bytes belong to the body: all of them, but where it is `complete`.

        Raises:
            HttpError: it is not well-formed.
        """
        at, ended = 0, False
        while not ended and at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            found = data.find(b"\n", at)
            if found < 0:
                self._line = (self._line + data[at : at + _LINE])[:_LINE]
                at = len(data)
            else:
                ended = self._take_line(self._line + data[at : min(found, at + _LINE)])
                self._line = b""
                at = found + 1
        self._feed(data[:at])
        if self._seen.complete != ended:
            raise HttpError(self.status, "no well-formed body in chunks: it ends where it must not")
        return at

    def _take_line(self, line: bytes) -> bool:
        """Take a line that is not of a chunk's content; tell whether it is the last one."""
        if self._in_trailers:
            return line == b"\r"
        size = _SIZE.match(line)
        if size is None:  # llhttp will say so
            return False
        if count := int(size[0], 16):
            self._left = count + len(b"\r\n")
        else:
            self._in_trailers = True
        return False

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise HttpError(self.status, f"no well-formed body in chunks: {error}") from error


@attrs.define(eq=False)
class ChunkReader:
    """Takes a body in chunks apart and frames it anew: extensions are dropped, and fields behind it are checked as those of a head are."""

    _seen: _Collector = attrs.field(init=False, factory=_Collector)
    _chunks: ChunkFollower = attrs.field(init=False)
    _overhead: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._chunks = ChunkFollower(400, self._seen)
        self._seen.reading = True

    @property
    def complete(self) -> bool:
        """Whether its end has come."""
        return self._seen.complete

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Read on; return what goes to the service, and how many of the bytes belong to the body: all of them, but where it is `complete`.

        Raises:
            HttpError: it is not well-formed, or has more than `MOST_HEAD_BYTES` of something else than body in a row.
        """
        seen = self._seen
        count = self._chunks.follow(data)
        piece = b"".join(seen.pieces)
        seen.pieces.clear()
        self._overhead = 0 if piece else self._overhead + count
        if self._overhead > MOST_HEAD_BYTES or len(seen.trailers) > MOST_FIELDS:
            raise HttpError(431, "too much in a body that is not body")
        out = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
        if seen.complete:
            out += b"\r\n".join([b"0", *keep_trailers(seen.trailers), b"", b""])
        return out, count
