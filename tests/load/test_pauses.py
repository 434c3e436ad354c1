"""For how long a server with many visitors holds up its loop, while they come and while consoles watch: by the processor's time, since the machine has other things to do.

`ALL_LOAD=1 pytest -n0 -s tests/load/test_pauses.py` has 10,000 visitors; `python -m bench.pauses` prints the figures of docs/console.md.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest

from bench import pauses
from tests.load.figures import THOROUGH

if TYPE_CHECKING:
    from pathlib import Path

    from bench.pauses import Observer

pytestmark = [
    pytest.mark.limit(170),
    pytest.mark.timeout(190),
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="visitors without sockets are parked as epoll's are"
    ),
]

SIZE: Final = (
    pauses.Size(seconds=20.0) if THOROUGH else pauses.Size(visitors=3000, sessions=3, seconds=5.0)
)
WATCHING: Final = "three consoles", "all pages"

LONGEST_LOOK: Final = 0.05
"""Seconds of the processor for which garbage may be looked for in one go. Left to Python it is 0.15 s for 3,000 visitors, and 0.5 s for 10,000."""

MOST_OF: Final = 0.05
"""Seconds that 999 of 1000 pauses may have."""


async def test_nothing_holds_up_the_loop(tmp_path: Path) -> None:
    looks: dict[str, float] = {}
    usual: dict[str, float] = {}

    def note(what: str, observer: Observer) -> None:
        looks[what] = max((each.seconds for each in observer.collections), default=0.0)
        usual[what] = sorted(observer.pauses)[int(len(observer.pauses) * 0.999)]

    await pauses.measure(SIZE, WATCHING, tmp_path, note)
    print(looks, usual)
    if THOROUGH:  # on its way to 10,000 visitors the process becomes twice as large
        del looks[pauses.COMING]
    assert max(looks.values()) < LONGEST_LOOK, looks
    assert max(usual.values()) < MOST_OF, usual
