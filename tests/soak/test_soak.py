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
    pytest.mark.limit(240),
    pytest.mark.timeout(300),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it counts what processes hold in /proc"),
]


async def test_ten_seconds(tmp_path: Path) -> None:
    """Memory is left out: it has not come to its plateau yet."""
    outcome = await soak(Plan(seconds=10, visitors=50, seed=1, pause=2), tmp_path)
    text = report(outcome)
    print(text)
    assert not outcome.book.faults.keys() - {"memory grows"}, text
    assert outcome.book.served.total() > 50
    assert outcome.book.disturbances.total() > 5
