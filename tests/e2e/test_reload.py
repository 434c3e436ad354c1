"""Changing the configuration of a server that runs: what counts at once, what waits, and that nobody notices whom it does not concern."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from tests.certificates.made import Maker
from tests.e2e import named, running, services
from tests.e2e.upgrading import is_there, upgrading
from trionat.config.reload import Reloaded
from trionat.config.values import PORTS
from trionat.fingerprint import format_fingerprint
from trionat.transport.certificate import fingerprint, first_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

ANEW = ["env", "--default-signal=HUP", "setsid"]
"""Without a terminal, as a service is, and whatever nohup(1) these tests run under."""


@attrs.define(eq=False)
class Configured(running.Server):
    """A server with a file, and what it has been told to read again."""

    file: Path = attrs.field(kw_only=True)

    def write(self, **keys: object) -> None:
        """Write the file anew, in one step."""
        write(self.file, "Server", **keys)

    async def reload(self) -> Reloaded:
        """Run `trionat reload`, which does what is asked for."""
        code, outcome, _ = await self.try_reload()
        assert code == 0
        return outcome

    async def try_reload(self) -> tuple[int, Reloaded, str]:
        """Run `trionat reload`; return its exit code, its answer, and what it has said besides."""
        done = await services.run_trionat("reload", "--json", "--state-dir", self.state)
        answer = done.stdout.decode()
        return (
            done.returncode,
            Reloaded.of(json.loads(answer)) if answer else Reloaded(),
            done.stderr.decode(),
        )


def write(file: Path, section: str, **keys: object) -> None:
    lines = [f"  {key}: {json.dumps(value)}" for key, value in keys.items()]
    new = file.with_suffix(".new")
    new.write_text("\n".join([f"{section}:", *lines, ""]))
    new.rename(file)


@asynccontextmanager
async def serve(
    folder: Path, *flags: str, environ: dict[str, str] | None = None, **keys: object
) -> AsyncIterator[Configured]:
    """Run a server by a file with these keys."""
    await trio.Path(folder).mkdir()
    file, state, log_file = folder / "server.yml", folder / "state", folder / "server.log"
    write(file, "Server", **keys)
    async with services.trionat_process(
        *("serve", "--json", "--controller-addr", "127.0.0.1:0", "--tunnel-addr", "127.0.0.1:0"),
        *("--config", file, "--state-dir", state, "--log-name", log_file),
        *flags,
        stdin=b"",
        cwd=folder,
        inside=ANEW,
        **environ or {},
    ) as process:
        ready = await process.next_event("ready", within=running.START_TIMEOUT)
        server = Configured(log_file, process, ready=ready, state=state, file=file)
        yield server
    server.check_end(ready["ticket"])


def low_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(services.free_low_port())
    return sorted(ports)


def written(*ports: int) -> str:
    return PORTS.write(ports)


@asynccontextmanager
async def visiting(client: running.Client) -> AsyncIterator[trio.SocketStream]:
    """Be a visitor all the while: what is said is answered before and after the block."""
    async with await client.visit() as visitor:
        assert await running.ask(visitor, b"before") == b"before"
        yield visitor
        assert await running.ask(visitor, b"and after") == b"and after"


async def is_open(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def test_visit_ports_come_and_go_and_others_do_not_notice(
    echo_server: Service, tmp_path: Path
) -> None:
    first, second, third = low_ports(3)
    async with serve(tmp_path / "s", VisitPort=[first, second]) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        async with one as client, visiting(client) as visitor:
            async with running.client(tmp_path / "2", server.ticket, echo_server) as other:
                assert other.port() == second
                server.write(VisitPort=[first, third])
                outcome = await server.reload()
                assert outcome == Reloaded(
                    changed=(
                        f"Server.VisitPort: {written(first, second)} -> {written(first, third)}",
                    )
                )
                await other.process.next_event("disconnected", within=5)
                await other.wait_connected()
                assert other.port() == third
                async with visiting(other):
                    assert not await is_open(second)
                    assert await running.ask(visitor, b"still") == b"still"
                server.write(VisitPort=[first, second, third])
                await server.reload()
                assert await is_open(second)
            await server.wait_record("visit ports changed", added=str(second))
        sessions = [r for r in client.records if r["event"] == "connected again"]
        assert not sessions


async def test_a_wrong_file_changes_nothing_and_says_why(
    echo_server: Service, tmp_path: Path
) -> None:
    first, taken = low_ports(2)
    async with serve(tmp_path / "s", VisitPort=first, VisitPortPolicy="require") as server:
        async with running.client(tmp_path / "1", server.ticket, echo_server) as client:
            async with visiting(client):
                server.write(VisitPort=[first, taken], MaxVisitors="many", DenyVisitors="127.0.0.1")
                code, outcome, _ = await server.try_reload()
                assert code == 2
                [problem] = outcome.problems
                assert f"{server.file}:3: Server.MaxVisitors: 'many'" in problem
                await server.wait_record(
                    "the configuration was not reloaded: nothing has changed", reason=problem
                )
                assert not await is_open(taken)
            async with visiting(client):  # nobody is denied
                pass


async def test_a_port_that_cannot_be_had_changes_nothing(
    echo_server: Service, tmp_path: Path
) -> None:
    first, free, taken = low_ports(3)
    async with serve(tmp_path / "s", VisitPort=first, VisitPortPolicy="require") as server:
        async with running.client(tmp_path / "1", server.ticket, echo_server) as client:
            [listener] = await trio.open_tcp_listeners(taken, host="127.0.0.1")
            async with listener, visiting(client):
                keys: dict[str, Any] = {"DenyVisitors": "127.0.0.1"}
                server.write(VisitPort=[first, free, taken], VisitPortPolicy="require", **keys)
                code, outcome, _ = await server.try_reload()
                assert code == 2
                assert f"cannot listen on 127.0.0.1:{taken}" in outcome.problems[0]
                assert not await is_open(free)
            async with visiting(client):
                pass
            server.write(VisitPort=[first, free, taken], VisitPortPolicy="require")
            await server.reload()
            assert await is_open(taken)


async def test_a_port_that_may_be_left_out_is_told(tmp_path: Path) -> None:
    first, free, taken = low_ports(3)
    async with serve(tmp_path / "s", VisitPort=first) as server:
        [listener] = await trio.open_tcp_listeners(taken, host="127.0.0.1")
        async with listener:
            server.write(VisitPort=[first, free, taken])
            outcome = await server.reload()
            [warning] = outcome.warnings
            assert warning.startswith(
                f"visit ports are left out (VisitPortPolicy): {taken}: cannot listen on 127.0.0.1:{taken}: "
            )
            assert await is_open(free)
            done = await services.run_trionat("reload", "--state-dir", server.state)
            assert (done.returncode, done.stdout) == (0, b"nothing has changed\n")
            assert done.stderr.decode() == f"trionat: {warning}\n"
        assert (await server.reload()).warnings == ()
        assert await is_open(taken)


async def test_lists_and_limits_count_at_once_and_the_rest_is_named(
    echo_server: Service, tmp_path: Path
) -> None:
    [port] = low_ports(1)
    async with serve(tmp_path / "s", VisitPort=port) as server:
        async with running.client(tmp_path / "1", server.ticket, echo_server) as client:
            async with visiting(client):
                server.write(
                    VisitPort=port,
                    DenyVisitors="127.0.0.0/8",
                    MaxVisitors=7,
                    Workers=2,
                    LogLevel="debug",
                    PagesDir="nowhere",
                    Domain="tunnel.example.com",
                )
                outcome = await server.reload()
                assert outcome.changed == (
                    "Server.LogLevel: INFO -> DEBUG",
                    "Server.DenyVisitors: nobody -> 127.0.0.0/8",
                )
                assert outcome.new_sessions == ("Server.MaxVisitors: 1024 -> 7",)
                assert set(outcome.restart) == {
                    "Server.Workers",
                    "Server.Domain",
                    "Server.PagesDir",
                }
                async with await client.visit() as refused:
                    assert await running.read_all(refused) == b""
                await server.wait_record("visitor refused")
                # A ping at the latest.
                await running.wait_until(
                    lambda: any(each["level"] == "debug" for each in server.records)
                )
            server.write(VisitPort=port)
            assert (await server.reload()).restart == ()
            async with visiting(client):
                pass


async def test_a_hangup_without_a_terminal_reloads(echo_server: Service, tmp_path: Path) -> None:
    first, second = low_ports(2)
    async with serve(tmp_path / "s", VisitPort=first) as server:
        async with running.client(tmp_path / "1", server.ticket, echo_server) as client:
            async with visiting(client):
                server.write(VisitPort=[first, second])
                os.kill(server.process.process.pid, signal.SIGHUP)
                await server.wait_record("configuration reloaded")
                assert await is_open(second)
                server.log_file.rename(tmp_path / "old.log")
                await trio.sleep(1.5)
                os.kill(server.process.process.pid, signal.SIGHUP)
                await server.wait_record("configuration reloaded")


async def test_it_reloads_by_itself_when_the_file_changes(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    first, second, third = low_ports(3)
    keys: dict[str, Any] = {"ReloadOnChange": True}
    async with serve(tmp_path / "s", VisitPort=first, **keys) as server:
        await trio.sleep(0.5)
        server.write(VisitPort=[first, second], **keys)
        await server.wait_record("configuration reloaded")
        assert await is_open(second)
        server.file.write_text("Server: [")  # an editor that writes in place
        await server.wait_record("the configuration was not reloaded: nothing has changed")
        server.write(VisitPort=[first, third], **keys)
        await server.wait_record("configuration reloaded", count=2)
        assert (await is_open(second), await is_open(third)) == (False, True)


@pytest.mark.parametrize("workers", [1, 2])
async def test_who_reloads_by_itself_ends_when_another_process_has_taken_its_place(
    workers: int, tmp_path: Path
) -> None:
    pytest.importorskip("watchfiles")
    first, second, third = low_ports(3)
    keys: dict[str, Any] = {"ReloadOnChange": True, "Workers": workers}
    async with (
        serve(tmp_path / "s", VisitPort=[first, second], **keys) as server,
        upgrading(server) as it,
    ):
        await it.upgrade()  # which waits for the end of the old one
        await trio.sleep(0.5)
        server.write(VisitPort=[first, third], **keys)
        await server.wait_record("configuration reloaded")
        assert await is_open(third)
        with trio.fail_after(5):  # workers close it when they hear of the change
            while await is_open(second):  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.02)


async def test_who_stays_for_visitors_after_an_upgrade_watches_no_file(tmp_path: Path) -> None:
    """Their TLS ends in the old process, which cannot read the configuration again."""
    pytest.importorskip("watchfiles")
    async with (
        services.websocket_echo() as chat,
        named.named_server(tmp_path / "s", "--reload-on-change") as at,
        upgrading(at.server) as it,
        running.client(tmp_path / "c", at.server.ticket, f"http:{chat.port}@chat"),
    ):
        name = f"chat.{named.DOMAIN}"
        async with await at.connect(name) as visitor:
            await visitor.send_all(
                f"GET / HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert (await visitor.receive_some()).startswith(b"HTTP/1.1 101")
            first, upgraded = it.pid, await it.try_upgrade()
            it.pid = json.loads(upgraded.stdout)["pid"]
            await trio.sleep(0.5)
            keys = {"CertificatesDir": str(tmp_path / "s" / "own"), "LogLevel": "debug"}
            write(tmp_path / "s" / "server.yml", "Server", **keys)
            await at.server.wait_record("configuration reloaded")
            await trio.sleep(0.5)
            assert is_there(first)
            events = [record["event"] for record in at.server.records]
            assert events.count("files have changed") == 1, at.server.log_text()


async def test_reloads_during_logins_other_reloads_and_a_stop(
    echo_server: Service, tmp_path: Path
) -> None:
    first, second = low_ports(2)
    async with serve(tmp_path / "s", VisitPort=[first, second]) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        async with one as client, visiting(client):
            codes: list[int] = []

            async def reload(ports: list[int]) -> None:
                server.write(VisitPort=ports)
                codes.append((await server.try_reload())[0])

            async def come(name: str) -> None:
                identity = ("--identity", name)
                async with running.client(
                    tmp_path / name, server.ticket, echo_server, *identity
                ) as other:
                    assert other.port() == second

            async with trio.open_nursery() as clients:
                for name in ("a", "b"):
                    clients.start_soon(come, name)
                async with trio.open_nursery() as nursery:
                    for ports in ([first], [first, second], [first], [first, second]):
                        nursery.start_soon(reload, ports)
                assert set(codes) <= {0, 2}
                # One that is still being given up is refused, for a moment.
                with trio.fail_after(10):
                    code = 2
                    while code:
                        server.write(VisitPort=[first, second])
                        code, _, _ = await server.try_reload()
            assert await is_open(second)
        os.kill(server.process.process.pid, signal.SIGTERM)
        server.ended = True
        code, outcome, said = await server.try_reload()
        assert code in (2, 3), (outcome, said)
        assert await server.process.wait(within=10) == 0


# --- clients ---


@asynccontextmanager
async def connect(
    folder: Path, ticket: str | None, *flags: str, **keys: object
) -> AsyncIterator[Client]:
    """Run a client by a file with these keys."""
    await trio.Path(folder).mkdir()
    file, log_file = folder / "client.yml", folder / "client.log"
    if ticket is not None:
        keys["Ticket"] = ticket
    write(file, "Client", **keys)
    async with services.trionat_process(
        *("connect", "--json", "--config", file, "--state-dir", folder / "state"),
        *("--log-name", log_file),
        *flags,
        stdin=b"",
        cwd=folder,
        inside=ANEW,
    ) as process:
        client = Client(log_file, process, file=file, ticket=ticket or "")
        await client.wait_connected()
        yield client
    client.check_end(*filter(None, [ticket]))


@attrs.define(eq=False)
class Client(running.Client):
    """A client with a file."""

    file: Path = attrs.field(kw_only=True)
    ticket: str = attrs.field(kw_only=True, repr=False)

    def reload(self, **keys: object) -> None:
        """Write the file anew, and have it read."""
        write(self.file, "Client", **{"Ticket": self.ticket, **keys})
        os.kill(self.process.process.pid, signal.SIGHUP)

    def ports(self) -> dict[str, int]:
        """Return the visit port of each service, by its local address."""
        services = self.connected["services"]
        return {each["local"]: self.port(number) for number, each in enumerate(services)}

    def sessions(self) -> int:
        """How often it has connected again."""
        return sum(record["event"] == "connected again" for record in self.records)


async def test_services_come_and_go_and_the_others_do_not_notice(tmp_path: Path) -> None:
    first, second, third = low_ports(3)
    async with (
        services.echo() as one,
        services.echo() as two,
        services.echo() as three,
        serve(tmp_path / "s", VisitPort=[first, second, third]) as server,
        connect(tmp_path / "c", server.ticket, Services=[str(one), f"{two}:{second}"]) as client,
    ):
        start = client.ports()
        async with await client.visit(1) as visitor, await client.visit(0) as leaving:
            assert await running.ask(visitor, b"before") == b"before"
            assert await running.ask(leaving, b"before") == b"before"
            client.reload(Services=[f"{three}:{third}", f"{two}:{second}"])
            await client.wait_connected()
            assert client.ports() == {str(two): second, str(three): third}
            assert await running.ask(visitor, b"after") == b"after"
            assert await running.ask(leaving, b"may finish") == b"may finish"
            async with await client.visit(0) as new, await client.visit(1) as newer:
                assert await running.ask(new, b"to the second") == b"to the second"
                assert await running.ask(newer, b"to the third") == b"to the third"
            async with await trio.open_tcp_stream(services.HOST, start[str(one)]) as refused:
                assert await running.read_all(refused) == b""
            client.reload(Services=[f"{one}:{third}", f"{two}:{second}"])  # it leads elsewhere
            await client.wait_connected()
            assert client.ports() == {str(two): second, str(one): third}
            async with await client.visit(1) as new:
                assert await running.ask(new, b"elsewhere") == b"elsewhere"
            assert await running.ask(visitor, b"still") == b"still"
            # The server is lost, and found again: it is told of the services that there are now.
            kick = await services.run_trionat("status", "--json", "--state-dir", server.state)
            assert [
                each["port"] for each in json.loads(kick.stdout)["sessions"][0]["services"]
            ] == [
                second,
                third,
            ]
        assert client.sessions() == 0
        [session] = [r for r in server.records if r["event"] == "session up"]
        assert session["ports"] == [start[str(one)], second]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
async def test_what_has_changed_outlives_an_upgrade(tmp_path: Path) -> None:
    first, second, third = low_ports(3)
    async with (
        services.echo() as one,
        services.echo() as two,
        services.echo() as three,
        serve(tmp_path / "s", VisitPort=[first, second]) as server,
        upgrading(server) as it,
        connect(tmp_path / "c", server.ticket, Services=[str(one), f"{two}:{second}"]) as client,
    ):
        server.write(VisitPort=[first, second, third])
        await server.reload()
        client.reload(Services=[f"{two}:{second}", f"{three}:{third}"])
        await client.wait_connected()
        async with await client.visit(0) as early, await client.visit(1) as late:
            assert await running.ask(early, b"before") == b"before"
            assert await running.ask(late, b"before") == b"before"
            await it.upgrade()
            assert await running.ask(early, b"after") == b"after"
            assert await running.ask(late, b"after") == b"after"
        assert client.ports() == {str(two): second, str(three): third}
        for number in (0, 1):
            async with await client.visit(number) as new:
                assert await running.ask(new, b"new") == b"new"
        # The process that serves now reads its configuration, too.
        server.write(VisitPort=[second, third])
        assert (await server.reload()).changed
        assert not await is_open(first)


async def test_what_the_server_refuses_changes_nothing(
    echo_server: Service, tmp_path: Path
) -> None:
    first, second, other = low_ports(3)
    async with (
        serve(tmp_path / "s", VisitPort=[first, second]) as server,
        connect(tmp_path / "c", server.ticket, Services=f"{echo_server}:{first}") as client,
    ):
        async with visiting(client):
            client.reload(Services=[f"{echo_server}:{second}", f"{echo_server}:{other}"])
            record = await client.wait_record(
                "the configuration was not reloaded: nothing has changed"
            )
            assert f"visit port {other} is not one that this server offers" in record["reason"]
            client.reload(Services="nonsense:x:y")
            await client.wait_record(
                "the configuration was not reloaded: nothing has changed", count=2
            )
        async with visiting(client):
            assert not await services_at(second)
        assert client.sessions() == 0


async def services_at(port: int) -> bool:
    """Tell whether somebody is served there."""
    async with await trio.open_tcp_stream(services.HOST, port) as visitor:
        try:
            await visitor.send_all(b"x")
            return bool(await visitor.receive_some())
        except trio.BrokenResourceError:
            return False


async def test_after_a_change_a_lost_client_gets_its_ports_and_visitors_back(
    tmp_path: Path,
) -> None:
    first, second = low_ports(2)
    async with (
        services.echo() as one,
        services.echo() as two,
        serve(tmp_path / "s", VisitPort=[first, second]) as server,
        connect(tmp_path / "c", server.ticket, Services=[f"{one}:{first}", str(two)]) as client,
    ):
        async with await client.visit(1) as visitor:
            assert await running.ask(visitor, b"before") == b"before"
            client.reload(Services=[str(two)])
            await client.wait_connected()
            assert client.ports() == {str(two): second}
            client.reload(Services=[str(two)], MinIdleTunnels=2)  # another session
            await client.process.next_event("disconnected", within=5)
            await client.wait_connected()
            assert client.ports() == {str(two): second}
            assert await running.ask(visitor, b"goes on") == b"goes on"
            async with visiting(client):
                pass
        await client.wait_record("connected again")
        assert client.sessions() == 1


async def test_ticket_and_server_change(echo_server: Service, tmp_path: Path) -> None:
    async with (
        serve(tmp_path / "a", VisitPort=low_ports(1)) as one,
        serve(tmp_path / "b", VisitPort=low_ports(1)) as two,
        connect(tmp_path / "c", one.ticket, Services=str(echo_server)) as client,
    ):
        async with visiting(client):
            pass
        client.ticket = two.ticket
        client.reload(Services=str(echo_server))
        await client.process.next_event("disconnected", within=5)
        await client.wait_connected()
        assert client.connected["server"] == two.ready["control"]
        async with visiting(client):
            pass


async def test_with_workers_the_client_connects_again(echo_server: Service, tmp_path: Path) -> None:
    first, second = low_ports(2)
    async with (
        serve(tmp_path / "s", VisitPort=[first, second], Workers=2) as server,
        connect(tmp_path / "c", server.ticket, Services=f"{echo_server}:{first}") as client,
    ):
        server.write(VisitPort=first, Workers=2, DenyVisitors="127.0.0.1", LogLevel="debug")
        assert (await server.reload()).restart == ()
        async with await client.visit() as refused:
            assert await running.read_all(refused) == b""
        server.write(VisitPort=[first, second], Workers=2)
        await server.reload()
        client.reload(Services=[f"{echo_server}:{first}", f"{echo_server}:{second}"])
        await client.process.next_event("disconnected", within=5)
        await client.wait_connected()
        async with visiting(client), await client.visit(1) as second_visitor:
            assert await running.ask(second_visitor, b"there") == b"there"


async def test_services_with_names_come_and_go(tmp_path: Path) -> None:
    async with (
        services.http() as web,
        named.named_server(tmp_path / "s") as there,
        connect(tmp_path / "c", there.server.ticket, Services=f"http:{web}@shop") as client,
    ):
        assert (await there.ask(f"shop.{named.DOMAIN}")).status == 200
        client.reload(Services=[f"http:{web}@shop", f"http:{web}@blog"], BasicAuth="ann:secret")
        await client.wait_connected()
        shown = {each["public"] for each in client.connected["services"]}
        assert shown == {there.url(f"{name}.{named.DOMAIN}", "") for name in ("shop", "blog")}
        for name in ("shop", "blog"):
            host = f"{name}.{named.DOMAIN}"
            assert (await there.ask(host)).status == 401
            assert (await there.ask(host, "/", "--user", "ann:secret")).status == 200
        client.reload(Services=[f"http:{web}@blog"], BasicAuth="ann:secret")
        await client.wait_connected()
        assert (await there.ask(f"shop.{named.DOMAIN}")).status == 404
        assert client.sessions() == 0


async def test_the_service_manager_hears_when_a_reload_begins_and_ends(tmp_path: Path) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)

        def hear(expected: str) -> None:
            while (word := told.recv(4096).decode()).startswith("STATUS="):
                pass
            assert word.startswith(expected)

        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        keys: dict[str, Any] = {"VisitPort": low_ports(1)}
        async with serve(tmp_path / "s", environ=environ, **keys) as server:
            await trio.to_thread.run_sync(hear, "READY=1")
            for change in (keys, {"VisitPort": "wrong"}):
                server.write(**change)
                os.kill(server.process.process.pid, signal.SIGHUP)
                await trio.to_thread.run_sync(hear, "RELOADING=1\nMONOTONIC_USEC=")
                await trio.to_thread.run_sync(hear, "READY=1")


async def test_another_certificate_is_shown_to_those_who_come(
    echo_server: Service, tmp_path: Path
) -> None:
    pytest.importorskip("anycorn")
    maker = Maker()
    keys: dict[str, Any] = {
        "ConsoleAddr": "0.0.0.0:0",
        "Certificate": str(tmp_path / "c.pem"),
        "CertificateKey": str(tmp_path / "k.pem"),
    }

    def renew() -> str:
        key, chain = maker.chain("localhost")
        (tmp_path / "c.pem").write_bytes(chain)
        (tmp_path / "k.pem").write_bytes(key)
        return format_fingerprint(fingerprint(first_certificate(chain.decode())))

    first = renew()
    async with serve(tmp_path / "s", VisitPort=low_ports(1), **keys) as server:
        console = "127.0.0.1", urlsplit(server.ready["console"]).port
        assert server.ready["fingerprint"] == first
        assert {await shown_by(server.control), await shown_by(console)} == {first}
        second = renew()
        await server.reload()
        assert {await shown_by(server.control), await shown_by(console)} == {second}
        (tmp_path / "k.pem").write_bytes(maker.chain("other")[0])
        code, outcome, _ = await server.try_reload()
        assert code == 2
        assert "cannot use the certificate" in outcome.problems[0]
        assert {await shown_by(server.control), await shown_by(console)} == {second}


async def shown_by(address: tuple[str, int]) -> str:
    """Return the fingerprint of the certificate that is shown there."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = await trio.open_tcp_stream(*address)
    encrypted = trio.SSLStream(stream, context, https_compatible=True)
    async with encrypted:
        await encrypted.do_handshake()
        certificate = encrypted.getpeercert(binary_form=True)
        assert certificate is not None
        return format_fingerprint(hashlib.sha256(certificate).digest())


async def test_a_client_reloads_by_itself_when_its_ticket_file_changes(
    echo_server: Service, tmp_path: Path
) -> None:
    pytest.importorskip("watchfiles")
    first, second = low_ports(2)
    ticket = tmp_path / "ticket"
    keys: dict[str, Any] = {"TicketFile": str(ticket), "Services": str(echo_server)}
    async with (
        serve(tmp_path / "a", VisitPort=first) as one,
        serve(tmp_path / "b", VisitPort=second) as two,
    ):
        ticket.write_text(one.ticket)
        async with connect(tmp_path / "c", None, ReloadOnChange=True, **keys) as client:
            assert client.port() == first
            await trio.sleep(0.5)
            new = ticket.with_suffix(".new")
            new.write_text(two.ticket)
            new.rename(ticket)
            await client.process.next_event("disconnected", within=10)
            await client.wait_connected()
            assert client.port() == second
            async with visiting(client):
                pass
