"""The services of `services.py` as fixtures, for tests that need one of a kind, and one tunnel for many tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e import running, services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
async def redis_server() -> AsyncIterator[services.Service]:
    async with services.redis() as service:
        yield service


@pytest.fixture
async def ssh_server() -> AsyncIterator[services.SSHServer]:
    async with services.sshd() as service:
        yield service


@pytest.fixture
async def http_server() -> AsyncIterator[services.Service]:
    async with services.http() as service:
        yield service


@pytest.fixture
async def websocket_server() -> AsyncIterator[services.Service]:
    async with services.websocket_echo() as service:
        yield service


@pytest.fixture
async def echo_server() -> AsyncIterator[services.Service]:
    async with services.echo() as service:
        yield service


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Pair]:
    """A server and a client that live as long as the module's tests, which so show that they harm nobody after them."""
    with running.pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair
