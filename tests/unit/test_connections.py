"""New connections over real sockets: what they speak decides who serves them."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all, receive_exactly
from tests.unit.memory_server import MemoryServer, open_memory_server
from tests.unit.test_endpoint import mute
from trionat.address import TCPAddress
from trionat.errors import PeerError
from trionat.protocol.dialect import Dialect
from trionat.protocol.legacy import Credentials, NewConnection, UserInformation, encode
from trionat.protocol.messages import Expose, Hello, ServiceRequest, Welcome
from trionat.server.control.connections import ConnectionHandler
from trionat.server.control.native_login import NativeLogin
from trionat.server.refusals import Bound
from trionat.server.sessions.legacy import LegacySession
from trionat.transport.channel import Channel, LegacyChannel
from trionat.transport.descriptors import Descriptors
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.conftest import Tidy

CREDENTIALS = Credentials(username="u", password="p")


@attrs.define(eq=False)
class ControlPort:
    """A server with a listener; `connect` returns a client's end."""

    server: MemoryServer
    listener: Listener

    async def connect(self, host: str | None = None) -> SocketEndpoint:
        """Connect, from the address `host` if one is given."""
        client = trio.socket.socket()
        if host is not None:
            await client.bind((host, 0))
        await client.connect(("127.0.0.1", self.listener.address.port))
        return SocketEndpoint(socket.socket(fileno=client.detach()))

    async def ask(self, host: str | None = None) -> LegacyChannel:
        channel = LegacyChannel(await self.connect(host), Dialect.NAT_V1)
        await channel.send(CREDENTIALS)
        return channel


@asynccontextmanager
async def open_control_port(
    tidy: Tidy, host: str = "127.0.0.1", **settings: object
) -> AsyncIterator[ControlPort]:
    async with open_memory_server(tidy, **settings) as server:  # type: ignore[arg-type]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # nobody here speaks TLS
        connections = ConnectionHandler(server.context, tls)
        listener = Listener.open(TCPAddress(host, 0))
        descriptors = Descriptors()
        try:
            async with trio.open_nursery() as listening:
                accept = connections.acceptor(server.nursery)
                listening.start_soon(listener.serve, accept, descriptors)  # noqa: ASYNC113 - the kernel queues who comes before
                yield ControlPort(server, listener)
                listening.cancel_scope.cancel()
        finally:
            listener.close()
            descriptors.close()


async def test_both_dialects_on_one_port(tidy: Tidy) -> None:
    async with open_control_port(tidy, legacy_clients=True) as port:
        for dialect in (Dialect.NAT_DOC, Dialect.NAT_V1):
            client = await port.connect()
            client.send(encode(CREDENTIALS, dialect))
            channel = LegacyChannel(client, dialect)
            information = await channel.receive()
            assert isinstance(information, UserInformation)
            visitor = port.server.visit(information.port, early=b"question")
            assert isinstance(await channel.receive(), NewConnection)
            tunnel = await port.connect()
            tunnel.send(encode(information, dialect) + b"answer")
            assert await receive_exactly(tunnel, 8) == b"question"
            assert await receive_exactly(visitor, 6) == b"answer"
            for end in (tunnel, visitor, client):
                end.close()


async def test_no_legacy_clients_unless_it_is_said(
    tidy: Tidy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_control_port(tidy) as port:
        for dialect in (Dialect.NAT_DOC, Dialect.NAT_V1, Dialect.NAT_V1):
            for first in (CREDENTIALS, UserInformation(1, 60001)):
                client = await port.connect()
                client.send(encode(first, dialect))
                with suppress(ConnectionError):  # it may have been sent more than was read
                    assert await receive_all(client) == b""
                client.close()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "LegacyClients: true" in warnings[0]
    assert "nat-doc" in warnings[0]
    assert sum("LegacyClients is off" in message for message in caplog.messages) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="the others' kernels take their own time")
async def test_clients_whose_machines_are_gone(tidy: Tidy) -> None:
    """One is noticed within `PeerTimeout`, or at once when another comes from its address; the well are left alone."""
    async with open_control_port(
        tidy, ports=5, legacy_clients=True, peer_timeout=3, ping_interval=1
    ) as port:
        well, replaced, alone = [await port.ask(f"127.0.0.{number}") for number in (1, 2, 3)]
        ports = [await port_of(client) for client in (well, replaced, alone)]
        for client in (replaced, alone):
            assert isinstance(client.endpoint, SocketEndpoint)
            mute(client.endpoint.sock)
        gone = trio.current_time()
        lost = next(s for s in port.server.sessions if s.address.host == "127.0.0.3")
        await trio.sleep(2.6)
        one, two = [await port.ask(f"127.0.0.{number}") for number in (1, 2)]
        assert await port_of(one) not in ports
        assert await port_of(two) == ports[1]
        while lost in port.server.sessions:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.05)
        assert 3 < trio.current_time() - gone < 5
        assert [session.address.host[-1] for session in port.server.sessions] == ["1", "1", "2"]
        for client in (well, replaced, alone, one, two):
            client.endpoint.close()


async def port_of(client: LegacyChannel) -> int:
    information = await client.receive()
    assert isinstance(information, UserInformation)
    return information.port


async def test_one_address_in_two_families(tidy: Tidy) -> None:
    """A socket for IPv6 that takes IPv4 as well tells its addresses in another form."""
    try:
        probe = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        probe.close()
    except (OSError, ValueError):
        pytest.skip("no IPv6 here")
    async with open_control_port(tidy, "::", legacy_clients=True) as port:
        try:
            channel = await port.ask()
        except OSError:
            pytest.skip("IPv6 sockets take no IPv4 here")
        assert isinstance(await channel.receive(), UserInformation)
        (session,) = port.server.sessions
        assert isinstance(session, LegacySession)
        assert session.address.host == "127.0.0.1"
        channel.endpoint.close()


async def test_half_a_frame(tidy: Tidy) -> None:
    async with open_control_port(tidy, legacy_clients=True, handshake_timeout=0.5) as port:
        client = await port.connect()
        client.send(encode(CREDENTIALS, Dialect.NAT_V1)[:-3])
        channel = LegacyChannel(client, Dialect.NAT_V1)
        with trio.fail_after(3), pytest.raises(PeerError):
            await channel.receive()
        client.close()


async def test_a_login_without_services_is_a_handshake(tidy: Tidy) -> None:
    """Who has logged in and says nothing more may still be ended to make room for others (`MaxHandshakes`)."""
    async with open_memory_server(tidy) as server:
        known: list[int] = []
        channels: list[Channel] = []
        for number in range(8):
            far, near = tidy.pair()
            server.outside.append(far)
            login = NativeLogin(
                server.context,
                near,
                TCPAddress("192.0.2.7", 1),
                partial(known.append, number),
            )
            server.nursery.start_soon(server._serve, login)
            channels.append(Channel(far))
            await channels[-1].send(Hello(username="anybody", identity=str(number)))
        await trio.sleep(0.1)
        assert known == []
        await channels[-1].send(Expose(services=(ServiceRequest(),)))
        assert isinstance(await channels[-1].receive(), Welcome)
        assert known == [7]


def count_connections(server: MemoryServer) -> int:
    return sum(task.name.startswith("connection from") for task in server.nursery.child_tasks)


async def test_an_evicted_handshake_holds_no_descriptor(tidy: Tidy) -> None:
    async with open_control_port(tidy, legacy_clients=True, max_handshakes=3) as port:
        clients: list[SocketEndpoint] = []
        for _ in range(20):
            clients.append(await port.connect())
            clients[-1].send(encode(CREDENTIALS, Dialect.NAT_V1)[:-3])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert count_connections(port.server) <= 3
        for client in clients:
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.9 needs no setting up on Linux")
async def test_a_known_network_keeps_its_handshakes(tidy: Tidy) -> None:
    async with open_control_port(tidy, legacy_clients=True, max_handshakes=4) as port:
        words = encode(CREDENTIALS, Dialect.NAT_V1)
        with port.server.context.bans.in_use("127.0.0.1"):
            slow = await port.connect("127.0.0.1")
            slow.send(words[:-3])
            strangers = [await port.connect(f"127.0.1.{number}") for number in range(1, 9)]
            await trio.testing.wait_all_tasks_blocked(0.05)
            slow.send(words[-3:])
            with trio.fail_after(3):
                await LegacyChannel(slow, Dialect.NAT_V1).receive()
        for client in (slow, *strangers):
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.9 needs no setting up on Linux")
async def test_a_port_scanner_does_not_fill_the_log(
    tidy: Tidy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    async with open_control_port(tidy) as port:
        for host, count in (("127.0.0.1", 200), ("127.0.0.9", 50)):
            for _ in range(count):
                connection = await port.connect(host)
                connection.sock.setblocking(True)
                connection.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                connection.close()
        lines = [record.getMessage() for record in caplog.records]
        with trio.fail_after(5):
            while port.server.context.refusals.counts.total() < 140:  # noqa: ASYNC110 - polls
                await trio.sleep(0.01)
            while len(lines) < 60 + 50 + 1:
                lines = [record.getMessage() for record in caplog.records]
                await trio.sleep(0.01)
    told = [line for line in lines if line.startswith("connection closed")]
    assert sum("address=127.0.0.1:" in line for line in told) == 60
    assert sum("address=127.0.0.9:" in line for line in told) == 50
    assert port.server.context.refusals.counts == {Bound.CONNECTIONS: 140}
    [counted] = [line for line in lines if line.startswith("connections closed")]
    assert "count=1 reason='this port speaks TLS, and the peer spoke plain HTTP'" in counted
