"""What stands before the visit ports. Connections are real ones; time is not."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.networks import parse_network
from trionat.server.accounts.limits import UserLimits
from trionat.server.refusals import Bound
from trionat.server.visitors import access
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

    from trionat.server.visitors.visitor import Visitor

ONE, TWO = "192.0.2.1", "192.0.2.2"


@attrs.define(eq=False)
class Entrance:
    """The acceptor of one port, whose lease nobody serves."""

    acceptor: VisitorAcceptor
    port: VisitPort
    line: VisitorQueue
    listening: socket.socket
    outside: list[socket.socket] = attrs.field(factory=list)

    def come(self, host: str) -> Visitor | None:
        """Connect, and say that it was from there; return the visitor that it became."""
        far = socket.create_connection(self.listening.getsockname())
        self.outside.append(far)
        near, _ = self.listening.accept()
        before = set(self.line.waiting_visitors)
        self.acceptor.accept(self.port, TCPAddress("0.0.0.0", 1), near, TCPAddress(host, 5))
        [*new] = set(self.line.waiting_visitors) - before
        if not new:
            far.settimeout(1)
            assert far.recv(1) == b""  # closed at once
            return None
        return new[0]

    def go(self, visitor: Visitor) -> None:
        self.line._waiting.remove(visitor)
        self.line._dismiss(visitor, "gone")


def entrance(**settings: object) -> Entrance:
    line = VisitorQueue(100, 100, UserLimits("alice", Limits()))
    acceptor = VisitorAcceptor(ServerConfig(**settings))  # type: ignore[arg-type]
    return Entrance(
        acceptor, VisitPort(60001, queue=line), line, socket.create_server(("127.0.0.1", 0))
    )


@pytest.fixture
def entrances(nothing_left: None) -> Iterator[list[Entrance]]:
    """Those of the test, to be torn down."""
    made: list[Entrance] = []
    yield made
    for each in made:
        for sock in (each.listening, *each.outside):
            sock.close()
        assert not each.line.waiting_visitors


@pytest.mark.parametrize("listed", ["server", "user"])
async def test_lists(listed: str, entrances: list[Entrance]) -> None:
    allow, deny = ("192.0.2.0/24", "2001:db8::/32"), ("192.0.2.2",)
    if listed == "server":
        here = entrance(
            allow_visitors=tuple(map(parse_network, allow)),
            deny_visitors=tuple(map(parse_network, deny)),
        )
    else:
        here = entrance()
        here.line.user_limits.change(Limits(allow_visitors=allow, deny_visitors=deny))
    entrances.append(here)
    assert here.come(TWO) is None
    assert here.come("203.0.113.9") is None
    assert here.come("::1") is None
    visitor = here.come(ONE)
    assert visitor is not None
    assert visitor.visited == TCPAddress(*here.listening.getsockname())  # not 0.0.0.0
    assert here.come("2001:db8::7") is not None
    here.line.close("the end of the test")


async def test_a_port_that_nobody_holds(entrances: list[Entrance]) -> None:
    here = entrance()
    entrances.append(here)
    here.port.queue = None
    assert here.come(ONE) is None


async def test_so_many_of_one_address_at_once(entrances: list[Entrance]) -> None:
    here = entrance(max_visitors_per_address=2)
    entrances.append(here)
    first = here.come(ONE)
    assert first is not None
    assert here.come(ONE) is not None
    assert here.come(ONE) is None
    assert here.come(TWO) is not None
    here.go(first)
    assert here.come(ONE) is not None
    assert here.come(ONE) is None
    assert here.come("2001:db8::1") is not None
    assert here.come("2001:db8::2") is not None
    assert here.come("2001:db8::3") is None  # of the same /64
    here.line.open = False
    here.go(here.line.waiting_visitors[0])
    for _ in range(3):  # whom the line refuses is not counted either
        assert here.come(ONE) is None
    here.line.close("the end of the test")
    assert here.acceptor._policy._present == {}


async def test_so_many_of_one_address_a_second(
    entrances: list[Entrance], autojump_clock: MockClock
) -> None:
    here = entrance(visitor_rate=3)
    entrances.append(here)

    def come(count: int, host: str) -> int:
        return sum(here.come(host) is not None for _ in range(count))

    assert come(5, ONE) == 3
    assert come(5, TWO) == 3
    await trio.sleep(0.34)
    assert come(5, ONE) == 1
    await trio.sleep(60)
    assert come(5, ONE) == 3
    here.line.close("the end of the test")


async def test_what_is_remembered_of_rates_is_bounded(
    entrances: list[Entrance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_MOST_NETWORKS", 3)
    here = entrance(visitor_rate=9)
    entrances.append(here)
    for number in (1, 2, 3, 1, 4):
        assert here.come(f"192.0.2.{number}") is not None
    assert list(here.acceptor._policy._buckets) == ["192.0.2.3", "192.0.2.1", "192.0.2.4"]
    here.line.close("the end of the test")


async def test_a_flood_does_not_flood_the_log(
    entrances: list[Entrance], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    here = entrance(deny_visitors=(parse_network(ONE),), max_visitors_per_address=1)
    entrances.append(here)
    for host in (ONE, TWO):
        for _ in range(20):
            here.come(host)
    assert caplog.text.count("visitor refused") == 2
    with trio.move_on_after(1.5):
        await here.acceptor.refusals.tell_regularly()
    assert caplog.text.count("visitor refused") == 4
    assert (
        "refused=19" in caplog.text
    )  # of those from ONE, and all but the first from TWO may come in
    assert "refused=18" in caplog.text
    assert here.acceptor.refusals.counts == {Bound.LISTS: 20, Bound.VISITORS_OF_ADDRESS: 19}
    here.line.close("the end of the test")


async def test_the_line_refuses_as_quietly(
    entrances: list[Entrance], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    here = entrance()
    entrances.append(here)
    here.line.most_present = 1
    for _ in range(20):
        here.come(ONE)
    assert caplog.text.count("visitor refused") == 1
    here.line.close("the end of the test")


async def test_one_that_is_gone_already(entrances: list[Entrance]) -> None:
    """Nothing is asked of a connection that may fail on one that was reset."""
    here = entrance()
    entrances.append(here)
    with closing(socket.create_connection(here.listening.getsockname())) as far:
        near, _ = here.listening.accept()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    here.acceptor.accept(here.port, TCPAddress("0.0.0.0", 1), near, TCPAddress(ONE, 5))
    assert len(here.line.waiting_visitors) == 1
    here.line.close("the end of the test")
