from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError, StartupError
from trionat.protocol.messages import ServiceRequest
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.send_buffer import SendBuffer
from trionat.server.admission.bans import Bans
from trionat.server.admission.leases import Leases
from trionat.server.listeners import CONTROL, VISIT, GivenListeners, open_listeners
from trionat.server.registry.claim import Wish
from trionat.server.registry.values import write_wish
from trionat.server.upgrade.estate import join_estates, read_estate, split_estate, write_estate
from trionat.server.upgrade.predecessor import Predecessor
from trionat.server.upgrade.upgrade import (
    VARIABLE,
    Upgrade,
    UpgradeError,
    this_command,
    this_environment,
)
from trionat.server.upgrade.wire import Parcel, Wire
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.visitors.visitor import Visitor
from trionat.server.workers.process import not_below
from trionat.server.workers.succession import Dealing
from trionat.store.base import Limits
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.server.admission.lease import Lease

PORTS = (60001, 60002, 60003)
KEY = ("alice", "laptop")
ADDRESS, VISITED = TCPAddress("203.0.113.7", 4711), TCPAddress("192.0.2.1", 60002)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors go over Unix sockets")


# --- the wire ---


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    one, other = socket.socketpair()
    with one, other:
        yield Wire(one), Wire(other)


def test_a_message_with_many_descriptors_and_much_data(wires: tuple[Wire, Wire]) -> None:
    one, other = wires
    data = [os.urandom(300_000), b"", os.urandom(1)]
    read, write = os.pipe()
    sending = threading.Thread(
        target=one.send,
        args=("estate", {"word": "no", "what": [1]}),
        kwargs={"data": data, "descriptors": [write] * 600, "within": 10},
    )
    sending.start()
    parcel = other.receive(within=10)
    sending.join()
    one.send("next", {}, within=1)
    assert (parcel.word, parcel.values, parcel.data) == ("estate", {"what": [1]}, b"".join(data))
    assert len(set(parcel.descriptors)) == 600
    os.close(write)
    for number, descriptor in enumerate(parcel.descriptors):
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, bytes([number % 256]))
    parcel.close()
    assert os.read(read, 1000) == bytes(number % 256 for number in range(600))
    assert os.read(read, 1) == b"", "no other copy is left"
    os.close(read)
    assert other.receive(within=1).word == "next"


def test_who_has_heard_all_may_be_gone_before_nothing_more_is_sent(
    wires: tuple[Wire, Wire],
) -> None:
    """A server without visitors has nothing to send behind its values, and the new process may have taken over by then."""
    one, other = wires

    def hear_and_go() -> None:
        assert other.receive(within=5).data == b""
        other.close()

    listening = threading.Thread(target=hear_and_go)
    listening.start()
    one.send("estate", {}, data=[b""] * 200_000, within=5)
    listening.join()


def test_a_peer_that_is_silent_or_gone_or_somebody_else(wires: tuple[Wire, Wire]) -> None:
    one, other = wires
    with pytest.raises(PeerTimeoutError):
        other.receive(within=0.01)
    with pytest.raises(PeerTimeoutError):
        one.send("much", {}, data=[bytes(10_000_000)], within=0.05)
    one.close()
    with pytest.raises(ConnectionLostError):
        other.receive(within=1)
    with pytest.raises(ConnectionLostError):
        other.send("hello", {}, within=1)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: me\r\n\r\n", bytes([0, 0, 0, 2, *bytes(12)]) + b"{["]
)
def test_nonsense(said: bytes, wires: tuple[Wire, Wire]) -> None:
    one, other = wires
    one.sock.sendall(said)
    with pytest.raises(RemoteProtocolError):
        other.receive(within=1)


# --- what is left ---


def site(**config: object) -> tuple[Leases, VisitorAcceptor]:
    settings = ServerConfig(visit_port=PORTS, **config)  # type: ignore[arg-type]
    leases = Leases(settings, PortPool([VisitPort(port) for port in PORTS]))
    return leases, VisitorAcceptor(settings)


async def lease_of(leases: Leases, port: int = 60002, *, vacant: float = 0.0) -> Lease:
    services = (ServiceRequest(name="web", local="127.0.0.1:80", visit_port=port),)
    wish = Wish(key=KEY, services=services, limits=Limits(sessions=1, visit_ports=PORTS))
    lease = await leases.restore(wish, (port,), "the-token", vacant)
    assert lease is not None
    return lease


def visitor(number: int, sock: socket.socket) -> Visitor:
    new = Visitor(
        number=number,
        endpoint=SocketEndpoint(sock),
        address=ADDRESS,
        service=0,
        visited=VISITED,
    )
    new.present = False  # `put_back` counts it
    return new


async def hand_over(leases: Leases, others: Leases, acceptor: VisitorAcceptor) -> tuple[int, int]:
    """As two processes do it, with copies of the descriptors."""
    estate = write_estate(
        leases,
        lambda each: each.endpoint.fileno() if each.endpoint.fileno() >= 0 else None,
    )
    parcel = Parcel(
        word="estate",
        values=estate.values,
        data=b"".join(estate.data),
        descriptors=tuple(map(os.dup, estate.descriptors)),
    )
    assert (estate.leases, estate.visitors) == (len(list(leases)), len(parcel.descriptors))
    found = await read_estate(parcel, others, acceptor)
    leases.let_go()
    return found


async def test_a_service_that_came_within_its_session_is_known_by_its_place() -> None:
    leases, _ = site()
    others, acceptor = site()
    lease = await lease_of(leases)
    lease.points[0].service = 4
    theirs, ours = socket.socketpair()
    with theirs:
        one = visitor(7, ours)
        one.service = 4
        lease.queue.put_back(one)
        await hand_over(leases, others, acceptor)
        [restored] = others
        assert [each.service for each in restored.queue.waiting_visitors] == [0]
        restored.queue.let_go()


async def test_streams_go_on_with_all_positions_and_bytes() -> None:
    leases, _ = site()
    others, acceptor = site()
    lease = await lease_of(leases, vacant=3.0)
    theirs, ours = socket.socketpair()
    coming, new = socket.socketpair()
    with theirs, coming:
        one = visitor(7, ours)
        stream = one.stream = one.new_stream(SendBuffer(100_000, lease.send_memory))
        stream.taken, stream.given, stream.attempt = 50_000, 300, 2
        stream.send_buffer.start = 10_000  # type: ignore[union-attr]
        held = os.urandom(40_000)
        stream.send_buffer.keep(memoryview(held))  # type: ignore[union-attr]
        stream.acknowledged, stream.told, stream.confirmed = 10_000, 200, 100
        one.tries, one.session, one.arrived = 3, 12, trio.current_time() - 60
        theirs.sendall(b"not read yet")
        coming.sendall(b"hello")
        for each in (visitor(8, new), one):
            lease.queue.put_back(each)

        assert await hand_over(leases, others, acceptor) == (1, 2)

        [restored] = others
        assert (restored.key, restored.point_ids, restored.token) == (KEY, (60002,), "the-token")
        assert restored.services == lease.services
        assert restored.is_reserved
        left = others.expires_at(restored) - trio.current_time()
        assert left == pytest.approx(others.config.port_reservation - 3, abs=1)
        assert others.ports.ports[60002].queue is restored.queue
        assert not others.ports.is_free(60002)
        first, second = restored.queue.waiting_visitors
        assert (first.number, second.number) == (7, 8)
        assert (first.address, first.visited, first.tries, first.session) == (
            ADDRESS,
            VISITED,
            3,
            12,
        )
        assert trio.current_time() - first.arrived == pytest.approx(60, abs=1)
        again = first.stream
        assert again is not None
        assert attrs.asdict(again, filter=lambda field, _: field.name in POSITIONS) == attrs.asdict(
            stream, filter=lambda field, _: field.name in POSITIONS
        )
        buffer = again.send_buffer
        assert buffer is not None
        assert (buffer.size, buffer.start, buffer.held) == (100_000, 10_000, 40_000)
        assert b"".join(buffer.piece(at, 5_000) for at in range(10_000, 50_000, 4_000)).startswith(
            held[:4000]
        )
        again.acknowledge(50_000)
        assert restored.send_memory.held == 0
        assert second.stream is None
        room = memoryview(bytearray(64 * 1024))
        assert bytes(room[: first.endpoint.recv_into(room)]) == b"not read yet"
        second.endpoint.send(b"welcome")
        assert coming.recv(100) == b"welcome"
        assert (restored.queue.present, restored.queue.user_limits.visitors) == (2, 2)
        assert not list(leases)
        others.release(restored, "done")


POSITIONS = {
    "visitor", "taken", "given", "took_end", "gave_end", "attempt", "acknowledged", "told", "confirmed", "over", "finished",
}  # fmt: skip


async def test_last_words_go_over_without_a_connection() -> None:
    leases, _ = site()
    others, acceptor = site()
    lease = await lease_of(leases)
    one, other = socket.socketpair()
    with other:
        gone = visitor(3, one)
        stream = gone.stream = gone.new_stream(SendBuffer(1000, lease.send_memory))
        stream.fail(AbortReason.RESET, "the visitor reset its connection")
        gone.endpoint.close()
        gone.leave()
        lease.queue.put_back(gone)
        assert await hand_over(leases, others, acceptor) == (1, 0)
    [restored] = others
    [told] = restored.queue.all_waiting
    assert told.has_left
    assert told.stream is not None
    assert told.stream.failure == stream.failure
    assert told.endpoint.fileno() == -1
    others.release(restored, "done")


async def test_a_stream_without_memory_cannot_go_on() -> None:
    leases, _ = site(resume_memory=100)
    others, acceptor = site()
    lease = await lease_of(leases)
    one, other = socket.socketpair()
    with other:
        big = visitor(3, one)
        stream = big.stream = big.new_stream(SendBuffer(1000, lease.send_memory))
        stream.taken = 200
        stream.send_buffer.keep(memoryview(bytes(200)))  # type: ignore[union-attr]
        assert not stream.can_resume
        lease.queue.put_back(big)
        await hand_over(leases, others, acceptor)
    [restored] = others
    [visitor_there] = restored.queue.waiting_visitors
    assert visitor_there.stream is not None
    assert not visitor_there.stream.can_resume
    others.release(restored, "done")


async def test_an_estate_of_several_processes_is_one_and_is_dealt_again() -> None:
    """Whoever gets a lease gets its visitors, with their connections and bytes, and nobody else's."""
    parcels: dict[str, Parcel] = {}
    ends: list[socket.socket] = []
    for word, port in (("w1", 60001), ("w2", 60002), ("w3", 60003)):
        leases, _ = site()
        lease = await lease_of(leases, port)
        for number in (port, port + 100):
            theirs, ours = socket.socketpair()
            ends.append(theirs)
            one = visitor(number, ours)
            one.stream = one.new_stream(SendBuffer(1000, lease.send_memory))
            assert one.stream.send_buffer is not None
            one.stream.send_buffer.keep(memoryview(f"said by {number}".encode()))
            lease.queue.put_back(one)
        estate = write_estate(leases, lambda each: each.endpoint.fileno())
        parcels[word] = Parcel(
            word="estate",
            values=estate.values,
            data=b"".join(estate.data),
            descriptors=tuple(map(os.dup, estate.descriptors)),
        )
        leases.let_go()
    joined = join_estates(parcels)
    assert (joined.leases, joined.visitors) == (3, 6)
    whole = Parcel(
        word="estate",
        values=joined.values,
        data=b"".join(joined.data),
        descriptors=tuple(joined.descriptors),
    )
    parts = split_estate(whole, Dealing(["w1", "w2"]).word_for)
    ports = {
        word: [values["points"] for values in part.values["leases"]] for word, part in parts.items()
    }
    assert ports == {"w1": [[60001], [60003]], "w2": [[60002]]} or ports == {
        "w1": [(60001,), (60003,)],
        "w2": [(60002,)],
    }
    for part in parts.values():
        others, acceptor = site()
        parcel = Parcel(
            word="estate",
            values=part.values,
            data=b"".join(part.data),
            descriptors=tuple(part.descriptors),
        )
        await read_estate(parcel, others, acceptor)
        for lease in others:
            for each in lease.queue.all_waiting:
                assert each.stream is not None
                assert each.stream.send_buffer is not None
                held = each.stream.send_buffer.piece(0, 100)
                assert bytes(held) == f"said by {each.number}".encode()
                assert each.number in {lease.port_numbers[0], lease.port_numbers[0] + 100}
        others.let_go()
    for end in ends:
        assert end.recv(1) == b"", "each was somebody's, and only once"
        end.close()


async def test_clients_of_a_group_go_to_one_worker() -> None:
    def written(user: str, client: str, group: str | None, worker: str) -> dict[str, Any]:
        services = (ServiceRequest(name="web", local="127.0.0.1:80"),)
        wish = Wish(key=(user, client), services=services, limits=Limits(), group=group)
        return {"wish": write_wish(wish), "worker": worker}

    dealing = Dealing(["w1", "w2"])
    assert dealing.word_for(written("alice", "one", "web", "w9")) == "w1"
    assert dealing.word_for(written("alice", "two", None, "w9")) == "w2"
    assert dealing.word_for(written("alice", "three", "web", "w2")) == "w1", "where its group is"
    assert dealing.word_for(written("bob", "four", "web", "w9")) == "w2", "another one's group"
    assert dealing.word_for(written("bob", "five", None, "w1")) == "w1", "as its route says"


@pytest.mark.parametrize(
    ("least", "number", "step", "first"),
    [(1, 1, 3, 1), (2, 1, 3, 4), (4, 1, 3, 4), (5, 1, 3, 7), (5, 100, 3, 100), (1, 2, 2, 2)],
)
def test_numbers_that_another_server_has_had_are_nobodys(
    least: int, number: int, step: int, first: int
) -> None:
    assert not_below(least, number, step) == first


async def test_a_port_that_is_not_there_any_more(caplog: pytest.LogCaptureFixture) -> None:
    leases, _ = site()
    lease = await lease_of(leases)
    one, other = socket.socketpair()
    with other:
        lease.queue.put_back(visitor(3, one))
        settings = ServerConfig(visit_port=(60001,))
        others = Leases(settings, PortPool([VisitPort(60001)]))
        assert await hand_over(leases, others, VisitorAcceptor(settings)) == (0, 0)
        assert other.recv(1) == b"", "nobody has its connection"
    assert not list(others)
    assert others.free_slots == settings.session_limit


async def test_to_let_go_resets_nobody() -> None:
    leases, _ = site()
    lease = await lease_of(leases)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    with theirs, socket.socket(fileno=os.dup(ours.fileno())) as copy:
        one = visitor(1, ours)
        one.stream = one.new_stream(SendBuffer(1000, lease.send_memory))
        lease.queue.put_back(one)
        leases.let_go()
        assert one.endpoint.fileno() == -1
        copy.setblocking(True)
        theirs.sendall(b"still")
        assert copy.recv(10) == b"still"
        copy.close()
        assert theirs.recv(10) == b"", "an end, and no reset"
    assert leases.free_slots == leases.config.session_limit


# --- what else goes along ---


async def test_bans_and_failures_go_along() -> None:
    one, other = Bans(3, 60.0), Bans(3, 60.0)
    for _ in range(3):
        one.fail("192.0.2.1")
    one.fail("192.0.2.2")
    with one.in_use("192.0.2.9"):
        other.read(one.write())
    assert other.banned_for("192.0.2.1") == pytest.approx(60, abs=1)
    assert other.banned_for("192.0.2.2") <= 0
    other.fail("192.0.2.2")
    other.fail("192.0.2.2")
    assert other.banned_for("192.0.2.2") > 0, "the first failure counts"
    assert other.is_in_use("192.0.2.9")
    assert not other.is_in_use("192.0.2.1")


async def test_listening_sockets_are_taken_by_their_addresses() -> None:
    from contextlib import AsyncExitStack  # noqa: PLC0415 - only here

    config = ServerConfig(
        controller_addr=TCPAddress("127.0.0.1", 0),
        tunnel_addr=TCPAddress("127.0.0.1", 0),
        visit_port=(0, 0),
    )
    async with AsyncExitStack() as resources:
        before = await open_listeners(config, resources)
        given = GivenListeners()
        for role, listener in before.by_role():
            copy = socket.socket(fileno=os.dup(listener.sock.fileno()))
            given.add(role, listener.address, copy)
        fewer = attrs.evolve(
            config,
            controller_addr=before.control.address,
            visit_port=(before.visits[1].address.port,),
        )
        async with AsyncExitStack() as others:
            after = await open_listeners(fewer, others, given)
            assert after.control.address == before.control.address
            assert after.tunnel.address == before.tunnel.address, "any port is the one that it had"
            assert [each.address for each in after.visits] == [before.visits[1].address]
            left = given.take(VISIT, before.visits[0].address)
            assert left is not None
            left.close()
            assert given.take(CONTROL, TCPAddress("127.0.0.1", 0)) is None
            given.close()


async def test_who_has_no_upgrade_says_why(caplog: pytest.LogCaptureFixture) -> None:
    upgrade = Upgrade(["trionat"], {}, why_not="there is no reason")
    upgrade.ask()
    with pytest.raises(UpgradeError, match="there is no reason"):
        await upgrade.perform()


async def test_none_while_a_shell_waits_at_a_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waits = True
    upgrade = Upgrade([str(tmp_path / "nothing")], {}, is_at_terminal=lambda: waits)
    upgrade.ask()
    assert "no upgrade reason='this server runs in the foreground of a terminal" in caplog.text
    with pytest.raises(UpgradeError, match="stop the server and start it anew"):
        await upgrade.perform()
    assert not upgrade.is_under_way
    waits = False  # Ctrl-Z, bg
    upgrade.ask()
    assert upgrade.is_under_way


async def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    upgrade = Upgrade([str(tmp_path / "nothing")], {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade.wait_successor, tmp_path, list, None)
        with pytest.raises(UpgradeError, match="cannot be started: No such file") as raised:
            await upgrade.perform()
        assert str(raised.value).startswith(
            f"the new process does not serve, and the server goes on as it was (process {os.getpid()}): "
        )
        nursery.cancel_scope.cancel()


def test_what_the_new_process_is_started_with() -> None:
    assert this_command(["python", "-m", "trionat", "serve"], "/venv/bin/python") == [
        "/venv/bin/python", "-m", "trionat", "serve",
    ]  # fmt: skip
    environ = {"A": "b", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "5", VARIABLE: "7"}
    assert this_environment(environ) == {"A": "b", "WATCHDOG_USEC": "5"}


def test_a_variable_of_somebody_else() -> None:
    for value in ("", "no", "98765"):
        environ = {VARIABLE: value}
        assert Predecessor.find(environ) is None
        assert not environ, "no child has it"


def test_another_state_folder(tmp_path: Path, wires: tuple[Wire, Wire]) -> None:
    one, other = wires
    other.send("welcome", {"folder": str(tmp_path / "other"), "sockets": []}, within=1)
    with pytest.raises(StartupError, match=r"was .*other so far"):
        Predecessor(one).meet(tmp_path)
