"""Faults of networks, processes and machines. What takes long is only there for `nox -s faults`, which says so by `ALL_FAULTS`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import echo_server, ssh_server
from tests.faults import networks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["echo_server", "ssh_server"]

collect_ignore = [] if os.environ.get("ALL_FAULTS") else ["long"]


@pytest.fixture
def lab() -> Iterator[networks.Lab]:
    """Two networks and a router between them."""
    with networks.open_lab() as made:
        yield made
