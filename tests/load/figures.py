"""How much of everything, and what it costs a process. Linux."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

import attrs

THOROUGH: Final = bool(os.environ.get("ALL_LOAD"))
"""Whether there is time: `nox -s load` says so."""

VISITORS: Final = int(os.environ.get("LOAD_VISITORS") or (10_000 if THOROUGH else 400))
SESSIONS: Final = int(os.environ.get("LOAD_SESSIONS") or (200 if THOROUGH else 12))
BURST: Final = int(os.environ.get("LOAD_BURST") or (5_000 if THOROUGH else 300))

MOST_VISITORS: Final = 1024 if THOROUGH else 60
"""Of one session: the default of MaxVisitors, or few enough for a small crowd to be too many."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def allow_all_descriptors() -> int:
    """Take as many descriptors as this process may have, as the product does for its own; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@attrs.frozen
class Belongings:
    """What a process has: bytes of memory (resident), descriptors, and seconds of processor time that it has used."""

    memory: int
    descriptors: int
    seconds: float

    @classmethod
    def of(cls, pid: int) -> Belongings:
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        return cls(
            memory=pages * resource.getpagesize(),
            descriptors=len(list((process / "fd").iterdir())),
            seconds=sum(map(int, ticks)) / _TICKS,
        )

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} MiB, {self.descriptors} descriptors, {self.seconds:.1f} s of processor"
