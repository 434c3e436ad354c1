"""What tests of sessions and relays get: endpoints in memory, and the proof that nothing is left of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.unit.commands import Trionat
from tests.unit.memory import CAPACITY, MemoryEndpoint, memory_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.server.admission.queue import Admission


@attrs.define(eq=False)
class Tidy:
    """Everything that a test has made and that must be gone at its end."""

    endpoints: list[MemoryEndpoint] = attrs.field(factory=list)
    admissions: list[Admission] = attrs.field(factory=list)

    def pair(self, capacity: int = CAPACITY) -> tuple[MemoryEndpoint, MemoryEndpoint]:
        """Return two ends of a stream in memory, which must both be closed at the end of the test."""
        return memory_pair(self.endpoints, capacity)

    def watch(self, admission: Admission) -> Admission:
        """Look at its ports and slots at the end of the test."""
        self.admissions.append(admission)
        return admission

    def check(self) -> None:
        """Fail for what is left: an open endpoint, a lent port, a taken slot, a lease."""
        left = [f"open: {endpoint}" for endpoint in self.endpoints if not endpoint.closed]
        for admission in self.admissions:
            leases = admission.leases
            pool = leases.ports
            if pool.free < len(pool.ports):
                left.append(f"{len(pool.ports) - pool.free} ports are lent")
            left += [
                f"a visitor queue on port {port.number}"
                for port in pool.ports.values()
                if port.queue is not None
            ]
            left += [f"lease {key}" for key in leases.by_key]
            left += [f"limits of {user}" for user in leases.live_limits.by_user]
            if admission.queue:
                left.append(f"{len(admission.queue)} clients in the queue")
        if left:
            pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def tidy(nothing_left: None) -> Iterator[Tidy]:
    """Fail the test if a Trio task, a descriptor, an endpoint, a port, a slot or a lease is left behind."""
    tidy = Tidy()
    yield tidy
    tidy.check()


@pytest.fixture
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `server.yml` or `client.yml` lies about, and no variable is set."""
    (tmp_path / "cwd" / "below" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd" / "below" / "below")
    for name in list(os.environ):
        if name.startswith("TRIONAT"):
            monkeypatch.delenv(name)


@pytest.fixture
def trionat(nothing_configured: None, tmp_path: Path) -> Trionat:
    """`trionat user` on a state folder that is not there yet."""
    return Trionat(folder=tmp_path / "state")
