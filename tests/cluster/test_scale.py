"""What grows with a cluster, and what must not: looked at in figures that do not depend on how busy the machine is."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.limit(60)


@pytest.mark.slow
def test_the_bench_measures_all_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--quick"],
        capture_output=True,
        check=True,
        timeout=100,
        encoding="utf-8",
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 20, done.stdout
    assert all(len(row) == 3 for row in rows)
    assert "NOT" not in done.stdout
