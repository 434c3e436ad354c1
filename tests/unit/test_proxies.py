"""Connections behind proxies, over real sockets: whose they are, who may say so, and what becomes of all others."""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory_server import MemoryServer, MemoryStore, open_memory_server
from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import StartupError
from trionat.networks import Networks, parse_network
from trionat.protocol.dialect import Dialect
from trionat.protocol.legacy import Credentials, encode
from trionat.protocol.proxy import PROXY_V1, PROXY_V2, proxy_header
from trionat.server import proxies
from trionat.server.accounts.limits import UserLimits
from trionat.server.app import serve
from trionat.server.control.connections import ConnectionHandler
from trionat.server.proxies import ProxyListener
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.events import Ready
    from trionat.server.proxies import Take

LOOPBACK = Networks([parse_network("127.0.0.0/8"), parse_network("::1")])
SOURCE, DIALLED = TCPAddress("192.0.2.7", 56324), TCPAddress("198.51.100.1", 60001)
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")


@attrs.define(eq=False)
class Behind:
    """A port behind proxies; `connect` returns a proxy's end, and `taken` has what came through."""

    listener: Listener
    refusals: RefusalCounters
    outside: list[trio.SocketStream] = attrs.field(factory=list)
    taken: list[tuple[socket.socket, TCPAddress, TCPAddress]] = attrs.field(factory=list)

    async def connect(self, first: bytes = b"", host: str = "127.0.0.1") -> trio.SocketStream:
        stream = await trio.open_tcp_stream(
            "127.0.0.1", self.listener.address.port, local_address=host
        )
        self.outside.append(stream)
        if first:
            await stream.send_all(first)
        return stream

    def take(self, connection: socket.socket, source: TCPAddress, dialled: TCPAddress) -> None:
        self.taken.append((connection, source, dialled))

    async def wait_taken(self, count: int = 1) -> None:
        with trio.fail_after(3):
            while len(self.taken) < count:  # noqa: ASYNC110 - polls
                await trio.sleep(0.005)

    async def come(self, header: bytes, behind: bytes = b"") -> tuple[TCPAddress, TCPAddress]:
        """Send it, and return what was told of its connection, behind which are those bytes, and no more."""
        count = len(self.taken)
        await self.connect(header + behind)
        await self.wait_taken(count + 1)
        connection, *ends = self.taken[-1]
        if behind:
            assert connection.recv(10_000) == behind
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        return ends[0], ends[1]


async def hear_end(stream: trio.SocketStream) -> None:
    """The connection is closed, perhaps with something of ours unread."""
    with trio.fail_after(3), suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


@asynccontextmanager
async def open_behind(
    *,
    trusted: Networks = LOOPBACK,
    most_waiting: int = 100,
    refusals: RefusalCounters | None = None,
    take: Take | None = None,
    most: int | None = None,
) -> AsyncIterator[Behind]:
    """Listen until the end of the block; then nothing that came is left open."""
    behind = Behind(
        Listener.open(TCPAddress("127.0.0.1", 0)),
        RefusalCounters() if refusals is None else refusals,
    )
    proxied = ProxyListener(behind.listener, trusted, most_waiting, behind.refusals)
    descriptors = Descriptors()
    try:
        async with trio.open_nursery() as nursery:
            serve_all = partial(proxied.serve, take or behind.take, descriptors, most=most)
            nursery.start_soon(serve_all)
            yield behind
            nursery.cancel_scope.cancel()
        assert not proxied._waiting
    finally:
        descriptors.close()
        for stream in behind.outside:
            stream.socket.close()
        for connection, *_ in behind.taken:
            connection.close()


@pytest.mark.parametrize("version", [PROXY_V1, PROXY_V2])
async def test_header_says_whose_it_is(nothing_left: None, version: str) -> None:
    header = proxy_header(version, SOURCE, DIALLED)
    six = TCPAddress("2001:db8::7", 1), TCPAddress("2001:db8::1", 60001)
    async with open_behind() as behind:
        assert await behind.come(header) == (SOURCE, DIALLED)
        assert await behind.come(header, b"hello") == (SOURCE, DIALLED)
        assert await behind.come(header, header * 20) == (SOURCE, DIALLED)
        assert await behind.come(proxy_header(version, *six), b"\r\n") == six
    assert not behind.refusals.counts


@pytest.mark.parametrize("version", [PROXY_V1, PROXY_V2])
async def test_header_in_pieces(nothing_left: None, version: str) -> None:
    header = proxy_header(version, SOURCE, DIALLED)
    async with open_behind() as behind:
        stream = await behind.connect()
        for byte in header:
            assert not behind.taken
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked(0.001)
        await stream.send_all(b"hello")
        await behind.wait_taken()
        [(connection, *ends)] = behind.taken
        assert ends == [SOURCE, DIALLED]
        await trio.sleep(0.05)
        assert connection.recv(1000) == b"hello"


async def test_header_and_the_end_in_one(nothing_left: None) -> None:
    """A visitor that has sent everything and ended is still a visitor."""
    async with open_behind() as behind:
        stream = await behind.connect(proxy_header(PROXY_V2, SOURCE, DIALLED) + b"all of it")
        await stream.send_eof()
        await behind.wait_taken()
        [(connection, *_)] = behind.taken
        assert (connection.recv(100), connection.recv(100)) == (b"all of it", b"")


async def test_nobody_else_may_send_a_header(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    trusted = Networks([parse_network("127.0.0.2")])
    async with open_behind(trusted=trusted) as behind:
        header = proxy_header(PROXY_V1, SOURCE, DIALLED)
        for _ in range(20):
            stream = await behind.connect()
            await hear_end(stream)
        assert behind.refusals.counts == {Bound.PROXIES: 20}
        await behind.connect(header, host="127.0.0.2")
        await behind.wait_taken()
        assert len(behind.taken) == 1
    [record] = caplog.records  # and one a second, with their number
    assert record.levelno == logging.WARNING  # most likely it is a proxy that was forgotten
    line = record.getMessage()
    assert line.startswith("connection refused address=127.0.0.1:")
    assert f"port={behind.listener.address.port}" in line
    assert "its address may not send PROXY headers (TrustedProxies)" in line


async def test_a_stranger_is_warned_of_once_a_minute(
    nothing_left: None, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    listener = Listener.open(TCPAddress("127.0.0.1", 0))
    with closing(listener):
        async with trio.open_nursery() as nursery:
            refusals = RefusalCounters()
            behind = ProxyListener(listener, Networks(()), 1, refusals)
            for pause in (2, 57, 2, 2):
                for host in ("192.0.2.1", "192.0.2.2"):
                    come, gone = socket.socketpair()
                    gone.close()
                    behind._accept(nursery, lambda *_: None, come, TCPAddress(host, 1))
                    refusals._tell_due(float("inf"))
                await trio.sleep(pause)
    levels = [record.levelno == logging.WARNING for record in caplog.records]
    assert levels == [True] * 2 + [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin with a PROXY header: turn on proxy_protocol"),
        (bytes.fromhex("1603010200"), "does not begin with a PROXY header: turn on proxy_protocol"),
        (b"PROXY TCP4 1 2 3 4\r\n", "has no valid addresses and ports"),
        (LOCAL[:14] + b"\xff\xff", "has 65551 bytes, and at most 536 are taken"),
    ],
)
async def test_what_is_no_header_is_refused_at_once(
    nothing_left: None, caplog: pytest.LogCaptureFixture, first: bytes, told: str
) -> None:
    async with open_behind() as behind:
        await hear_end(await behind.connect(first))
        assert behind.refusals.counts == {Bound.PROXY_HEADER: 1}
        assert not behind.taken
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert told in record.getMessage()


async def test_header_that_comes_too_late(
    nothing_left: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that does not begin, nor one that does not end."""
    monkeypatch.setattr(proxies, "HEADER_WAIT", 0.2)
    async with open_behind() as behind:
        begun = trio.current_time()
        streams = [await behind.connect(first) for first in (b"", b"PROXY TCP4 ", LOCAL[:15])]
        for stream in streams:
            await hear_end(stream)
        assert 0.2 <= trio.current_time() - begun < 2
        assert behind.refusals.counts == {Bound.PROXY_HEADER: 3}
    assert "no PROXY header came within 0.2 s" in caplog.messages[0]


def test_lost_segment_is_waited_for() -> None:
    assert 3 <= proxies.HEADER_WAIT <= 10


async def test_connection_that_ends_within_its_header(nothing_left: None) -> None:
    async with open_behind() as behind:
        for end in (trio.SocketStream.send_eof, trio.SocketStream.aclose):
            stream = await behind.connect(b"PROXY TCP4 ")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await end(stream)
        with trio.fail_after(3):
            while behind.refusals.counts[Bound.PROXY_HEADER] < 2:  # noqa: ASYNC110 - polls
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    "first", [LOCAL, LOCAL[:-1] + b"\x05hello", b"PROXY UNKNOWN\r\n", b"", b"itself"]
)
async def test_proxy_that_speaks_for_itself_is_closed_quietly(
    nothing_left: None, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    """As its health checks do, by header or without a word."""
    caplog.set_level(logging.INFO, "trionat")
    async with open_behind() as behind:
        stream = await behind.connect()
        if first == b"itself":
            name = TCPAddress(*stream.socket.getsockname())
            first = proxy_header(PROXY_V1, name, behind.listener.address)
        if first:
            await stream.send_all(first)
        else:
            await stream.send_eof()
        await hear_end(stream)
        assert not behind.taken
        assert not behind.refusals.counts
    assert not caplog.messages


async def test_check_by_reset_is_quiet(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    async with open_behind() as behind:
        for _ in range(10):
            stream = await behind.connect()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            stream.socket.close()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not behind.refusals.counts
    assert not caplog.messages


async def test_too_many_without_a_header_make_room(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that have said nothing for longest; who says it is no longer among them."""
    header = proxy_header(PROXY_V2, SOURCE, DIALLED)
    async with open_behind(most_waiting=3) as behind:
        await behind.connect(header)
        await behind.wait_taken()
        silent = [await behind.connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not behind.refusals.counts
        await behind.connect(header)
        await behind.wait_taken(2)
        await hear_end(silent[0])
        await silent[1].send_all(header)
        await behind.wait_taken(3)
        assert behind.refusals.counts == {Bound.PROXY_HEADER: 1}
    assert "others needed the room (MaxHandshakes)" in caplog.text


async def test_visitors_leave_descriptors(nothing_left: None) -> None:
    """As on a visit port: beyond the bound connections wait in the kernel's queue."""
    with socket.socket() as probe:
        most = probe.fileno() + 8
    header = proxy_header(PROXY_V2, SOURCE, DIALLED)
    async with open_behind(most=most) as behind:
        for _ in range(8):
            await behind.connect(header)
        await trio.sleep(0.2)
        assert 1 <= len(behind.taken) < 8


async def test_stop_closes_who_waits(nothing_left: None) -> None:
    async with open_behind() as behind:
        stream = await behind.connect(b"PROXY ")
        await trio.testing.wait_all_tasks_blocked(0.01)
        port = behind.listener.address.port
    with pytest.raises(OSError, match=r"."):
        await trio.open_tcp_stream("127.0.0.1", port)
    assert stream.socket.fileno() == -1


# --- visitors ---


@asynccontextmanager
async def open_entrance(
    **settings: object,
) -> AsyncIterator[tuple[Behind, VisitorQueue, dict[int, VisitPort]]]:
    """Visit port 60001 is held, 60002 is not; both are behind one listener."""
    config = ServerConfig(**settings)  # type: ignore[arg-type]
    queue = VisitorQueue(
        config.max_waiting_visitors, config.max_visitors, UserLimits("alice", Limits())
    )
    ports = {60001: VisitPort(60001, queue=queue, service=3), 60002: VisitPort(60002)}
    acceptor = VisitorAcceptor(config)
    take = partial(acceptor.accept_behind_proxy, ports)
    async with open_behind(refusals=acceptor.refusals, take=take) as behind:
        yield behind, queue, ports
    queue.close("the end")


async def test_visitor_comes_to_the_port_of_the_header(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    async with open_entrance() as (behind, queue, _):
        await behind.connect(proxy_header(PROXY_V1, SOURCE, DIALLED))
        with trio.fail_after(3):
            while not queue.waiting:  # noqa: ASYNC110 - polls
                await trio.sleep(0.005)
        [visitor] = queue.waiting_visitors
        assert (visitor.address, visitor.visited, visitor.service) == (SOURCE, DIALLED, 3)
        assert visitor.opening.visit_port == 60001
        for port, reason in (
            (60002, "no client holds this port"),
            (60009, "this server has no such visit port (VisitPort)"),
            (behind.listener.address.port, "this server has no such visit port (VisitPort)"),
        ):
            dialled = TCPAddress("198.51.100.1", port)
            caplog.clear()
            behind.refusals._untold.clear()
            await hear_end(await behind.connect(proxy_header(PROXY_V2, SOURCE, dialled)))
            assert f"address=192.0.2.7:56324 port={port} reason='{reason}'" in caplog.text
        assert behind.refusals.counts == {Bound.NO_CLIENT: 3}


async def test_lists_and_rates_go_by_the_true_address(nothing_left: None) -> None:
    """The proxy's own address, from which all come, is none of theirs."""
    deny = (parse_network("192.0.2.8"), parse_network("127.0.0.0/8"))
    async with open_entrance(deny_visitors=deny, visitor_rate=2) as (behind, queue, _):
        for host, bound in (
            ("192.0.2.8", Bound.LISTS),
            ("127.0.0.1", Bound.LISTS),
            ("192.0.2.7", None),
            ("192.0.2.7", None),
            ("192.0.2.7", Bound.RATE),
            ("192.0.2.9", None),
        ):
            behind.refusals.counts.clear()
            waiting = queue.waiting
            stream = await behind.connect(proxy_header(PROXY_V2, TCPAddress(host, 1), DIALLED))
            if bound is not None:
                await hear_end(stream)
                assert behind.refusals.counts == {bound: 1}
            else:
                with trio.fail_after(3):
                    while queue.waiting == waiting:  # noqa: ASYNC110 - polls
                        await trio.sleep(0.005)


async def test_bounds_of_a_session_hold(nothing_left: None) -> None:
    async with open_entrance(max_visitors=2) as (behind, queue, _):
        header = proxy_header(PROXY_V1, SOURCE, DIALLED)
        streams = [await behind.connect(header) for _ in range(3)]
        await hear_end(streams[2])
        assert queue.waiting == 2
        assert behind.refusals.counts == {} != queue.refusals.counts == {Bound.VISITORS: 1}


# --- clients ---


@asynccontextmanager
async def open_control(
    tidy: Tidy, **settings: object
) -> AsyncIterator[tuple[Behind, MemoryServer]]:
    async with open_memory_server(tidy, legacy_clients=True, **settings) as server:  # type: ignore[arg-type]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # nobody here speaks TLS
        accept = ConnectionHandler(server.context, tls).acceptor(server.nursery)

        def take(connection: socket.socket, source: TCPAddress, _: TCPAddress) -> None:
            accept(connection, source)

        async with open_behind(refusals=server.context.refusals, take=take) as behind:
            yield behind, server


WORDS = encode(Credentials(username="u", password="p"), Dialect.NAT_V1)


async def test_client_has_its_true_address(tidy: Tidy) -> None:
    async with open_control(tidy) as (behind, server):
        await behind.connect(proxy_header(PROXY_V1, SOURCE, DIALLED) + WORDS)
        with trio.fail_after(3):
            while not server.sessions:  # noqa: ASYNC110 - polls
                await trio.sleep(0.01)
        [session] = server.sessions
        assert session.address == SOURCE
        assert server.context.bans.is_in_use("192.0.2.7")
        assert not server.context.bans.is_in_use("127.0.0.1")


async def test_bans_are_of_true_addresses(tidy: Tidy) -> None:
    """Who guesses behind a proxy shuts out itself, and neither the proxy nor anybody else behind it."""
    store = MemoryStore("u")
    async with open_control(tidy, store=store, ban_after=2) as (behind, server):
        bans = server.context.bans
        header = proxy_header(PROXY_V2, SOURCE, DIALLED)
        for _ in range(2):
            await hear_end(await behind.connect(header + WORDS))
        assert list(bans.banned()) == ["192.0.2.7"]
        await hear_end(await behind.connect(header))
        assert server.context.refusals.counts[Bound.BAN] == 1
        other = await behind.connect(proxy_header(PROXY_V2, TCPAddress("192.0.2.8", 1), DIALLED))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert other.socket.fileno() >= 0
        assert any("192.0.2.8" in task.name for task in server.nursery.child_tasks)
        assert server.context.refusals.counts[Bound.BAN] == 1
        assert not bans.shuts_out("127.0.0.1")


async def test_handshakes_count_by_true_address(tidy: Tidy) -> None:
    async with open_control(tidy, max_handshakes_per_address=2) as (behind, server):
        streams = [
            await behind.connect(proxy_header(PROXY_V1, TCPAddress(host, 1), DIALLED) + WORDS[:-3])
            for host in ("192.0.2.7", "192.0.2.8", "192.0.2.7", "192.0.2.7")
        ]
        await hear_end(streams[0])
        assert server.context.refusals.counts == {Bound.HANDSHAKES_OF_ADDRESS: 1}


# --- the whole server ---

ANY = TCPAddress("127.0.0.1", 0)


async def test_nothing_is_opened_unless_it_is_said(nothing_left: None, tmp_path: Path) -> None:
    config = ServerConfig(
        controller_addr=ANY, tunnel_addr=ANY, visit_port=(0,), state_dir=tmp_path, start_auth=False
    )
    for also in (False, True):
        if also:
            config = attrs.evolve(config, proxy_visit_addr=ANY, proxy_control_addr=ANY)
        stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            ready: Ready = await nursery.start(partial(serve, config, stopping=stopping))
            opened = [a for a in (ready.proxy_visit, ready.proxy_control) if a is not None]
            assert len(opened) == 2 * also
            for address in opened:
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    await stream.send_all(LOCAL)
                    await hear_end(stream)
            stopping.set()


@pytest.mark.parametrize("other", ["controller_addr", "proxy_visit_addr"])
async def test_port_that_the_server_has_itself(
    nothing_left: None, tmp_path: Path, other: str
) -> None:
    probe = Listener.open(ANY)
    address = probe.address
    probe.close()
    config = ServerConfig(
        controller_addr=ANY, tunnel_addr=ANY, visit_port=(0,), state_dir=tmp_path, start_auth=False
    )
    both = {other: address, "proxy_control_addr": address}
    with pytest.raises(StartupError, match=r"that is this server's own (proxy )?control port"):
        await serve(attrs.evolve(config, **both))  # type: ignore[arg-type]
