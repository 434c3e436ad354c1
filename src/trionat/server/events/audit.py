"""Who has changed what, and from where: a line of JSON for each change, in a file that is only ever added to.

The file is `audit.log` in the state folder, its owner's alone. Each line has a number that stays the same. The server writes it, and so do the commands that change something, each under a lock. A file
that has grown long gets a number, and the oldest ones go.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.events.allowance import Allowance
from trionat.server.events.event import (
    account_added,
    account_changed,
    account_removed,
    written_time,
)
from trionat.signals import Signal
from trionat.store.private_file import hold_lock, is_there
from trionat.system import find_user_id, open_shared, read_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trionat.server.events.event import Happening
    from trionat.server.events.hub import Hub

log = get_logger(__name__)

MOST_BYTES: Final = 4 * 1024 * 1024
MOST_FILES: Final = 10
"""How long a file gets, and how many there are besides the one that is written. Chosen: some 100,000 changes."""

AT_ONCE: Final = 30
INTERVAL: Final = 60.0
"""How many entries of one account there may be at once, and seconds until there may be one more. Chosen: by hand nobody gets there, and one account takes some months to fill the audit."""

_MOST_QUEUED: Final = 4096

_LONGEST_TEXT: Final = 512
"""Characters of what somebody has said."""

_RETRY_AFTER: Final = 5.0
"""Seconds after which it is tried again to write what could not be written."""

_LAST_LINES: Final = 1.0

_LOOK_INTERVAL: Final = 2.0
"""Seconds within which the server hears what a command has changed."""

_BLOCK: Final = 64 * 1024
"""Bytes that are read at once, from the end of a file on."""

_LOST: Final = "audit.lost"
_LEFT_OUT: Final = "audit.left_out"

COMMAND_LINE: Final = "command line"
CONSOLE: Final = "console"
TOKEN: Final = "token"  # noqa: S105 - a kind of actor
SERVER: Final = "server"
"""How an actor has come."""

UNFINISHED: Final = "unfinished"
"""The detail of what was begun and has failed: some of it may be done."""

_TELLS: Final = {
    "account.added": account_added,
    "account.changed": account_changed,
    "account.removed": account_removed,
}
"""Changes that are events as well."""


@attrs.frozen(kw_only=True)
class Actor:
    """Who has done it: how (`by`), the account or the user of this machine, the token, and from which address."""

    by: str
    name: str
    token: str | None = None
    address: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.by})"


def command_line_actor() -> Actor:
    """Return who has started this process, also where sudo was in between."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name, as in a container
        number = find_user_id()
        name = "unknown" if number is None else f"user {number}"
    return Actor(by=COMMAND_LINE, name=os.environ.get("SUDO_USER") or name)


def audit_file(state: Path) -> Path:
    """Return where a state folder has what was changed last."""
    return state / "audit.log"


@attrs.frozen
class Entry:
    """A change: of what kind (`action`), of what (`target`), and what besides."""

    time: float
    actor: Actor
    action: str
    target: str
    details: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """Return what is made JSON of, but for the number."""
        return {
            "time": written_time(self.time),
            "actor": attrs.asdict(self.actor),
            "action": self.action,
            "target": self.target[:_LONGEST_TEXT],
            "details": {name: _cut(value) for name, value in self.details.items()},
        }


def _cut(value: Any) -> Any:
    """Return a value, or the beginning of it, as a text, where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return value if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT]


def note_change(state: Path, action: str, target: str, **details: object) -> None:
    """Write down what this command has changed. Blocks.

    Where there is no state folder nothing is written: the accounts are in a database then, and the server is elsewhere.

    Raises:
        StartupError: It cannot be written.
    """
    if is_there(state):
        entry = Entry(time.time(), command_line_actor(), action, target, details)
        append_entries(state, [entry.values()])


def append_entries(
    state: Path, entries: list[dict[str, Any]], *, most: int = MOST_BYTES, files: int = MOST_FILES
) -> None:
    """Add entries, each with the next number; they are on the disk when this returns. Blocks, for up to 5 s while somebody else writes.

    Raises:
        StartupError: They cannot be written.
    """
    path = audit_file(state)
    with hold_lock(state / "audit.lock"):
        last = next(iter(read_audit(state, 1, files=files)), {"number": 0})["number"]
        lines = [_line({"number": last + 1 + index} | each) for index, each in enumerate(entries)]
        try:
            if is_there(path) and path.stat().st_size >= most:
                _move_on(path, files)
            descriptor = open_shared(path, os.O_RDWR | os.O_APPEND)
            try:
                _write(descriptor, b"".join(lines))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StartupError(f"{path}: cannot be written: {error.strerror or error}") from error


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def _write(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and read_at(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # behind a line that a power cut has cut off
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _move_on(path: Path, files: int) -> None:
    """Give the files numbers that are higher by one; the last one goes."""
    for number in range(files - 1, 0, -1):
        older = _numbered(path, number)
        if is_there(older):
            older.replace(_numbered(path, number + 1))
    path.replace(_numbered(path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def read_audit(
    state: Path, most: int, *, before: int | None = None, files: int = MOST_FILES
) -> list[dict[str, Any]]:
    """Return the last entries, the newest first, as they were written: those before a number. A line that is none is passed over. Blocks.

    Raises:
        StartupError: They cannot be read.
    """
    path = audit_file(state)
    found: list[dict[str, Any]] = []
    for file in (path, *(_numbered(path, number) for number in range(1, files + 1))):
        if len(found) >= most or not is_there(file):
            break
        try:
            with file.open("rb") as opened:
                for values in _entries_backward(opened, before):
                    found.append(values)
                    before = values["number"]  # also where a file has moved on meanwhile
                    if len(found) >= most:
                        break
        except OSError as error:
            raise StartupError(f"{file}: cannot be read: {error.strerror or error}") from error
    return found


def _entries_backward(file: BinaryIO, before: int | None) -> Iterator[dict[str, Any]]:
    """Give the entries of a file before a number, the newest first."""
    end = os.fstat(file.fileno()).st_size
    if before is not None:
        end = _find_end(file, end, before)
    for line in _lines_backward(file, end):
        values = _read(line)
        if values is not None and (before is None or values["number"] < before):
            before = values["number"]
            yield values


def _find_end(file: BinaryIO, end: int, before: int) -> int:
    """Return where entries end that are before a number, or up to a block behind: numbers only grow."""
    begin = 0
    while end - begin > _BLOCK:
        middle = (begin + end) // 2
        file.seek(middle)
        file.readline()  # the rest of a line
        values, place = None, file.tell()
        while place < end and (values := _read(file.readline())) is None:
            place = file.tell()
        if values is None:
            end = middle
        elif values["number"] < before:
            begin = place
        else:
            end = place
    return end


def _lines_backward(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Give the lines of a file, the last one first."""
    rest = b""
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        rest, *lines = (file.read(end - begin) + rest).split(b"\n")
        yield from reversed(lines)
        end = begin
    yield rest


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    entry = cast("dict[str, Any]", values)
    return entry if type(entry.get("number")) is int else None


@attrs.define(eq=False, kw_only=True)
class _AccountAllowance(Allowance):
    """That of one account: `actor` is who used it last."""

    actor: Actor


@attrs.define(eq=False)
class Audit:
    """The audit of a server. `run` has to run. What is `events` as well is told there, also where a command has changed it."""

    state: Path
    events: Hub
    _entries: deque[Entry] = attrs.field(init=False, factory=lambda: deque())
    _added: Signal = attrs.field(init=False, factory=Signal)
    _lost: int = attrs.field(init=False, default=0)
    _complained: bool = attrs.field(init=False, default=False)
    _disk: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))
    _allowances: dict[str, _AccountAllowance] = attrs.field(init=False, factory=lambda: {})
    _seen: tuple[int, int] = attrs.field(init=False, default=(0, 0))  # inode and bytes

    def note(
        self,
        actor: Actor,
        action: str,
        target: str = "",
        details: Mapping[str, Any] | None = None,
        *,
        is_bounded: bool = False,
    ) -> None:
        """Write down a change, soon. Never waits: where too many wait for the disk, it is counted, and their number written down.

        With `is_bounded`, somebody has done it who may not fill the audit: of an account that does so much, most is counted only, and is no event.
        """
        if is_bounded and not self._may_be_written(actor, action):
            return
        self._add(Entry(self.events.now(), actor, action, target, details or {}))

    def _may_be_written(self, actor: Actor, action: str) -> bool:
        now = trio.current_time()
        if (allowance := self._allowances.get(actor.name)) is None:
            allowance = self._allowances[actor.name] = _AccountAllowance(
                actor=actor, at_once=AT_ONCE, interval=INTERVAL, since=now
            )
        allowance.actor = actor
        if allowance.take(now):
            return True
        allowance.leave_out(action, now)
        return False

    def _tell_left_out(self) -> None:
        """Write down how much was left out, where there may be an entry of it."""
        now = trio.current_time()
        for name, allowance in list(self._allowances.items()):
            if allowance.left_out and allowance.take(now):
                details = dict(allowance.left_out)
                allowance.left_out.clear()
                self._add(Entry(self.events.now(), allowance.actor, _LEFT_OUT, "", details))
            elif allowance.is_whole(now):
                del self._allowances[name]

    def _add(self, entry: Entry) -> None:
        if len(self._entries) >= _MOST_QUEUED:
            self._lost += 1
        else:
            self._entries.append(entry)
            self._added.notify()
        if (happening := _happening(entry.values())) is not None:
            self.events.publish(happening)

    async def run(self) -> None:
        """Write until cancelled; what is there then is written as well, within a second."""
        self._seen = await trio.to_thread.run_sync(self._size, limiter=self._disk)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, name="changes by commands")
                nursery.start_soon(self._count, name="changes that are counted")
                while True:
                    while not self._entries:
                        await self._added.wait()
                    if not await self._write_all():
                        await trio.sleep(_RETRY_AFTER)
        finally:
            self._tell_left_out()
            with trio.move_on_after(_LAST_LINES, shield=True):
                await self._write_all()

    async def _write_all(self) -> bool:
        """Write what waits; False where that failed."""
        try:
            await trio.to_thread.run_sync(
                self._write_queued, limiter=self._disk, abandon_on_cancel=True
            )
        except StartupError as error:
            if not self._complained:
                self._complained = True
                log.warning("what people change cannot be written down", error=str(error))
            return False
        if self._complained:
            self._complained = False
            log.info("what people change is written down again")
        return True

    def _write_queued(self) -> None:
        """Write what waits. Blocks."""
        number, lost = len(self._entries), self._lost
        entries = [self._entries[index].values() for index in range(number)]
        if lost:
            actor = Actor(by=SERVER, name=self.events.server)
            entries.append(Entry(self.events.now(), actor, _LOST, "", {"entries": lost}).values())
        if entries:
            append_entries(self.state, entries)
        for _ in range(number):
            self._entries.popleft()
        self._lost -= lost

    async def _count(self) -> None:
        """Write down what was left out, for ever."""
        while True:
            await trio.sleep(INTERVAL)
            self._tell_left_out()

    async def _watch(self) -> None:
        """Tell `events` what commands change, for ever."""
        while True:
            await trio.sleep(_LOOK_INTERVAL)
            if not self.events.is_on:
                continue
            for values in await trio.to_thread.run_sync(self._read_new, limiter=self._disk):
                if (happening := _happening(values)) is not None:
                    self.events.publish(happening)

    def _size(self) -> tuple[int, int]:
        try:
            stat = audit_file(self.state).stat()
        except OSError:
            return 0, 0
        return stat.st_ino, stat.st_size

    def _read_new(self) -> list[dict[str, Any]]:
        """Return what commands have written since the last look. Blocks."""
        (inode, size), (seen, done) = self._size(), self._seen
        if (inode, size) == (seen, done) or not inode:
            return []
        path, data = audit_file(self.state), b""
        if inode != seen and seen and (older := _numbered(path, 1)).exists():
            data = _rest_of(older, seen, done)
        data += _rest_of(path, inode, 0 if inode != seen else done)
        data = data[: data.rfind(b"\n") + 1]
        self._seen = inode, size
        entries = filter(None, map(_read, data.split(b"\n")))
        return [each for each in entries if _came_by(each) == COMMAND_LINE]


def _rest_of(path: Path, inode: int, done: int) -> bytes:
    """Return what stands behind so many bytes of a file, if it is the one that was meant."""
    with suppress(OSError), path.open("rb") as file:
        if os.fstat(file.fileno()).st_ino == inode:
            file.seek(done)
            return file.read()
    return b""


def _came_by(values: Mapping[str, Any]) -> str:
    match values.get("actor"):
        case {"by": by}:
            return str(by)
        case _:
            return ""


def _happening(values: Mapping[str, Any]) -> Happening | None:
    """Return the event that a change is, if it is one."""
    tell = _TELLS.get(str(values.get("action")))
    if tell is None:
        return None
    actor: Any = values["actor"]
    details: Any = values.get("details") or {}
    if details.get(UNFINISHED):
        return None
    return tell(
        user=str(values["target"]),
        by=f"{actor.get('name')} ({actor.get('by')})",
        what=str(details.get("what", "")),
    )
