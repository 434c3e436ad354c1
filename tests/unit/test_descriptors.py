"""The last descriptors are for control connections. Who waits for one is in `test_listener.py`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio.testing

from tests.unit.memory_server import open_memory_server
from trionat.protocol.messages import Attach, RefusalCode, Refused
from trionat.transport.channel import Channel
from trionat.transport.descriptors import is_for_control

if TYPE_CHECKING:
    from tests.unit.conftest import Tidy

if sys.platform == "win32":
    pytest.skip("descriptors have no small numbers here", allow_module_level=True)

import resource


def limit(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    """Let this process believe that it may have so many, without taking them away from the test runner."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))


def test_the_last_sixteenth(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1600)
    assert [is_for_control(number) for number in (-1, 3, 1499, 1500, 1599)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    limit(monkeypatch, resource.RLIM_INFINITY)
    assert not is_for_control(10**6)


async def test_tunnels_leave_room_for_control_connections(
    tidy: Tidy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        limit(monkeypatch, 160)
        for number, attached in ((149, True), (150, False)):
            wire = server.connect()
            wire.peer.number = number  # before the server looks at it
            channel = Channel(wire)
            await channel.send(Attach(client.welcome.uid, client.welcome.secret))
            if attached:
                await trio.testing.wait_all_tasks_blocked()
                assert server.sessions[0].tunnels.count == 1
            else:
                refused = await channel.receive()
                assert isinstance(refused, Refused)
                assert refused.code == RefusalCode.UNKNOWN_SESSION
                assert server.sessions[0].tunnels.count == 1
