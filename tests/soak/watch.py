"""What a process says on standard error, and what it costs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from tests.soak.book import Book

LISTEN_INTERVAL: Final = 0.2
_REFUSED: Final = re.compile(r" visitor refused .*\brefused=(\d+) .*\bport=(\d+)\b")
_NOT_SERVED: Final = re.compile(
    r" visitor closed .*\bport=(\d+) .*\breason='no tunnel for it in time'"
)
_OURS: Final = re.compile(
    r"^\d\d:\d\d:\d\d (error|critical) |Traceback|internal error|were dropped"
)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@attrs.define(eq=False)
class Ears:
    """Reads along what a process says, and forgets it, so that a long run can say much. An error in it is a fault."""

    name: str
    said: bytearray
    book: Book

    async def listen(self) -> None:
        """Listen until cancelled."""
        while True:
            self.catch_up()
            await trio.sleep(LISTEN_INTERVAL)

    def catch_up(self) -> None:
        """Read what is there now, up to the last whole line."""
        end = self.said.rfind(b"\n") + 1
        text = self.said[:end].decode()
        del self.said[:end]
        for line in text.splitlines():
            if (refused := _REFUSED.search(line)) is not None:
                self.book.add_refusals(int(refused[2]), int(refused[1]))
            elif (not_served := _NOT_SERVED.search(line)) is not None:
                self.book.add_not_served(int(not_served[1]))
            elif _OURS.search(line):
                self.book.fault("in a log", f"{self.name}: {line}")


@attrs.frozen
class Cost:
    """What a process holds at a moment: resident memory in bytes, and descriptors, without that of its log.

    A client opens its log with the first record, which comes with the first visitor.
    """

    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Cost | None:
        """Return it, or None where the process has ended. Linux."""
        folder = Path("/proc") / str(pid)
        try:
            resident = int((folder / "statm").read_text().split()[1])
            descriptors = list((folder / "fd").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            return None
        return cls(resident * _PAGE, sum(not _is_log(each) for each in descriptors))


def _is_log(descriptor: Path) -> bool:
    try:
        return descriptor.readlink().suffix == ".log"
    except FileNotFoundError:  # closed meanwhile
        return False
