"""What visitors and the service say to each other: bytes that both of them know beforehand, so that each sees what is wrong.

A visitor first says what it wants (`Wish`). Every conversation has its own place in a long pattern, so that bytes of another one are as
wrong as those that are lost, doubled or swapped.
"""

from __future__ import annotations

import hashlib
import random
import struct
from typing import TYPE_CHECKING, ClassVar, Final, Self

import attrs
import trio

from tests.e2e import running
from tests.soak.book import END

if TYPE_CHECKING:
    from collections.abc import Callable

_PERIOD: Final = 1_048_573
"""A prime, so that no buffer's size hides that one is missing."""
_PATTERN: Final = random.Random(2).randbytes(_PERIOD) * 2
_PIECE: Final = 64 * 1024

ECHO: Final = b"e"
DIGEST: Final = b"d"
SEND: Final = b"s"


def pattern(position: int, size: int) -> bytes:
    """Return up to `_PERIOD` bytes of the pattern."""
    start = position % _PERIOD
    return _PATTERN[start : start + size]


async def say(stream: trio.SocketStream, position: int, size: int) -> None:
    """Send that many bytes from there on."""
    for done in range(0, size, _PIECE):
        await stream.send_all(pattern(position + done, min(_PIECE, size - done)))


class CutError(Exception):
    """The conversation ended before its time; the text says how."""


class WrongBytesError(Exception):
    """Something came that nobody has said; the text says where."""


@attrs.frozen
class Wish:
    """The first words of a visitor. ECHO: send back what comes; DIGEST: answer with its SHA-256; SEND: say `size` bytes.

    `size` is also how much the visitor will say, unless it wants to be sent something. `may_end` tells that its client may be
    killed: the kernel then ends the connection to the service as if all had been said.
    """

    kind: bytes
    position: int
    size: int
    may_end: bool = False
    _form: ClassVar[struct.Struct] = struct.Struct(">cIQ?")

    def encode(self) -> bytes:
        return self._form.pack(self.kind, self.position, self.size, self.may_end)

    @classmethod
    async def read(cls, stream: trio.SocketStream) -> Self | None:
        """Return the first words, or None where the visitor leaves without them."""
        data = b""
        while len(data) < cls._form.size:
            more = await stream.receive_some(cls._form.size - len(data))
            if not more:
                return None
            data += more
        return cls(*cls._form.unpack(data))


@attrs.frozen
class Host:
    """The service; `fault` is told what it hears that no visitor has said."""

    fault: Callable[[str, str], None]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one visitor."""
        wish = await Wish.read(stream)
        if wish is None:
            return
        if wish.kind == SEND:
            await say(stream, wish.position, wish.size)
            await stream.send_eof()
            return
        digest = hashlib.sha256()
        count = 0
        async for data in stream:
            if data != pattern(wish.position + count, len(data)):
                self.fault("wrong bytes", f"to the service, between {count} and {len(data)} more")
                return
            count += len(data)
            digest.update(data)
            if wish.kind == ECHO:
                await stream.send_all(data)
        if count < wish.size and not wish.may_end:
            self.fault("wrong end", f"to the service: an end after {count} of {wish.size} bytes")
        if wish.kind == DIGEST:
            await stream.send_all(digest.digest())
        await stream.send_eof()


@attrs.define(eq=False)
class Visitor:
    """A visitor's end of a conversation. It always listens, so that it hears at once when it is cut off.

    Every method raises CutError and WrongBytesError. `said` and `heard` count bytes. `was_reset` says that sending has failed: the
    kernel tells of a reset once, and who listens then sees an end.
    """

    stream: trio.SocketStream
    position: int
    said: int = 0
    heard: int = 0
    was_reset: bool = False

    async def wish(self, kind: bytes, size: int, *, may_end: bool = False) -> None:
        """Say what this is to be."""
        await self._send(Wish(kind, self.position, size, may_end).encode())

    async def exchange(self, size: int) -> None:
        """Say that many bytes and hear them again."""
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say, size)
            try:
                await self.hear(size)
            except (CutError, WrongBytesError) as error:
                problem = error
                nursery.cancel_scope.cancel("there is nobody to talk to")
        if problem is not None:
            raise problem

    async def upload(self, size: int) -> None:
        """Say that many bytes, end, and hear their digest."""
        problem: Exception | None = None
        digest = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_all, size)
            try:
                while len(digest) < hashlib.sha256().digest_size:
                    digest += await self._receive(100)
            except CutError as error:
                problem = error
                nursery.cancel_scope.cancel("there is nobody to talk to")
        if problem is not None:
            raise problem
        expected = hashlib.sha256()
        for done in range(0, size, _PIECE):
            expected.update(pattern(self.position + done, min(_PIECE, size - done)))
        if digest != expected.digest():
            raise WrongBytesError(f"another digest of {size} bytes")
        self.heard += len(digest)

    async def hear(self, size: int) -> None:
        """Hear that many bytes of the pattern."""
        end = self.heard + size
        while self.heard < end:
            data = await self._receive(min(_PIECE, end - self.heard))
            if data != pattern(self.position + self.heard, len(data)):
                raise WrongBytesError(f"to the visitor, {len(data)} bytes after {self.heard}")
            self.heard += len(data)

    async def wait(self, seconds: float) -> None:
        """Say nothing for so long; nothing may be heard either."""
        with trio.move_on_after(seconds):
            data = await self._receive(100)
            raise WrongBytesError(f"{len(data)} bytes out of the blue after {self.heard}")

    async def finish(self) -> None:
        """Hear the end, and nothing else before it."""
        try:
            data = await self.stream.receive_some(100)
        except trio.BrokenResourceError as error:
            raise CutError("a reset for an end") from error
        if data:
            raise WrongBytesError(f"{len(data)} bytes more than {self.heard}")

    async def end(self) -> None:
        """Say that this was all."""
        try:
            await self.stream.send_eof()
        except (trio.BrokenResourceError, OSError) as error:
            raise CutError("a reset") from error

    def leave(self) -> None:
        """Reset the connection."""
        running.reset(self.stream)

    async def _receive(self, size: int) -> bytes:
        try:
            data = await self.stream.receive_some(size)
        except trio.BrokenResourceError as error:
            raise CutError("a reset") from error
        if not data:
            for _ in range(
                2
            ):  # a failed send is told to its task one turn of Trio's after the call, which took the reset away
                await trio.lowlevel.checkpoint()
            raise CutError("a reset" if self.was_reset else END)
        return bytes(data)

    async def _say(self, size: int) -> None:
        position = self.position + self.said
        self.said += size
        try:
            await say(self.stream, position, size)
        except trio.BrokenResourceError:
            self.was_reset = True

    async def _say_all(self, size: int) -> None:
        await self._say(size)
        try:
            await self.stream.send_eof()
        except (trio.BrokenResourceError, OSError):
            return

    async def _send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise CutError("a reset") from error
