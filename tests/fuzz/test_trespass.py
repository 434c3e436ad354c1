"""A session can touch nothing of another: each trespass costs the trespasser, and the others notice nothing.

Everyone here is logged in as somebody else; what strangers do is in `test_server_sessions.py`. A trespass says what it should cost
whoever commits it: that one connection, or, on its own control connection, its session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import pytest
import trio
import trio.testing

from tests.fuzz.law import events
from tests.unit.memory import MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import (
    HOST,
    MemoryClient,
    MemoryServer,
    MemoryStore,
    forwarder,
    open_memory_server,
    token_of,
)
from trionat.address import TCPAddress, UnixAddress
from trionat.client.forwarder import Forwarder
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.config.service import Service
from trionat.config.values import UNENCRYPTED
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import (
    CAPABILITIES,
    PLAIN_TUNNELS,
    Attach,
    Close,
    CloseCode,
    Demand,
    Hello,
    Join,
    Refused,
    Welcome,
    encode_message,
)
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    Open,
    TunnelFrame,
    TunnelReader,
)
from trionat.server.control.native_login import PlainTunnelLogin
from trionat.transport.channel import Channel
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.transport.endpoint import Endpoint

AT_ONCE = 2.5
"""Seconds in which a connection is closed: the second for the last words, and less than any timeout has."""

Cost = Literal["nothing", "the connection", "the session"]

DATA = encode_frame(DATA_ID, b"for somebody else")


def frame_for(visitor: int, service: int = 0) -> bytes:
    return Open(
        visitor=visitor, service=service, host="v", port=1, visit_host="s", visit_port=2
    ).encode()


@attrs.define(eq=False)
class Scene:
    """A victim with a visitor that is being served, and a rogue that is logged in as well."""

    server: MemoryServer
    victim: MemoryClient
    victims_visitor: MemoryEndpoint
    rogue: MemoryClient
    rogues_visitor: MemoryEndpoint
    number: int
    """That of the victim's visitor. Numbers are no secret: they count."""
    wires: list[MemoryEndpoint] = attrs.field(factory=list)

    async def tunnel(self) -> MemoryEndpoint:
        """A tunnel of the rogue's own."""
        wire = await self.rogue.attach()
        self.wires.append(wire)
        await trio.testing.wait_all_tasks_blocked()
        return wire

    async def idle_tunnel(self) -> MemoryEndpoint:
        """One beside the one that has a visitor."""
        await self.tunnel()
        return await self.tunnel()

    async def busy_tunnel(self) -> tuple[MemoryEndpoint, int]:
        """One that has a visitor of the rogue's."""
        wire = await self.tunnel()
        [opened, *_] = events(TunnelReader(), await receive_some(wire))
        assert isinstance(opened, Open)
        return wire, opened.visitor

    async def attach(self, uid: int, secret: bytes, *more: bytes) -> None:
        """Bring a tunnel for whoever has this uid; the server has to refuse it."""
        wire = self.server.connect()
        self.wires.append(wire)
        wire.send(encode_message(Attach(uid, secret)) + b"".join(more))
        answer = await Channel(wire).receive()
        assert isinstance(answer, Refused)

    async def check(self) -> None:
        """The victim goes on as if nothing had been."""
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            await send_all(self.victims_visitor, b"still %d" % number)
            assert await receive_exactly(self.victims_visitor, 7) == b"still %d" % number
        assert self.victim.ended_at is None
        assert [
            message for message in self.victim.pending() if not isinstance(message, Demand)
        ] == []
        newcomer = self.server.visit(self.victim.port, early=b"hello")
        assert await receive_exactly(newcomer, 5) == b"hello"

    async def check_cost(self, cost: Cost) -> None:
        """Of the rogue there is left what should be left."""
        await trio.sleep(AT_ONCE)
        ended = self.rogue.ended_at is not None
        assert ended == (cost == "the session")
        if cost != "nothing":
            for wire in self.wires[-1:]:
                assert wire.peer.closed


TRESPASSES: dict[str, Callable[[Scene], Awaitable[Cost]]] = {}


def trespass(act: Callable[[Scene], Awaitable[Cost]]) -> Callable[[Scene], Awaitable[Cost]]:
    TRESPASSES[act.__name__.replace("_", " ")] = act
    return act


# -- tunnels that belong to somebody else


@trespass
async def tunnel_with_a_uid_of_someone_else(scene: Scene) -> Cost:
    await scene.attach(scene.victim.welcome.uid, scene.rogue.welcome.secret)
    return "nothing"


@trespass
async def tunnel_with_a_secret_of_someone_else(scene: Scene) -> Cost:
    await scene.attach(scene.rogue.welcome.uid, scene.victim.welcome.secret)
    return "nothing"


@trespass
async def tunnel_with_a_guess(scene: Scene) -> Cost:
    secret = scene.victim.welcome.secret
    for guess in (bytes(32), secret[:-1] + bytes([secret[-1] ^ 1]), secret[::-1]):
        await scene.attach(scene.victim.welcome.uid, guess)
    return "nothing"


@trespass
async def tunnel_with_words_that_cannot_wait(scene: Scene) -> Cost:
    wire = scene.server.connect()
    scene.wires.append(wire)
    wire.send(encode_message(Attach(scene.rogue.welcome.uid, scene.rogue.welcome.secret)) + DATA)
    return "the connection"


@trespass
async def tunnel_for_two_sessions(scene: Scene) -> Cost:
    wire = await scene.idle_tunnel()
    wire.send(encode_message(Attach(scene.victim.welcome.uid, scene.victim.welcome.secret)))
    return "the connection"


# -- visitors that belong to somebody else


@trespass
async def abort_of_a_visitor_of_someone_else(scene: Scene) -> Cost:
    wire, _ = await scene.busy_tunnel()
    wire.send(Abort(scene.number, AbortReason.RESET).encode())
    return "the connection"


@trespass
async def data_without_a_visitor(scene: Scene) -> Cost:
    wire, visitor = await scene.busy_tunnel()
    assert visitor != scene.number
    wire.send(END_FRAME)
    scene.rogues_visitor.send_eof()
    await trio.testing.wait_all_tasks_blocked()  # idle again
    wire.send(DATA)
    return "the connection"


@trespass
async def data_after_the_end(scene: Scene) -> Cost:
    wire, _ = await scene.busy_tunnel()
    wire.send(END_FRAME + DATA)
    return "the connection"


@trespass
async def the_end_twice(scene: Scene) -> Cost:
    wire, _ = await scene.busy_tunnel()
    wire.send(END_FRAME * 2)
    return "the connection"


# -- words that are not a client's


@trespass
async def open_from_a_client(scene: Scene) -> Cost:
    wire = await scene.idle_tunnel()
    wire.send(frame_for(scene.number))
    return "the connection"


@trespass
async def probe_from_a_client(scene: Scene) -> Cost:
    wire = await scene.idle_tunnel()
    wire.send(PROBE_FRAME)
    return "the connection"


@trespass
async def control_messages_on_a_tunnel(scene: Scene) -> Cost:
    wire = await scene.idle_tunnel()
    wire.send(encode_message(Close(code=CloseCode.STOPPED, text="all of you")))
    return "the connection"


@trespass
async def tunnel_frames_on_a_control_connection(scene: Scene) -> Cost:
    scene.rogue.endpoint.send(END_FRAME)
    return "the session"


@trespass
async def a_welcome_for_the_server(scene: Scene) -> Cost:
    welcome: Welcome = attrs.evolve(scene.victim.welcome, ports=(scene.victim.port,))
    await scene.rogue.say(welcome)
    return "the session"


@trespass
async def someone_elses_attach_on_a_control_connection(scene: Scene) -> Cost:
    await scene.rogue.say(Attach(scene.victim.welcome.uid, scene.victim.welcome.secret))
    return "the session"


@trespass
async def another_hello_in_a_session(scene: Scene) -> Cost:
    await scene.rogue.say(Hello(username="victim", identity="victim", token=token_of("victim")))
    return "the session"


# -- a name that belongs to somebody else


@trespass
async def the_identity_of_another_user(scene: Scene) -> Cost:
    twin = scene.server.client("victim", username="rogue", token=token_of("rogue"))
    await twin.ask()
    assert (await twin.hear(Welcome)).ports[0] not in {scene.victim.port, scene.rogue.port}
    return "nothing"


@trespass
async def the_name_of_another_user_with_the_own_ticket(scene: Scene) -> Cost:
    liar = scene.server.client("victim", username="victim", token=token_of("rogue"))
    await liar.ask()
    assert (await liar.hear(Refused)).code == "auth-failed"
    await liar.hear_end()
    return "nothing"


@trespass
async def the_port_of_another_user(scene: Scene) -> Cost:
    thief = scene.server.client("thief", username="rogue", token=token_of("rogue"))
    await thief.ask(scene.victim.port)
    assert (await thief.hear(Refused)).code == "port-taken"
    return "nothing"


@pytest.mark.parametrize("name", TRESPASSES)
async def test_trespass(tidy: Tidy, autojump_clock: MockClock, name: str) -> None:
    async with open_memory_server(tidy, ports=4, store=MemoryStore("victim", "rogue")) as server:
        victim = await welcome(server, "victim")
        victim.pool(forwarder(tidy, server.nursery))
        number = 1 + next(server._numbers)
        visitor = server.visit(victim.port, early=b"first")
        assert await receive_exactly(visitor, 5) == b"first"
        rogue = await welcome(server, "rogue")
        rogues_visitor = server.visit(rogue.port, early=b"x")
        scene = Scene(server, victim, visitor, rogue, rogues_visitor, number)
        with trio.fail_after(60):
            cost = await TRESPASSES[name](scene)
            await scene.check_cost(cost)
            await scene.check()


async def welcome(server: MemoryServer, name: str) -> MemoryClient:
    client = server.client(name, username=name, token=token_of(name))
    await client.ask()
    client.welcome = await client.hear(Welcome)
    return client


def connect_without_tls(server: MemoryServer) -> MemoryEndpoint:
    """Return the far end of a new connection that begins with JOIN."""
    far, near = server.tidy.pair()
    server.outside.append(far)
    login = PlainTunnelLogin(server.context, near, TCPAddress(HOST, 1), lambda: None)
    server.nursery.start_soon(server._serve, login)
    return far


async def test_proofs_of_a_tunnel_without_tls_open_nothing_else(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """They can be seen on the wire. So each is good once, for its own session, and for its own number."""
    async with open_memory_server(tidy, tunnel_encryption=UNENCRYPTED) as server:
        plain = (*CAPABILITIES, PLAIN_TUNNELS)
        victim, rogue = server.client("victim", capabilities=plain), server.client("rogue")
        for client in (victim, rogue):
            await client.ask()
            client.welcome = await client.hear(Welcome)
        uid, secret = victim.welcome.uid, victim.welcome.secret
        seen = Join.prove(uid, 1, secret)
        tunnel = connect_without_tls(server)
        tunnel.send(encode_message(seen))
        await trio.testing.wait_all_tasks_blocked()
        assert not tunnel.peer.closed
        for forged in (
            seen,
            attrs.evolve(seen, number=2),
            attrs.evolve(seen, uid=rogue.welcome.uid),
            Join.prove(uid, 2, rogue.welcome.secret),
            Join.prove(rogue.welcome.uid, 1, rogue.welcome.secret),  # it has tunnels with TLS
        ):
            wire = connect_without_tls(server)
            wire.send(encode_message(forged))
            assert isinstance(await Channel(wire).receive(), Refused)
        server.visit(victim.port, early=b"for the victim")
        assert isinstance((await receive_frames(tunnel))[0], Open)


async def test_an_evicted_session_takes_its_tunnels_with_it(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Its secret opens nothing any more, and a tunnel that it had is not given the successor's visitors."""
    async with open_memory_server(tidy) as server:
        before = await server.welcome("the same")
        tunnel = await before.attach()
        await trio.testing.wait_all_tasks_blocked()
        after = await server.welcome("the same")
        assert after.port == before.port
        assert await receive_all(tunnel) == b""
        visitor = server.visit(after.port, early=b"for the successor")
        await trio.testing.wait_all_tasks_blocked()
        assert await after.hear(Demand) == Demand(1)
        late = await before.attach()
        assert isinstance(await Channel(late).receive(), Refused)
        after.pool(forwarder(tidy, server.nursery))
        assert await receive_exactly(visitor, 17) == b"for the successor"


# -- what a server can do to a client: one of two tunnels, each with a visitor, is misused


@pytest.mark.parametrize(
    "words",
    [
        frame_for(3),
        frame_for(1),
        END_FRAME + DATA,
        END_FRAME * 2,
        Abort(2, AbortReason.RESET).encode(),
        PROBE_FRAME,
        encode_message(Demand(1)),
        PROBED_FRAME,
    ],
    ids=[
        "OPEN on a busy tunnel",
        "OPEN of the same visitor",
        "DATA after END",
        "END twice",
        "ABORT of another tunnel's visitor",
        "PROBE of a busy tunnel",
        "a control message",
        "PROBED from a server",
    ],
)
async def test_a_server_that_misuses_a_tunnel_loses_it(
    tidy: Tidy, autojump_clock: MockClock, words: bytes
) -> None:
    wires: list[MemoryEndpoint] = []

    async def open_wire() -> Endpoint:
        await trio.lowlevel.checkpoint()
        near, far = tidy.pair()
        wires.append(far)
        return near

    async with trio.open_nursery() as nursery:
        pool = TunnelPool(open_wire, forwarder(tidy, nursery), limit=2, least_idle=2)
        nursery.start_soon(pool.run)
        await trio.testing.wait_all_tasks_blocked()
        misused, other = wires
        for visitor, wire in ((1, misused), (2, other)):
            wire.send(frame_for(visitor) + encode_frame(DATA_ID, b"first"))
            assert await receive_frames(wire) == [b"first"]
        misused.send(words)
        with trio.fail_after(AT_ONCE):
            assert END_FRAME not in await receive_all(misused)
        assert misused.peer.closed
        other.send(encode_frame(DATA_ID, b"second"))
        assert await receive_frames(other) == [b"second"]
        nursery.cancel_scope.cancel()
    for wire in wires:
        wire.close()


async def test_a_service_that_there_is_not_is_refused(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    near, far = tidy.pair()

    async def open_wire() -> Endpoint:
        await trio.lowlevel.checkpoint()
        return near

    async with trio.open_nursery() as nursery:
        services = Forwarder((Service(local=UnixAddress("/in/memory")),), 5.0)
        pool = TunnelPool(open_wire, services, limit=1, least_idle=1)
        nursery.start_soon(pool.run)
        await trio.testing.wait_all_tasks_blocked()
        far.send(frame_for(1, service=1))
        [answer] = await receive_frames(far)
        assert answer == Abort(1, AbortReason.REFUSED, "there is no service number 1")
        nursery.cancel_scope.cancel()
    far.close()


async def receive_frames(wire: MemoryEndpoint) -> list[TunnelFrame | bytes]:
    return events(TunnelReader(), await receive_some(wire))
