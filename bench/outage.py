"""What visitors go through when the link between the two ends is cut: a download, somebody who types, and a newcomer.

Times are in seconds from the beginning of the cut, infinite for what does not happen.
"""

from __future__ import annotations

import math
from array import array
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from bench.program import HOST, FailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.chain import Ends
    from bench.program import Program

_PIECE_NUMBERS: Final = 8192
_NUMBER_BYTES: Final = 8
_PIECE_PAUSE: Final = 1 / 64
"""Seconds: with 64 KiB a piece, 4 MiB/s at most, so that a cut finds little in the buffers on the way."""
_ENOUGH_BYTES: Final = 2**20
_TYPING_PAUSE: Final = 0.1
_NEWCOMERS_PAUSE: Final = 0.2
_SHOWN_BYTES: Final = 40


async def serve_download(stream: trio.SocketStream) -> None:
    """Send numbers from 0 on, 8 bytes each, at a steady rate until the visitor is gone."""
    with suppress(trio.BrokenResourceError):
        for piece in count():
            await stream.send_all(_numbers(piece))
            await trio.sleep(_PIECE_PAUSE)


def _numbers(piece: int) -> bytes:
    first = piece * _PIECE_NUMBERS
    return array("Q", range(first, first + _PIECE_NUMBERS)).tobytes()


@attrs.define(eq=False)
class Download:
    """What has come so far of what `serve_download` sends."""

    received: int = 0

    def take(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            FailedError: a byte of it is not what was sent.
        """
        piece, start = divmod(self.received, _PIECE_NUMBERS * _NUMBER_BYTES)
        sent = _numbers(piece)[start:]
        while len(sent) < len(data):
            piece += 1
            sent += _numbers(piece)
        if data != sent[: len(data)]:
            wrong = next(at for at, byte in enumerate(data) if byte != sent[at])
            raise FailedError(f"a download got a wrong byte, at offset {self.received + wrong}")
        self.received += len(data)


@attrs.define(eq=False, kw_only=True)
class Outage:
    """A cut, and the visitors who are there at that time or come after it."""

    seconds: float
    patience: float
    """How many seconds more to wait for what is to happen after the cut."""
    reset: bool
    download: float = math.inf
    typing: float = math.inf
    newcomer: float = math.inf
    _began: float = math.inf

    async def happen(self, ends: Ends) -> None:
        """Bring the visitors, cut the link and see what becomes of them.

        Raises:
            FailedError: they were not served before the cut, or a wrong byte came.
        """
        assert ends.link is not None
        async with trio.open_nursery() as watchers:
            for programs in (ends.public, ends.private):
                watchers.start_soon(self._give_up_without, programs, watchers.cancel_scope)
            async with trio.open_nursery() as visitors:
                with trio.move_on_after(self.patience) as before:
                    await visitors.start(self._download, ends.visit.bulk)
                    await visitors.start(self._type, ends.visit.requests)
                if before.cancelled_caught:
                    raise FailedError("the visitors were not served before the cut")
                self._began = trio.current_time()
                visitors.cancel_scope.deadline = self._began + self.seconds + self.patience
                await ends.link.cut(self.seconds, reset=self.reset)
                visitors.start_soon(self._come, ends.visit.requests)
            watchers.cancel_scope.cancel("all is known")

    @property
    def _over(self) -> bool:
        """Tell whether the cut is over: what arrives earlier was on its way before."""
        return trio.current_time() >= self._began + self.seconds

    @property
    def _since(self) -> float:
        return trio.current_time() - self._began

    async def _download(
        self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        download, goes_on, before = Download(), math.inf, 0
        with suppress(trio.BrokenResourceError):
            async with await trio.open_tcp_stream(HOST, port) as visitor:
                while data := await visitor.receive_some():
                    download.take(data)
                    if not self._over:
                        if before < _ENOUGH_BYTES <= download.received:
                            task_status.started()
                        before = download.received
                    else:
                        goes_on = min(goes_on, self._since)
                        if download.received - before >= _ENOUGH_BYTES:
                            self.download = goes_on
                            return
        if not math.isfinite(self._began):
            raise FailedError("a download was cut off before the cut")

    async def _type(
        self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async with await trio.open_tcp_stream(HOST, port) as visitor:
                for number in count():
                    if not await _echoed(visitor, str(number)):
                        break
                    if number == 0:
                        task_status.started()
                    if self._over:
                        self.typing = self._since
                        return
                    await trio.sleep(_TYPING_PAUSE)
        if not math.isfinite(self._began):
            raise FailedError("somebody who typed was cut off before the cut")

    async def _come(self, port: int) -> None:
        """Have newcomers come, one after another, until one is served; nobody waits for the one before.

        Who is served by the other service is not served: NAT hands out its visit ports anew.
        """
        async with trio.open_nursery() as nursery:

            async def come() -> None:
                with suppress(OSError, trio.BrokenResourceError, FailedError):
                    async with await trio.open_tcp_stream(HOST, port) as visitor:
                        if await _echoed(visitor, "hello"):
                            self.newcomer = min(self.newcomer, self._since)
                            nursery.cancel_scope.cancel("served")

            while True:
                nursery.start_soon(come)
                await trio.sleep(_NEWCOMERS_PAUSE)

    async def _give_up_without(self, programs: Sequence[Program], scope: trio.CancelScope) -> None:
        """Stop where one of the two ends has no program left: nobody starts it again, and nothing will happen any more."""
        for program in programs:
            await program.ended.wait()
        if not math.isfinite(self._began):
            raise FailedError(f"{programs[0].name} ended before the cut")
        scope.cancel("an end is gone")


async def _echoed(visitor: trio.SocketStream, word: str) -> bool:
    """Have Redis say a word; False if the connection ends instead.

    Raises:
        FailedError: it says something else.
    """
    expected = f"${len(word)}\r\n{word}\r\n".encode()
    await visitor.send_all(f"ECHO {word}\r\n".encode())
    answer = b""
    while len(answer) < len(expected):
        data = await visitor.receive_some()
        if not data:
            return False
        answer += data
    if answer != expected:
        raise FailedError(f"somebody who typed {word} was answered {answer[:_SHOWN_BYTES]!r}")
    return True
