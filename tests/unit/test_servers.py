"""Which of several servers a client goes to: how long a dead one holds it up, and which one it comes back to."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, cast

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.client.native.dialer import Server, ServerDialer
from trionat.client.native.servers import Place, Servers
from trionat.errors import (
    ConnectionLostError,
    IdentityError,
    PeerError,
    PeerTimeoutError,
    RefusedError,
    SessionOverError,
    StartupError,
)
from trionat.protocol.messages import CloseCode, RefusalCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

    from trionat.transport.tls_endpoint import TLSEndpoint


@attrs.define(eq=False)
class End:
    """A connection, of which only that it is closed matters."""

    open: bool = True

    def close(self) -> None:
        self.open = False


@attrs.define
class Host:
    """What becomes of a connection there: `answers` after so many seconds, `shakes` hands after so many more; `error` instead."""

    answers: float = 0.01
    shakes: float = 0.01
    error: BaseException | None = None


DEAD = Host(answers=1e9)
FROZEN = Host(shakes=1e9)


@attrs.define(eq=False)
class Net:
    """What lies between the client and its servers: hosts by name or number, and what names lead to."""

    hosts: dict[str, Host] = attrs.field(factory=dict)
    names: dict[str, list[str] | Host] = attrs.field(factory=dict)
    dialled: list[tuple[float, str]] = attrs.field(factory=list)
    ends: list[End] = attrs.field(factory=list)

    def dialer(self, name: str) -> ServerDialer:
        address = TCPAddress(name, 8007)
        server = Server(control=address, tunnel=address, username="alice")
        return NetDialer(server, 10.0, _no_folder, net=self)

    def servers(self, *names: str) -> Servers:
        """Return them in this order, which is random otherwise."""
        servers = Servers(tuple(map(self.dialer, names)))
        servers._order = list(servers.dialers)
        return servers

    @property
    def left_open(self) -> int:
        return sum(end.open for end in self.ends)


def _no_folder() -> Path:
    raise AssertionError


@attrs.define(eq=False)
class NetDialer(ServerDialer):
    net: Net = attrs.field(kw_only=True)

    async def look_up(self) -> list[str]:
        told = self.net.names[self.server.control.host]
        if isinstance(told, list):
            await trio.sleep(0.005)
            return list(told)
        await trio.sleep(min(told.answers, self.timeout))
        raise told.error or PeerTimeoutError("no name server told")

    async def connect(
        self,
        address: TCPAddress,
        host: str | None = None,
        route: str | None = None,
        on_reached: Callable[[], None] = lambda: None,
    ) -> TLSEndpoint:
        where = host or address.host
        self.net.dialled.append((trio.current_time(), where))
        there = self.net.hosts[where]
        with trio.move_on_after(self.timeout):
            await trio.sleep(there.answers)
            if there.error is not None:
                raise there.error
            on_reached()
            await trio.sleep(there.shakes)
            self.net.ends.append(end := End())
            return cast("TLSEndpoint", end)
        raise PeerTimeoutError(f"{address} did not answer within {self.timeout:g} s")


def refused(where: str) -> Host:
    return Host(error=ConnectionLostError(f"cannot reach {where}:8007: Connection refused"))


async def connect(net: Net, servers: Servers) -> tuple[Place, object]:
    """Connect; return where to, and how long that took, which is about right. No other connection is left."""
    before, since = net.left_open, trio.current_time()
    place, endpoint = await servers.connect()
    assert cast("End", endpoint).open
    assert net.left_open == before + 1
    return place, pytest.approx(trio.current_time() - since, abs=0.1)


async def test_one_server_is_dialled_by_its_name_and_fails_with_its_own_reason(
    autojump_clock: MockClock,
) -> None:
    error = ConnectionLostError("cannot reach localhost:8007: Connection refused")
    net = Net(hosts={"localhost": Host(error=error)})
    with pytest.raises(ConnectionLostError) as caught:
        await net.servers("localhost").connect()
    assert caught.value is error
    assert [host for _, host in net.dialled] == ["localhost"]


async def test_a_dead_server_costs_a_quarter_of_a_second(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": DEAD, "192.0.2.2": Host()})
    place, took = await connect(net, net.servers("192.0.2.1", "192.0.2.2"))
    assert (place.host, took) == ("192.0.2.2", 0.27)
    (first, one), (second, other) = net.dialled
    assert (one, other) == ("192.0.2.1", "192.0.2.2")
    assert second - first == pytest.approx(0.25, abs=0.1)


async def test_a_server_that_refuses_costs_nothing(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": refused("192.0.2.1"), "192.0.2.2": Host()})
    place, took = await connect(net, net.servers("192.0.2.1", "192.0.2.2"))
    assert (place.host, took) == ("192.0.2.2", 0.03)


async def test_a_server_whose_process_hangs_costs_two_seconds(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": FROZEN, "192.0.2.2": Host()})
    place, took = await connect(net, net.servers("192.0.2.1", "192.0.2.2"))
    assert (place.host, took) == ("192.0.2.2", 2.03)


async def test_a_server_that_is_far_away_is_waited_for(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(answers=0.2, shakes=1.5), "192.0.2.2": Host()})
    place, took = await connect(net, net.servers("192.0.2.1", "192.0.2.2"))
    assert (place.host, took) == ("192.0.2.1", 1.7)
    assert len(net.dialled) == 1


async def test_the_loser_is_closed_even_if_it_comes_through_in_the_same_moment(
    autojump_clock: MockClock,
) -> None:
    net = Net(hosts={"192.0.2.1": Host(answers=0.3), "192.0.2.2": Host(answers=0.05)})
    await connect(net, net.servers("192.0.2.1", "192.0.2.2"))
    assert [end.open for end in net.ends].count(True) == 1


async def test_every_address_of_a_name_is_tried_before_the_next_server(
    autojump_clock: MockClock,
) -> None:
    net = Net(
        hosts={"2001:db8::1": DEAD, "192.0.2.1": DEAD, "192.0.2.9": Host()},
        names={"a.example": ["2001:db8::1", "192.0.2.1"]},
    )
    place, took = await connect(net, net.servers("a.example", "192.0.2.9"))
    assert [host for _, host in net.dialled] == ["2001:db8::1", "192.0.2.1", "192.0.2.9"]
    assert (place.host, took) == ("192.0.2.9", 0.53)


async def test_a_name_server_that_hangs_holds_nobody_up(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.9": Host()}, names={"a.example": DEAD})
    place, took = await connect(net, net.servers("a.example", "192.0.2.9"))
    assert (place.host, took) == ("192.0.2.9", 0.27)


async def test_tunnels_go_to_the_machine_that_has_the_session(autojump_clock: MockClock) -> None:
    net = Net(
        hosts={"192.0.2.1": DEAD, "192.0.2.2": Host()},
        names={"a.example": ["192.0.2.1", "192.0.2.2"]},
    )
    place, _ = await connect(net, net.servers("a.example"))
    assert place.host_of(TCPAddress("a.example", 8008)) == "192.0.2.2"
    assert place.host_of(TCPAddress("tunnels.example", 8008)) is None


# --- after a loss ---


async def test_the_server_that_had_the_session_comes_first(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": DEAD, "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    await connect(net, servers)
    net.hosts["192.0.2.1"] = Host()
    place, took = await connect(net, servers)
    assert (place.host, took) == ("192.0.2.2", 0.02)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        pytest.param(["192.0.2.1", "192.0.2.2"], "192.0.2.2", id="as it was"),
        pytest.param(["192.0.2.1"], "192.0.2.1", id="the name leads elsewhere"),
    ],
)
async def test_of_a_name_the_address_that_had_the_session_comes_first(
    autojump_clock: MockClock, hosts: list[str], expected: str
) -> None:
    net = Net(
        hosts={"192.0.2.1": DEAD, "192.0.2.2": Host()},
        names={"a.example": ["192.0.2.1", "192.0.2.2"]},
    )
    servers = net.servers("a.example")
    await connect(net, servers)
    net.hosts["192.0.2.1"] = Host()
    net.names["a.example"] = hosts
    place, took = await connect(net, servers)
    assert (place.host, took) == (expected, 0.03)


@pytest.mark.parametrize(
    "name_server", [DEAD, Host(error=ConnectionLostError("cannot reach a.example"))]
)
async def test_it_is_found_without_a_name_server_too(
    autojump_clock: MockClock, name_server: Host
) -> None:
    net = Net(hosts={"192.0.2.2": Host()}, names={"a.example": ["192.0.2.2"]})
    servers = net.servers("a.example")
    await connect(net, servers)
    net.names["a.example"] = name_server
    place, took = await connect(net, servers)
    assert place.host == "192.0.2.2"
    assert took in (0.02, 0.27)


async def test_it_may_answer_later_than_the_others(autojump_clock: MockClock) -> None:
    """Its first SYN was lost with the network, and TCP repeats it late: it is asked once more."""
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    await connect(net, servers)
    net.hosts["192.0.2.1"] = DEAD

    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(0.26)  # the other one is under way
            net.hosts["192.0.2.1"] = Host()

        nursery.start_soon(come_back)
        place, took = await connect(net, servers)
    assert (place.host, took) == ("192.0.2.1", 0.29)


async def test_where_it_is_dead_the_others_wait_for_two_seconds(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    await connect(net, servers)
    net.hosts["192.0.2.1"] = DEAD
    place, took = await connect(net, servers)
    assert (place.host, took) == ("192.0.2.2", 2.27)
    place, took = await connect(net, servers)
    assert (place.host, took) == ("192.0.2.2", 0.02)


async def test_where_it_refuses_nobody_waits(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    await connect(net, servers)
    net.hosts["192.0.2.1"] = refused("192.0.2.1")
    place, took = await connect(net, servers)
    assert (place.host, took) == ("192.0.2.2", 0.03)


def over(code: CloseCode) -> PeerError:
    return SessionOverError(code, "over")


@pytest.mark.parametrize(
    ("problem", "goes_back"),
    [
        (ConnectionLostError("lost"), True),
        (over(CloseCode.TIMEOUT), True),
        (over(CloseCode.STOPPED), False),
        (RefusedError(RefusalCode.FULL, "full"), False),
    ],
    ids=str,
)
async def test_a_server_that_does_not_want_us_comes_last(
    autojump_clock: MockClock, problem: PeerError, goes_back: bool
) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    place, _ = await connect(net, servers)
    assert not servers.ended(place, problem, final=False)
    place, _ = await connect(net, servers)
    assert place.host == ("192.0.2.1" if goes_back else "192.0.2.2")


async def test_of_a_name_the_address_that_does_not_want_us_comes_last(
    autojump_clock: MockClock,
) -> None:
    """One node of a cluster may refuse what another one takes."""
    hosts = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    net = Net(hosts=dict.fromkeys(hosts, Host()), names={"a.example": hosts})
    servers = net.servers("a.example")
    tried: list[str] = []
    for _ in range(5):
        place, _ = await connect(net, servers)
        tried.append(place.host)
        refusal = RefusedError(RefusalCode.PORT_TAKEN, "the group web is at another node")
        assert not servers.ended(place, refusal, final=False)
    assert tried == [*hosts, *hosts[:2]]


async def test_only_so_many_addresses_are_remembered_for_it(autojump_clock: MockClock) -> None:
    net = Net()
    dialer = net.dialer("a.example")
    hosts = [f"192.0.2.{number}" for number in range(20)]
    for host in hosts:
        dialer.put_last(host)
    assert dialer.in_order(hosts) == hosts
    dialer.put_last(hosts[10])
    assert dialer.in_order(hosts[4:]) == [*hosts[4:10], *hosts[11:], hosts[10]]
    assert dialer.in_order(["192.0.2.99", *hosts])[:5] == ["192.0.2.99", *hosts[:4]]


async def test_one_that_refuses_for_good_is_not_tried_any_more(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": refused("192.0.2.2")})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    place, _ = await connect(net, servers)
    problem = RefusedError(RefusalCode.AUTH_FAILED, "wrong user name or password")
    assert servers.ended(place, problem, final=True)
    with pytest.raises(ConnectionLostError, match=r"^cannot reach 192.0.2.2:8007"):
        await servers.connect()
    assert [host for _, host in net.dialled] == ["192.0.2.1", "192.0.2.2"]
    assert not servers.ended(Place(servers.dialers[1], "192.0.2.2"), problem, final=True)


@pytest.mark.parametrize(
    "problem", [RefusedError(RefusalCode.KICKED, "no"), over(CloseCode.EVICTED)], ids=str
)
async def test_who_is_sent_away_goes_to_no_other_server(
    autojump_clock: MockClock, problem: PeerError
) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    place, _ = await connect(net, servers)
    assert not servers.ended(place, problem, final=True)


# --- a server that stops ---


async def test_one_that_stops_is_not_asked(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host(), "192.0.2.3": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    servers.make = lambda address: net.dialer(address.host)
    place, _ = await connect(net, servers)
    assert servers.stops(place, [TCPAddress("192.0.2.3", 8007), TCPAddress("192.0.2.2", 8007)])
    named, _ = await connect_besides(servers, place)
    assert named.host == "192.0.2.3"  # which nobody knew, and which comes first
    net.hosts["192.0.2.3"] = refused("192.0.2.3")
    own, _ = await connect_besides(servers, place)
    assert own.host == "192.0.2.2"
    net.hosts["192.0.2.2"] = refused("192.0.2.2")
    with pytest.raises(
        ConnectionLostError, match=r"192\.0\.2\.2.*192\.0\.2\.3|192\.0\.2\.3.*192\.0\.2\.2"
    ):
        await connect_besides(servers, place)
    again, _ = await connect(net, servers)
    assert again.host == "192.0.2.1"


async def connect_besides(servers: Servers, place: Place) -> tuple[Place, TLSEndpoint]:
    found, endpoint = await servers.connect(place)
    endpoint.close()
    return found, endpoint


async def test_where_there_is_no_other_nobody_is_asked(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host()}, names={"a.example": ["192.0.2.1"]})
    for name in ("192.0.2.1", "a.example"):
        servers = net.servers(name)
        place, _ = await connect(net, servers)
        assert not servers.stops(place, [])
        with pytest.raises(ConnectionLostError, match="there is no other server"):
            await servers.connect(place)
    assert len(net.dialled) == 2


async def test_the_other_one_may_have_the_same_name(autojump_clock: MockClock) -> None:
    net = Net(
        hosts={"192.0.2.1": Host(), "192.0.2.2": Host()},
        names={"a.example": ["192.0.2.1", "192.0.2.2"]},
    )
    servers = net.servers("a.example")
    place, _ = await connect(net, servers)
    assert servers.stops(place, [])
    other, _ = await connect_besides(servers, place)
    assert (place.host, other.host) == ("192.0.2.1", "192.0.2.2")


async def test_others_may_be_behind_the_same_address(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host()})
    servers = net.servers("192.0.2.1")
    servers.make = lambda address: net.dialer(address.host)
    place, _ = await connect(net, servers)
    assert not servers.stops(place, [])
    named = [place.dialer.server.control]
    assert servers.stops(place, named)
    again, _ = await connect_besides(servers, place)
    assert again == place
    # It is the same one, which refuses and names others.
    refusal = RefusedError(RefusalCode.DRAINING, "go away", servers=[TCPAddress("192.0.2.2", 8007)])
    assert not servers.ended(again, refusal, final=False)
    net.hosts["192.0.2.2"] = Host()
    other, _ = await connect_besides(servers, place)
    assert other.host == "192.0.2.2"


async def test_of_servers_that_were_named_only_the_last_ones_are_remembered(
    autojump_clock: MockClock,
) -> None:
    net = Net(hosts={"192.0.2.1": Host()})
    servers = net.servers("192.0.2.1")
    servers.make = lambda address: net.dialer(address.host)
    place, _ = await connect(net, servers)
    for number in [*range(20), 19]:
        servers.stops(place, [TCPAddress(f"198.51.100.{number}", 8007)] * 2)
    assert [dialer.server.control.host for dialer in servers._order] == [
        "198.51.100.19",
        "192.0.2.1",
    ]


# --- what is told ---


async def test_of_several_servers_each_has_its_reason(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": refused("192.0.2.1"), "192.0.2.2": DEAD})
    with pytest.raises(ConnectionLostError) as caught:
        await net.servers("192.0.2.1", "192.0.2.2").connect()
    assert str(caught.value) == (
        "no server can be used: cannot reach 192.0.2.1:8007: Connection refused;"
        " 192.0.2.2:8007 did not answer within 10 s"
    )


async def test_a_wrong_server_is_final_only_where_there_is_no_other(
    autojump_clock: MockClock,
) -> None:
    wrong = Host(error=IdentityError("WRONG SERVER"))
    net = Net(hosts={"192.0.2.1": wrong, "192.0.2.2": refused("192.0.2.2")})
    with pytest.raises(ConnectionLostError, match="WRONG SERVER"):
        await net.servers("192.0.2.1", "192.0.2.2").connect()
    net.hosts["192.0.2.2"] = wrong
    with pytest.raises(IdentityError):
        await net.servers("192.0.2.1", "192.0.2.2").connect()


async def test_a_wrong_server_beside_a_right_one_is_told_once(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = Host(error=IdentityError("WRONG SERVER"))
    net = Net(hosts={"192.0.2.1": wrong, "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    for _ in range(2):
        place, _ = await connect(net, servers)
        assert place.host == "192.0.2.2"
        servers._order.reverse()
        servers._home = None
    assert caplog.text.count("a server cannot be used") == 1


# --- what must not leak ---


async def test_a_bug_or_a_missing_file_comes_out_and_leaves_no_connection(
    autojump_clock: MockClock,
) -> None:
    broken = Host(answers=0.3, error=StartupError("known_servers: Permission denied"))
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    _, endpoint = await servers.connect()
    endpoint.close()
    net.hosts["192.0.2.1"] = Host(answers=0.5, error=broken.error)
    with pytest.RaisesGroup(StartupError):
        await servers.connect()
    assert len(net.ends) == 2
    assert net.left_open == 0


async def test_cancelled_it_leaves_no_connection(autojump_clock: MockClock) -> None:
    net = Net(hosts={"192.0.2.1": Host(), "192.0.2.2": Host()})
    servers = net.servers("192.0.2.1", "192.0.2.2")
    _, endpoint = await servers.connect()
    endpoint.close()
    net.hosts["192.0.2.1"] = DEAD
    with trio.move_on_after(1) as scope:
        await servers.connect()
    assert scope.cancelled_caught
    assert len(net.ends) == 2
    assert net.left_open == 0


async def test_a_start_is_in_any_order() -> None:
    net = Net()
    names = [f"192.0.2.{number}" for number in range(1, 5)]
    firsts = {Servers(tuple(map(net.dialer, names)))._order[0].server for _ in range(200)}
    assert len(firsts) == 4  # one is missing once in 10^24 runs


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        (Host(), True),
        (DEAD, True),
        (Host(error=ConnectionLostError("cannot reach it")), True),
        (FROZEN, False),
    ],
    ids=["answers", "network away", "nobody listens", "hangs"],
)
async def test_a_route_is_kept_until_what_it_leads_to_does_not_answer(
    autojump_clock: MockClock, there: Host, *, kept: bool
) -> None:
    """Behind one address there may be several nodes: where there is nobody at all, that says nothing about the node."""
    net = Net(hosts={"localhost": there})
    servers = net.servers("localhost")
    [dialer] = servers.dialers
    dialer.route = "n1"
    with suppress(PeerError):
        await servers.connect()
    assert dialer.route == ("n1" if kept else None)


@pytest.mark.parametrize(
    ("problem", "kept"),
    [
        (ConnectionLostError("reset"), True),
        (SessionOverError(CloseCode.TIMEOUT, "not heard"), True),
        (SessionOverError(CloseCode.STOPPED, "it stops"), False),
        (RefusedError(RefusalCode.STORE_UNAVAILABLE, "not now"), False),
    ],
    ids=["lost", "not heard", "stops", "refused"],
)
def test_a_route_is_kept_until_what_it_leads_to_sends_us_away(
    problem: PeerError, *, kept: bool
) -> None:
    servers = Net().servers("localhost")
    [dialer] = servers.dialers
    dialer.route = "n1"
    servers.ended(Place(dialer, "localhost"), problem, final=False)
    assert dialer.route == ("n1" if kept else None)
