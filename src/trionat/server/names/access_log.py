"""A line for each request to a name, in a file: JSON, or what web servers write (NCSA combined).

The loop only puts a line into a queue; a thread writes what has come together. What finds the queue full is counted and told.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.config.server import COMBINED
from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.signals import Signal
from trionat.system import open_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trionat.protocol.http.head import RequestHead

log = get_logger(__name__)

_MOST_LINES: Final = 8192
"""In the queue; at about half a KiB each that is 4 MiB."""

_LINGER: Final = 0.2
"""Seconds for which lines are gathered."""

_COMPLAIN_INTERVAL: Final = 60.0

_MOST_TARGET: Final = 2048
_MOST_WORDS: Final = 512
"""Bytes of what a visitor has said that a line has."""

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)


@attrs.frozen(kw_only=True)
class Access:
    """A request, and what has become of it. `user` is the account whose name it is, empty where nobody has it; `sent` counts the body."""

    host: str
    name: str
    request: RequestHead
    status: int
    sent: int
    seconds: float
    user: str


@attrs.define(eq=False)
class AccessLog:
    """See the module. `run` has to run; the file is opened anew where it was renamed or removed, as logrotate does.

    `now` is the time of day. `dropped` counts lines that were lost.
    """

    file: Path
    form: str
    now: Callable[[], float] = time.time
    dropped: int = attrs.field(init=False, default=0)
    _lines: deque[str] = attrs.field(init=False, factory=lambda: deque())
    _added: Signal = attrs.field(init=False, factory=Signal)
    _told: int = attrs.field(init=False, default=0)
    _complained: float = attrs.field(init=False, default=float("-inf"))
    _descriptor: int | None = attrs.field(init=False, default=None)
    _rest: bytes = attrs.field(init=False, default=b"")
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(1)
    )

    def check(self) -> None:
        """Open the file. Blocks, for a moment.

        Raises:
            StartupError: it cannot be opened.
        """
        try:
            self._open()
        except OSError as error:
            raise StartupError(
                f"{self.file}: cannot write the access log there: {error.strerror or error} (AccessLog)"
            ) from error

    def note(self, access: Access) -> None:
        """Write a line, soon."""
        if len(self._lines) >= _MOST_LINES:
            self.dropped += 1
            return
        moment = self.now()
        self._lines.append(
            _combined(access, moment) if self.form == COMBINED else _json(access, moment)
        )
        self._added.notify()

    async def run(self) -> None:
        """Write until cancelled; what is there then is written as well, within a second."""
        try:
            while True:
                while not self._lines:
                    await self._added.wait()
                await trio.sleep(_LINGER)
                await self._write_all()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._write_all()
                # Behind what is being written: a disk that hangs keeps its descriptor.
                await trio.to_thread.run_sync(
                    self._close, limiter=self._limiter, abandon_on_cancel=True
                )

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def _write_all(self) -> None:
        try:
            await trio.to_thread.run_sync(
                self._write_queued, limiter=self._limiter, abandon_on_cancel=True
            )
        except OSError as error:
            if trio.current_time() - self._complained > _COMPLAIN_INTERVAL:
                self._complained = trio.current_time()
                log.warning(
                    "the access log cannot be written",
                    file=str(self.file),
                    error=error.strerror or str(error),
                )
        if self.dropped > self._told:
            number, self._told = self.dropped - self._told, self.dropped
            log.warning("lines of the access log were lost", number=number, file=str(self.file))

    def _write_queued(self) -> None:
        """Write what is in the queue; what cannot be written is counted. Blocks. Taken here, so that nothing is lost where this never begins."""
        lines: list[str] = []
        while self._lines:
            lines.append(self._lines.popleft())
        if not lines:
            return
        try:
            self._write("".join(lines).encode("ascii"))
        except OSError:
            self.dropped += len(lines)
            raise

    def _write(self, data: bytes) -> None:
        """Write whole lines: the rest of one that a full disk has cut off comes first. Blocks."""
        if self._descriptor is None or not self._is_ours(self._descriptor):
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._open()
            self._rest = b""
        assert self._descriptor is not None, "just opened"  # noqa: S101 - for type checkers
        data = self._rest + data
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        finally:
            cut = done and data[done - 1 : done] != b"\n"
            self._rest = data[done : data.index(b"\n", done) + 1] if cut else b""

    def _open(self) -> None:
        self._descriptor = open_file(
            self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640, waiting=False
        )  # a pipe that nobody reads would hold up the start

    def _is_ours(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self.file.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def _said(access: Access, field: bytes) -> str:
    return b", ".join(access.request.values(field))[:_MOST_WORDS].decode("latin-1")


def _json(access: Access, moment: float) -> str:
    request = access.request
    seconds = int(moment)
    values: dict[str, object] = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int((moment - seconds) * 1000):03}Z",
        "address": access.host,
        "name": access.name,
        "method": request.method.decode("ascii"),
        "path": request.target[:_MOST_TARGET].decode("latin-1"),
        "protocol": f"HTTP/1.{request.minor}",
        "status": access.status,
        "bytes": access.sent,
        "seconds": round(access.seconds, 6),
        "user": access.user,
        "referer": _said(access, b"referer"),
        "agent": _said(access, b"user-agent"),
    }
    return json.dumps(values, separators=(",", ":")) + "\n"


def _combined(access: Access, moment: float) -> str:
    request, at = access.request, time.gmtime(moment)
    month = _MONTHS[at.tm_mon - 1]  # whatever the locale
    date = f"{at.tm_mday:02}/{month}/{at.tm_year}:{time.strftime('%H:%M:%S', at)} +0000"
    line = _escaped(
        f"{request.method.decode('ascii')} {request.target[:_MOST_TARGET].decode('latin-1')} HTTP/1.{request.minor}"
    )
    referer, agent = (
        _escaped(_said(access, field)) or "-" for field in (b"referer", b"user-agent")
    )
    # A proxy's word for it may have a zone, in which anything stands.
    host = _escaped(access.host[:_MOST_WORDS]).replace(" ", r"\x20")
    return f'{host} - - [{date}] "{line}" {access.status} {access.sent} "{referer}" "{agent}"\n'


def _escaped(text: str) -> str:
    """Write quotes, backslashes and what is no printable ASCII as nginx does."""
    return "".join(
        character
        if " " <= character <= "~" and character not in '"\\'
        else f"\\x{ord(character):02X}"
        for character in text
    )
