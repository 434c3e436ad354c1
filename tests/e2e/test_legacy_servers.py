"""A real `trionat connect --dialect` at the server of the Go program, in both of its dialects."""

from __future__ import annotations

import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import legacy_peers, raw_path, running, services
from tests.e2e.legacy_peers import (
    HOST,
    Credentials,
    Dialect,
    Id,
    LegacyClient,
    LegacyDialer,
    in_both_dialects,
    running_client,
    running_server,
)
from tests.e2e.running import ask, end_of, read_all, read_exactly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

SLACK = 3.0  # for a busy machine
NAME, PASSWORD = "王小明", "correct 🐴 battery staple"

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "protocol" / "vectors.json").read_text(encoding="utf-8")
)

both_dialects = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)


@asynccontextmanager
async def started(
    folder: Path,
    server: LegacyDialer,
    local: object,
    *flags: str,
    password: str = PASSWORD,
) -> AsyncIterator[running.Client]:
    """Run `trionat connect --dialect`, whatever comes of it."""
    addresses = (
        *("--controller-addr", f"{HOST}:{server.control_port}"),
        *("--tunnel-server-addr", f"{HOST}:{server.tunnel_port}"),
    )
    login = {"TRIONAT_AUTH_USERNAME": NAME, "TRIONAT_AUTH_PASSWORD": password}
    arguments = ("--dialect", server.dialect.value, *addresses, str(local), *flags)
    async with running.client_process(folder, *arguments, environ=login) as client:
        yield client
    assert password not in client.log_text()


@asynccontextmanager
async def connected(
    folder: Path, server: LegacyDialer, local: object, *flags: str, **others: Any
) -> AsyncIterator[running.Client]:
    """Run it; it has its session when this yields."""
    async with started(folder, server, local, *flags, **others) as client:
        await client.wait_connected()
        yield client


@both_dialects
async def test_services(
    dialect: Dialect,
    http_server: Service,
    redis_server: Service,
    echo_server: Service,
    tmp_path: Path,
) -> None:
    """HTTP, 64 MiB each way, Redis, 50 visitors at once, a service that is down; what the server hears; the planned stop."""
    target = http_server
    local_port = services.free_low_port()

    async def pass_on(stream: trio.SocketStream) -> None:
        async with await target.connect() as service:
            await legacy_peers.relay(stream, service)

    server = LegacyDialer(dialect=dialect, users={NAME: PASSWORD}, visitor_wait=2)
    async with (
        running_server(server),
        connected(tmp_path / "c", server, local_port) as client,
    ):
        [session] = server.sessions.values()
        assert client.connected["uid"] == session.uid
        assert client.connected["services"][0]["public"] == f"{HOST}:{session.port}"
        async with services.serve(pass_on, port=local_port):
            await raw_path.check_http(client.visit)
            target = redis_server
            await raw_path.check_redis(client.visit)
            target = echo_server
            await raw_path.check_many(client.visit, count=50)
        uid = {Dialect.NAT_DOC: None, Dialect.NAT_V1: 0}[dialect]
        assert server.logins == [Credentials(NAME, PASSWORD, legacy_peers.ZERO_TIME, uid)]
        assert server.tunnels == [(session.uid, session.port)] * (1 + 4 + 1 + 50)
        warnings = [record for record in client.records if record["level"] == "warning"]
        warnings = [warning for warning in warnings if "local service" not in warning["event"]]
        assert len(warnings) == 1  # that all this can be read on the way

        async with await client.visit() as visitor:
            with trio.fail_after(1.9):  # the server need not wait for a tunnel that never comes
                assert await end_of(visitor) == "end"
        refusal = f"the local service {HOST}:{local_port} cannot be reached: Connection refused"
        await client.wait_record("visitor refused", reason=refusal)
        async with services.echo(port=local_port), await client.visit() as visitor:
            assert await ask(visitor, b"up again") == b"up again"

        server.visitor_wait = 0.5
        async with services.handed_over(port=local_port) as (_, accepted):
            await stop_while_served(client, accepted)
        await running.wait_until(lambda: not server.sessions)
        told = [event["event"] for event in client.process.events]
        assert told == ["connected", "service-down", "service-up"]  # it was connected all the time
    assert not server.malformed


async def stop_while_served(
    client: running.Client, accepted: trio.MemoryReceiveChannel[trio.SocketStream]
) -> None:
    """Send SIGTERM: the visitor that is there may finish, a new one is not taken."""
    async with await client.visit() as visitor:
        await visitor.send_all(b"get")
        service = await accepted.receive()
        assert await read_exactly(service, 3) == b"get"
        client.terminate()
        await client.wait_record("stopping: visitors may finish; a second signal stops at once")
        async with await client.visit() as late:
            assert await end_of(late) == "end"
        with pytest.raises(trio.WouldBlock):
            accepted.receive_nowait()
        await service.send_all(raw_path.MEGABYTE)
        await service.send_eof()
        assert await read_all(visitor) == raw_path.MEGABYTE
        assert client.process.process.poll() is None
        await visitor.send_all(b"thanks")
        await visitor.send_eof()
        assert await read_all(service) == b"thanks"
        assert await client.wait(within=5) == 0


@both_dialects
async def test_ends_of_streams(dialect: Dialect, tmp_path: Path) -> None:
    """Half-close and resets, each way; and then the hardest end: either side is killed."""
    strays_end, strays = trio.open_memory_channel[trio.SocketStream](0)
    server = LegacyDialer(dialect=dialect, strays=strays_end)
    async with (
        trio.open_nursery() as nursery,
        services.handed_over() as (local, accepted),
        running_server(server),
        connected(tmp_path / "c", server, local) as client,
        AsyncExitStack() as streams,
    ):

        async def join() -> raw_path.Ends:
            [session] = server.sessions.values()
            await session.send(legacy_peers.frame(dialect, Id.NEW_CONNECTION))
            service = await accepted.receive()  # first of all, and the tunnel only then
            tunnel = await strays.receive()
            streams.callback(tunnel.socket.close)
            streams.callback(service.socket.close)
            await service.send_all(b"banner")
            assert await read_exactly(tunnel, 6) == b"banner"
            return tunnel, service

        await raw_path.check_half_close(join)
        await raw_path.check_resets(join)
        await raw_path.check_blocked_reader(join)
        tunnel, service = await join()
        server.kill()
        await end_of(service)
        gone = await client.process.next_event("disconnected")
        assert 0 <= gone["retry_in"] <= 5
        await nursery.start(server.run)
        await client.wait_connected(within=5 + SLACK)
        tunnel, service = await join()
        client.kill()
        await end_of(tunnel)
        await end_of(service)
        await running.wait_until(lambda: not server.sessions)
    assert not server.malformed


async def test_wrong_password(tmp_path: Path) -> None:
    await in_both_dialects(wrong_password, tmp_path)


async def wrong_password(dialect: Dialect, tmp_path: Path) -> None:
    """A wrong password ends it, with an exit code of its own."""
    server = LegacyDialer(dialect=dialect, users={NAME: PASSWORD})
    password = "wrong secret"
    async with (
        running_server(server),
        started(tmp_path / dialect.value, server, 1, password=password) as client,
    ):
        assert await client.wait() == 4
        [event] = client.process.events
        assert event["event"] == "disconnected"
        assert event["retry_in"] is None
        assert "trionat: authentication failed: wrong " in client.process.errors.decode()
        assert [login.password for login in server.logins] == [password]


async def test_server_that_talks_nonsense(tmp_path: Path) -> None:
    await in_both_dialects(nonsense_from_a_server, tmp_path)


async def nonsense_from_a_server(dialect: Dialect, tmp_path: Path) -> None:
    """It is told and tried again; nothing that a server says is a bug of ours."""
    nonsense = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        dialect.header.pack(12, Id.USER_INFORMATION) + bytes(12),
        legacy_peers.frame(dialect, Id.USER_INFORMATION, b"short"),
    ]
    server = LegacyDialer(dialect=dialect, tunnel_port=services.free_low_port())
    async with services.echo() as local, services.handed_over() as (control_service, controls):
        server.control_port = control_service.port
        async with started(tmp_path / dialect.value, server, local) as client:
            for data in nonsense:
                control = await controls.receive()
                await control.send_all(data)
                event = await client.process.next_event("disconnected")
                assert 0 <= event["retry_in"] <= 5
                assert event["reason"]
                await end_of(control)
            control = await controls.receive()
            await control.send_all(legacy_peers.information_frame(dialect, 7, 60000))
            await client.wait_connected()
            assert client.connected["uid"] == 7
            # Where tunnels cannot be opened, it costs the visitor and a line.
            await control.send_all(legacy_peers.frame(dialect, Id.NEW_CONNECTION))
            record = await client.wait_record("visitor refused")
            assert f"{HOST}:{server.tunnel_port}" in record["reason"]
            # A session that was up: nonsense ends that as well.
            await control.send_all(nonsense[0])
            await client.process.next_event("disconnected")


async def test_queue(echo_server: Service, tmp_path: Path) -> None:
    await in_both_dialects(queue, echo_server, tmp_path)


async def queue(dialect: Dialect, echo_server: Service, tmp_path: Path) -> None:
    """One session, one place: who waits is told that it does, who finds it full tries again, who hangs up leaves."""
    server = LegacyDialer(dialect=dialect)
    async with running_server(server):
        holder = LegacyClient(
            dialect=dialect,
            control_address=(HOST, server.control_port),
            tunnel_address=(HOST, server.tunnel_port),
        )
        async with (
            running_client(holder),
            started(tmp_path / f"{dialect.value} 2", server, echo_server) as second,
        ):
            await running.wait_until(lambda: server.queued == 1, within=running.START_TIMEOUT)
            async with started(tmp_path / f"{dialect.value} 3", server, echo_server) as third:
                full = await third.process.next_event("disconnected", within=running.START_TIMEOUT)
                assert 0 < full["retry_in"] <= 5
                assert "full" in full["reason"]
                second.terminate()
                assert await second.wait(within=3) == 0
                await running.wait_until(lambda: server.queued == 1, within=5 + SLACK)
                holder.kill()
                await third.wait_connected(within=SLACK)
                async with await third.visit() as visitor:
                    assert await ask(visitor, b"my turn") == b"my turn"
    assert not server.malformed


@pytest.mark.slow
async def test_silence(echo_server: Service, tmp_path: Path) -> None:
    """A server that says nothing for 8 s is lost; a client that is stopped by SIGSTOP comes back as if nothing was."""

    async def silent_server(dialect: Dialect) -> None:
        server = LegacyDialer(dialect=dialect, keep_alive_interval=1000)
        async with (
            running_server(server),
            connected(tmp_path / f"a {dialect.value}", server, echo_server) as client,
        ):
            gone = await client.process.next_event("disconnected", within=10 + SLACK)
            assert gone["reason"] == "nothing heard from the server for 8 s"
            await client.wait_connected()

    async def stopped_client(dialect: Dialect) -> None:
        server = LegacyDialer(dialect=dialect, visit_ports=[services.free_low_port()])
        async with (
            running_server(server),
            connected(tmp_path / f"b {dialect.value}", server, echo_server) as client,
        ):
            client.process.process.send_signal(signal.SIGSTOP)
            async with await client.visit() as visitor:
                since = trio.current_time()
                await end_of(visitor)  # the server's own 8 s
                assert trio.current_time() - since < 8 + SLACK
            client.process.process.send_signal(signal.SIGCONT)
            while True:  # the first one may get the tunnel that was meant for the one before it
                with suppress(OSError, trio.BrokenResourceError):
                    async with await client.visit() as visitor:
                        await visitor.send_all(b"hello")
                        if await visitor.receive_some() == b"hello":
                            break
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_both_dialects, silent_server)
        nursery.start_soon(in_both_dialects, stopped_client)
