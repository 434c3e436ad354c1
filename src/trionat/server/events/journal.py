"""The events of a server on the disk, numbered, and how far each webhook has got: so that none is lost when the server is killed or started anew.

Two files of JSON lines, of which the older one is the newer one's predecessor: together they have the last `most` events at least, and no more than
twice as many. Whoever only reads them needs nothing else (`read_events`). A line that was cut off, as by a power cut, is no event: what comes after it
goes into its place. In memory there are the last `most`, from which webhooks are told; older ones are gone for them.

All writing happens in a thread, one at a time. A disk that takes nothing costs what a restart would need, and no event that can be told now.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.events.event import Event
from trionat.signals import AutoResetEvent, Signal
from trionat.store.private_file import is_there, make_private_folder, read_private, write_private
from trionat.system import open_file, write_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

log = get_logger(__name__)

MOST_EVENTS: Final = 10_000
MOST_BYTES: Final = 4 * 1024 * 1024
"""What is kept in memory, and at least on the disk. Chosen: weeks of a server that is well, and the first hours of one that is not."""

_BATCH: Final = 256
"""Events that are written in one go: a few milliseconds, in which the thread may hold up the loop."""

_COMPLAIN_INTERVAL: Final = 60.0

_NEWER: Final = "journal.jsonl"
_OLDER: Final = "journal.older.jsonl"
_POSITIONS: Final = "positions.json"


def events_folder(state: Path) -> Path:
    """Return where a state folder has its events."""
    return state / "events"


@attrs.frozen
class Kept:
    """An event, and its line without its end."""

    event: Event
    line: bytes


@attrs.define(eq=False)
class JournalFile:
    """The newer file, of `count` lines and `size` bytes. Every method blocks."""

    folder: Path
    most: int
    most_bytes: int
    descriptor: int
    count: int
    size: int

    @classmethod
    def open(cls, folder: Path, most: int, most_bytes: int) -> Self:
        """Open it behind its last whole line."""
        path = folder / _NEWER
        try:
            descriptor = open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            size = content.rfind(b"\n") + 1
            if size < len(content):
                log.warning("the last event was cut off when it was written", file=str(path))
                os.ftruncate(descriptor, size)
        except OSError as error:
            raise StartupError(f"{path}: cannot be used: {error.strerror or error}") from error
        return cls(folder, most, most_bytes, descriptor, content.count(b"\n", 0, size), size)

    def append(self, lines: list[bytes]) -> None:
        """Write lines, and have them on the disk; none of them is there where that fails."""
        if not lines:
            return
        if self.count >= self.most or self.size >= self.most_bytes:
            self._begin_anew()
        data = b"".join(line + b"\n" for line in lines)
        done = 0
        try:
            while done < len(data):
                done += write_at(self.descriptor, data[done:], self.size + done)
            os.fsync(self.descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.size += len(data)
        self.count += len(lines)

    def _begin_anew(self) -> None:
        """Have the newer file be the older one, in its place. Where that fails, it goes on from there the next time."""
        newer = self.folder / _NEWER
        self.close()  # Windows renames nothing that is open
        with suppress(FileNotFoundError):  # moved before something has failed
            newer.replace(self.folder / _OLDER)
        self.descriptor = open_file(newer, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.count, self.size = 0, 0

    def close(self) -> None:
        """Close it, unless that has happened."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


@attrs.frozen
class Run:
    """A run of the server: the number of its first event, and a random name."""

    first: int
    name: str


@attrs.define(eq=False)
class Journal:
    """See the module; made by `open`. `run` has to run. `number` is that of the last event that there was.

    `runs` has a random name for each run of the server, so that it and a number name an event for ever (`delivery_of`): a number that a disk has not taken
    is given again after a kill. `positions` has, by webhook, the number of the last event that it is done with. `changed` is notified when there is one more.
    """

    folder: Path
    runs: tuple[Run, ...]
    number: int
    positions: dict[str, int]
    file: JournalFile
    most: int = MOST_EVENTS
    most_bytes: int = MOST_BYTES
    changed: Signal = attrs.field(init=False, factory=Signal)
    _kept: dict[int, Kept] = attrs.field(init=False, factory=lambda: {})
    _bytes: int = attrs.field(init=False, default=0)
    _queue: deque[Event] = attrs.field(init=False, factory=lambda: deque())
    _due: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    _moved: bool = attrs.field(init=False, default=False)
    _settled: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _disk: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))
    _complained: float = attrs.field(init=False, default=float("-inf"))

    @classmethod
    def of_another(cls, folder: Path, webhooks: Collection[str] = ()) -> Self:
        """Return one that another process writes, until `take_over`. Its files are not touched."""
        file = JournalFile(folder, MOST_EVENTS, MOST_BYTES, -1, 0, 0)
        return cls(folder, (Run(1, ""),), 0, dict.fromkeys(webhooks, 0), file)

    @classmethod
    def open(
        cls,
        folder: Path,
        webhooks: Collection[str] = (),
        *,
        most: int = MOST_EVENTS,
        most_bytes: int = MOST_BYTES,
    ) -> Self:
        """Return the journal of a folder, which is made where it is missing. Blocks.

        A webhook that is new hears what comes from now on; that, and where those are that are known, is on the disk when this returns. The
        places of all others are forgotten.

        Raises:
            StartupError: It cannot be used.
        """
        make_private_folder(folder)
        known, positions = _read_positions(folder / _POSITIONS)
        kept = list(_read_lines(folder, most))
        number = max([0, *positions.values(), *(each.event.number for each in kept[-1:])])
        positions = {webhook: positions.get(webhook, number) for webhook in webhooks}
        runs = _with_another(known, kept[0].event.number if kept else number + 1, number + 1)
        file = JournalFile.open(folder, most, most_bytes)
        journal = cls(folder, runs, number, positions, file, most, most_bytes)
        journal._keep(kept)
        journal.write_positions()
        return journal

    async def take_over(self) -> None:
        """Read everything anew: another process has written it until now, and is done with it. Nothing was put in here, and nobody runs it yet.

        Raises:
            StartupError: It cannot be used.
        """
        opened = partial(
            Journal.open,
            self.folder,
            tuple(self.positions),
            most=self.most,
            most_bytes=self.most_bytes,
        )
        fresh = await trio.to_thread.run_sync(opened)
        self.file, self.runs, self.number = fresh.file, fresh.runs, fresh.number
        self.positions.clear()
        self.positions.update(fresh.positions)
        self._keep(fresh.kept)

    async def write_down(self) -> None:
        """Write what waits, and where the webhooks are, for another process to go on with."""
        self._moved = True
        await self.flush()

    def put(self, event: Event) -> None:
        """Write an event, soon. Where too many wait for the disk, the oldest of them goes."""
        if len(self._queue) >= self.most:
            self._queue.popleft()
        self._queue.append(event)
        self.number = event.number
        self._due.notify()

    def __iter__(self) -> Iterator[Event]:
        return (kept.event for kept in self._kept.values())

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Those that can be told, the oldest first."""
        return tuple(self._kept.values())

    @property
    def last(self) -> int:
        """The number of the last event that can be told; those that wait for the disk have higher ones."""
        return next(reversed(self._kept), 0)

    def delivery_of(self, number: int) -> str:
        """Return what names the event of a number, and no other one that was ever told."""
        run = next((each for each in reversed(self.runs) if each.first <= number), self.runs[0])
        return f"{run.name}-{number}"

    def newest(
        self,
        most: int,
        *,
        before: int | None = None,
        above: int = 0,
        wants: Callable[[str], bool] = lambda _: True,
    ) -> list[Event]:
        """Return the newest events, the newest first: of those before a number, above another one, and of types that are wanted."""
        found: list[Event] = []
        for kept in reversed(self._kept.values()):
            if len(found) >= most or kept.event.number <= above:
                break
            if (before is None or kept.event.number < before) and wants(kept.event.type):
                found.append(kept.event)
        return found

    def next_after(self, number: int) -> Kept | None:
        """Return the oldest event with a higher number. There may be a gap: what was in it is gone."""
        if (kept := self._kept.get(number + 1)) is not None:
            return kept
        return next((each for each in self._kept.values() if each.event.number > number), None)

    def take_webhooks(self, webhooks: Collection[str]) -> None:
        """There are these from now on; one that is new hears what comes, and where the others were is forgotten."""
        self.positions = {webhook: self.positions.get(webhook, self.number) for webhook in webhooks}
        self._moved = True
        self._due.notify()

    def settle(self, webhook: str, number: int) -> None:
        """A webhook is done with all events up to that one."""
        self.positions[webhook] = number
        self._moved = True
        self._due.notify()

    async def wait_settled(self, webhook: str) -> None:
        """Wait until it is on the disk how far a webhook has got, or cannot be."""
        while self._settled.get(webhook, 0) < self.positions[webhook]:
            await self.changed.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._due.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what waits. Cancelling it loses nothing that was begun."""
        async with self._turn:  # whoever comes second waits for what the first one writes
            while self._queue or self._moved:
                kept, positions, reason = await trio.to_thread.run_sync(
                    self._write, limiter=self._disk, abandon_on_cancel=True
                )
                self._settled |= positions  # or there is no hope now
                self._keep(kept)
                if reason is not None:
                    self._complain(reason)

    def _complain(self, reason: str) -> None:
        if trio.current_time() - self._complained > _COMPLAIN_INTERVAL:
            self._complained = trio.current_time()
            log.warning(
                "events cannot be written down; those of now are told nevertheless", reason=reason
            )

    async def close(self) -> None:
        """Write what waits, and close the file: behind what is being written, as a disk that hangs keeps its descriptor."""
        await self.flush()
        await trio.to_thread.run_sync(self.file.close, limiter=self._disk, abandon_on_cancel=True)

    def _write(self) -> tuple[list[Kept], dict[str, int], str | None]:
        """Write a part of what waits; return it, and why that failed, if it did. Blocks. Taken here, so that nothing is lost where this never begins."""
        reason: str | None = None
        positions: dict[str, int] = {}
        batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        kept = [Kept(event, event.to_json()) for event in batch]
        try:
            self.file.append([each.line for each in kept])
        except OSError as error:
            reason = error.strerror or str(error)
        if self._moved:
            self._moved = False
            positions = dict(
                self.positions
            )  # behind the line above, so that no later one is taken for written
            try:
                self.write_positions()
            except StartupError as error:
                reason = str(error)
        return kept, positions, reason

    def write_positions(self) -> None:
        """Have the positions on the disk. Blocks.

        Raises:
            StartupError: That cannot be.
        """
        content = {
            "version": 1,
            "runs": [[run.first, run.name] for run in self.runs],
            "positions": dict(self.positions),
        }
        write_private(self.folder / _POSITIONS, json.dumps(content).encode())

    def _keep(self, kept: Iterable[Kept]) -> None:
        for each in kept:
            self._kept[each.event.number] = each
            self._bytes += len(each.line)
        while len(self._kept) > self.most or self._bytes > self.most_bytes:
            self._bytes -= len(self._kept.pop(next(iter(self._kept))).line)
        self.changed.notify()


def read_events(state: Path, most: int) -> list[Event]:
    """Return the last events of a state folder, the oldest first, also while a server runs on it. Blocks.

    Raises:
        StartupError: They cannot be read.
    """
    return [kept.event for kept in _read_lines(events_folder(state), most)]


def _read_lines(folder: Path, most: int) -> Iterable[Kept]:
    """Return the last events of a folder; what is no event is passed over, as is a line without its end."""
    kept: deque[Kept] = deque(maxlen=most)
    for name in (_OLDER, _NEWER):
        path = folder / name
        if not is_there(path):
            continue
        *lines, _ = read_private(path).split(b"\n")
        damaged = 0
        for line in lines:
            try:
                event = Event.from_json(line)
            except ValueError:
                damaged += 1
                continue
            if not kept or event.number > kept[-1].event.number:
                kept.append(Kept(event, line))
        if damaged:
            log.warning("lines that are no events are passed over", file=str(path), lines=damaged)
    return kept


def _with_another(runs: Iterable[Run], oldest: int, first: int) -> tuple[Run, ...]:
    """Return the runs whose events are still there, of which that number is the oldest, and one that begins now."""
    known = [run for run in runs if run.first < first]
    gone = sum(run.first <= oldest for run in known) - 1
    return (*known[max(gone, 0) :], Run(first, secrets.token_hex(8)))


def _read_positions(path: Path) -> tuple[list[Run], dict[str, int]]:
    """Return the runs and the positions; none where there are none that can be read."""
    if not is_there(path):
        return [], {}
    try:
        content: Any = json.loads(read_private(path))
        positions = content["positions"]
        numbers = [*positions.values(), *(first for first, _ in content["runs"])]
        if not all(type(each) is int for each in numbers):
            raise ValueError("a number is none")
        if not all(isinstance(name, str) for _, name in content["runs"]):
            raise ValueError("a name is none")
        runs = [Run(first, name) for first, name in content["runs"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning(
            "how far webhooks have got is not known any more", file=str(path), reason=str(error)
        )
        return [], {}
    return runs, dict(positions)
