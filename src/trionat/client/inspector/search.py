"""Finds the visitors who have said a text, or to whom it was said: in the bytes as they came, and in what these mean.

What they mean are the bodies of HTTP out of their chunks and decompressed, and the messages of a WebSocket, as far as `http_view` and `websocket_view` read them. For a thread: `run` blocks, but holds the interpreter for
no more than some milliseconds at a time, unless `InspectBytes` is much more than it is by itself.
"""

from __future__ import annotations

import codecs
from time import perf_counter
from typing import TYPE_CHECKING, Final

import attrs

from trionat.client.inspector.http_view import charset_of, read_body, read_conversation
from trionat.client.inspector.websocket_view import MOST_INFLATED, deflates, read_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.client.inspector.http_view import Exchange, Message
    from trionat.client.inspector.recording import Recording

MOST_FOUND: Final = 1000
WITHIN: Final = 4.0
"""Seconds for all of it. 64 MiB as they came take a tenth of a second, and 64 MiB of compressed JSON two and a half (measured). Who types on does not wait for it."""

_PIECE: Final = 256 * 1024
"""Bytes, or characters, that are looked at in one step: a millisecond or two."""

_ASCII_ALIKE: Final = ("utf-8", "ascii", "latin-1", "cp1252")
"""Encodings in which a text of ASCII is the same bytes, and these bytes are nothing else."""


@attrs.define(eq=False)
class Search:
    """One search, small and capital letters alike. `found` has the numbers of the visitors, and may be looked at while it runs."""

    wanted: str
    seconds: float = WITHIN
    found: dict[int, None] = attrs.field(init=False, factory=lambda: {})
    is_whole: bool = attrs.field(init=False, default=False)
    """Whether all was looked at."""

    _text: str = attrs.field(init=False)
    _needles: set[bytes] = attrs.field(init=False)
    _ends_at: float = attrs.field(init=False, default=float("inf"))
    _is_stopped: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._text = self.wanted.lower()
        # The letters of bytes are those of ASCII; others are found as they were typed, and as small ones.
        as_typed, small = (each.encode("utf-8", "replace") for each in (self.wanted, self._text))
        self._needles = {as_typed.lower(), small}

    def stop(self) -> None:
        """Nobody waits for it any more; to be called from anywhere."""
        self._is_stopped = True

    def run(self, recordings: list[Recording]) -> None:
        """Look at all of them, the last ones first: at first at the bytes as they came, which is quick, and then at what they mean."""
        self._ends_at = perf_counter() + self.seconds
        for said_by in (self._pieces, self._meanings):
            for recording in reversed(recordings):
                if recording.number in self.found:
                    continue
                if any(said_by(recording)):
                    self.found[recording.number] = None
                if len(self.found) == MOST_FOUND or self._is_over():
                    return
        self.is_whole = True

    def _is_over(self) -> bool:
        return self._is_stopped or perf_counter() > self._ends_at

    def _pieces(self, recording: Recording) -> Iterator[bool]:
        yield self._is_in(recording.received.data)
        yield self._is_in(recording.sent.data)

    def _meanings(self, recording: Recording) -> Iterator[bool]:
        """Look at what has not been looked at as it came."""
        received, sent = bytes(recording.received.data), bytes(recording.sent.data)
        exchange: Exchange | None = None
        for exchange in read_conversation(received, sent).exchanges:
            yield self._is_in_body(received, exchange.request)
            if exchange.answer is not None:
                yield self._is_in_body(sent, exchange.answer)
        if exchange is not None and exchange.is_websocket and exchange.answer is not None:
            is_deflated = deflates(exchange.answer)
            for data, head in ((received, exchange.request), (sent, exchange.answer)):
                for message in read_messages(
                    data, head.end, deflated=is_deflated, most=MOST_INFLATED
                ):
                    yield self._is_in_text(message.data, "utf-8")

    def _is_in_body(self, data: bytes, message: Message) -> bool:
        charset = charset_of(message)
        is_plain = message.framing != "chunked" and not message.words("content-encoding")
        if self._is_over() or (is_plain and self._is_same_in(charset)):
            return False
        return self._is_in_text(read_body(data, message).data, charset)

    def _is_same_in(self, charset: str) -> bool:
        """Tell whether the text is, in that encoding, the bytes that are looked for anyway."""
        if self._text.isascii():
            return charset in _ASCII_ALIKE
        return charset == "utf-8" and self._text == self._text.upper()  # no letters of two sizes

    def _is_in_text(self, data: bytes, charset: str) -> bool:
        if self._is_same_in(charset):
            return self._is_in(data)
        decoder, rest = codecs.getincrementaldecoder(charset)(), ""
        for start in range(0, len(data), _PIECE):
            if self._is_over():
                return False
            try:
                text = rest + decoder.decode(data[start : start + _PIECE]).lower()
            except UnicodeError:  # it is no text
                return self._is_in(data)
            if self._text in text:
                return True
            rest = text[len(text) - len(self._text) + 1 :]
        return False

    def _is_in(self, data: bytes | bytearray) -> bool:
        more = max(map(len, self._needles)) - 1
        for start in range(0, len(data), _PIECE):
            if self._is_over():
                return False
            piece = data[start : start + _PIECE + more].lower()
            if any(needle in piece for needle in self._needles):
                return True
        return False
