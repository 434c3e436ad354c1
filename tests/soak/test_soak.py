"""A short soak, which shows that the long one still works."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.soak.report import report
from tests.soak.soak import Plan, soak

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.limit(110),
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it counts what processes hold in /proc"),
]


TUNNELS = ("--min-idle-tunnels", "16", "--max-tunnels", "16")
"""As many at rest as ever, so that nobody has to wait a minute until those that are not needed any more go home."""


async def test_ten_seconds(tmp_path: Path) -> None:
    plan = Plan(seconds=10, visitors=50, seed=1, pause=2, flags=TUNNELS, rest_within=20)
    outcome = await soak(plan, tmp_path)
    text = report(outcome)
    print(text)
    assert not outcome.book.faults, text
    assert outcome.book.served.total() > 50
    assert outcome.book.disturbances.total() > 5
