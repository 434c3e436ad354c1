"""Servers and clients inside another Trio program, with real sockets: without a state folder, several at once, and where there is no Trio."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

import trionat
from trionat import system
from trionat.client.native.dialer import Server, ServerDialer
from trionat.config.events import WebhookConfig
from trionat.errors import StartupError
from trionat.store.backend import open_store
from trionat.store.base import User, new_ticket_salt
from trionat.transport.certificate import make_certificate
from trionat.transport.tls import server_context_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOPBACK = "127.0.0.1"
ANY_PORT = trionat.TCPAddress(LOOPBACK, 0)
SERVER = trionat.ServerConfig(
    controller_addr=ANY_PORT, tunnel_addr=ANY_PORT, visit_port=(0,), drain_grace=0
)


CLUSTER = trionat.ClusterConfig(
    redis="redis://127.0.0.1:1",
    node="a",
    node_addr=trionat.TCPAddress(LOOPBACK, 1),
    key_file=Path("cluster.key"),
)


@asynccontextmanager
async def shouting() -> AsyncIterator[trionat.Service]:
    """Run a service that sends back what comes, in capitals."""

    async def shout(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        await nursery.start(trio.serve_listeners, shout, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield trionat.Service(local=trionat.TCPAddress(LOOPBACK, port))
        nursery.cancel_scope.cancel()


async def answer_at(public: trionat.TCPAddress) -> bytes:
    async with await trio.open_tcp_stream(public.host, public.port) as visitor:
        await visitor.send_all(b"hello")
        return bytes(await visitor.receive_some())


def client_of(ready: trionat.Ready, service: trionat.Service) -> trionat.ClientConfig:
    return trionat.ClientConfig(ticket=ready.ticket, services=(service,), drain_grace=0)


async def test_two_servers_in_one_program() -> None:
    async with (
        shouting() as service,
        trionat.open_server(SERVER) as one,
        trionat.open_server(SERVER) as two,
    ):
        assert one.fingerprint != two.fingerprint
        assert one.ticket != two.ticket
        assert one.state_dir is two.state_dir is None
        async with (
            trionat.connect(client_of(one, service)) as first,
            trionat.connect(client_of(two, service)) as second,
        ):
            assert first.services[0].public.port == one.visit_ports[0]
            assert second.services[0].public.port == two.visit_ports[0]
            for client in (first, second):
                assert await answer_at(client.services[0].public) == b"HELLO"
        foreign = attrs.evolve(client_of(one, service), servers=(two.control,), once=True)
        with pytest.RaisesGroup(trionat.IdentityError):
            async with trionat.connect(foreign):
                pass


async def test_leaving_is_the_planned_stop() -> None:
    events: list[trionat.ClientEvent] = []
    async with shouting() as service:
        config = attrs.evolve(SERVER, drain_grace=5.0)
        async with trio.open_nursery() as nursery:
            async with trionat.open_server(config) as ready:
                up = trio.Event()

                def note(event: trionat.ClientEvent) -> None:
                    events.append(event)
                    if isinstance(event, trionat.Connected):
                        up.set()

                once = attrs.evolve(client_of(ready, service), once=True)
                client = trionat.Client(once, on_event=note)

                async def run() -> None:
                    with pytest.raises(trionat.SessionOverError):
                        await client.run()

                nursery.start_soon(run)
                await up.wait()
    assert any(isinstance(event, trionat.Draining) for event in events)


async def test_the_server_forgets_everything() -> None:
    async with trionat.open_server(SERVER) as before:
        pass
    async with trionat.open_server(SERVER) as after:
        assert after.first_password not in {None, before.first_password}
        assert after.fingerprint != before.fingerprint


PROGRAM = """
import os, sys, trio, trionat

written = []

def look(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and os.fspath(path) != os.devnull:
            written.append((event, str(path)))
    elif event in {"os.mkdir", "os.link", "os.rename", "tempfile.mkstemp"}:
        written.append((event, str(arguments[0])))
    elif event == "sqlite3.connect" and str(arguments[0]) != ":memory:":
        written.append((event, str(arguments[0])))

sys.addaudithook(look)
sys.dont_write_bytecode = True

async def main():
    any_port = trionat.TCPAddress("127.0.0.1", 0)
    server = trionat.ServerConfig(controller_addr=any_port, tunnel_addr=any_port, visit_port=(0,), drain_grace=0)
    async with trionat.open_server(server) as ready:
        services = (trionat.parse_service("9"),)
        for trusted in ({}, {"trust_on_first_use": True}):
            known = {"ticket": ready.ticket} if not trusted else {"controller_addr": ready.control}
            auth = trionat.AuthConfig(username=ready.first_user, password=ready.first_password)
            config = trionat.ClientConfig(services=services, drain_grace=0, **known, **trusted)
            async with trionat.connect(config, auth) as client:
                public = client.services[0].public
                async with await trio.open_tcp_stream(public.host, public.port) as visitor:
                    assert await visitor.receive_some() == b""

trio.run(main)
print(written)
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="has no files in memory")
def test_nothing_gets_to_the_disk(tmp_path: Path) -> None:
    home = str(tmp_path)
    environ = {**os.environ, "HOME": home, "XDG_STATE_HOME": home, "TRIONAT_STATE_DIR": home}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "more", "key"),
    [
        ({"domain": "tunnel.example.com"}, {}, "Server.Domain"),
        ({"console_addr": ANY_PORT}, {}, "Server.ConsoleAddr"),
        ({"workers": 2}, {}, "Server.Workers"),
        ({}, {"cluster": CLUSTER}, "Cluster"),
        (
            {},
            {"events": trionat.EventsConfig(webhooks=(WebhookConfig(url="http://127.0.0.1:1/"),))},
            "Events",
        ),
    ],
)
async def test_what_needs_a_folder_says_so(
    config: dict[str, Any], more: dict[str, Any], key: str
) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupError, match=f"^{key}: .* give ServerConfig a state_dir$")
    ):
        async with trionat.open_server(attrs.evolve(SERVER, **config), **more):
            pass


async def test_with_a_folder_of_its_own_it_keeps_everything(tmp_path: Path) -> None:
    config = attrs.evolve(SERVER, state_dir=tmp_path / "server")
    async with trionat.open_server(config) as before:
        assert before.state_dir == str(tmp_path / "server")
        with pytest.RaisesGroup(pytest.RaisesExc(StartupError, match="another trionat serve")):
            async with trionat.open_server(config):
                pass
    async with trionat.open_server(config) as after:
        assert (after.fingerprint, after.first_password) == (before.fingerprint, None)


async def test_a_server_of_a_configured_certificate(tmp_path: Path) -> None:
    key, certificate = make_certificate(("localhost", LOOPBACK))
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "certificate").write_bytes(certificate)
    config = attrs.evolve(
        SERVER, certificate=tmp_path / "certificate", certificate_key=tmp_path / "key"
    )
    async with shouting() as service, trionat.open_server(config) as ready:
        client = attrs.evolve(client_of(ready, service), ca_file=tmp_path / "certificate")
        async with trionat.connect(client) as connected:
            assert await answer_at(connected.services[0].public) == b"HELLO"


def test_a_certificate_in_memory_where_there_are_no_such_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server_context_of(b"".join(make_certificate()))
    with system.named_file(b"secret") as path:
        assert Path(path).parent == tmp_path
        assert os.name != "posix" or Path(path).stat().st_mode & 0o077 == 0
        assert Path(path).read_bytes() == b"secret"
    assert not list(tmp_path.iterdir())


async def test_a_store_in_memory_is_the_same_for_all_calls() -> None:
    """However many there are at once, and though some are cancelled."""
    async with open_store(None, None) as store:

        async def add(number: int) -> None:
            with trio.move_on_after(0 if number % 3 == 0 else 60):
                await store.add_user(
                    User(name=f"user {number}", password="", ticket_salt=new_ticket_salt())
                )

        await store.prepare()
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(add, number)
        names = {each.name for each in await store.list_users()}
        assert names >= {f"user {number}" for number in range(60) if number % 3}
    async with open_store(None, None) as store:
        assert await store.list_users() == []


async def test_a_client_without_a_folder_trusts_only_while_it_lives() -> None:
    async with trionat.open_server(SERVER) as one, trionat.open_server(SERVER) as two:
        dialer = ServerDialer(
            Server(control=one.control, tunnel=one.control, username="anybody"),
            5.0,
            None,
            trust_on_first_use=True,
        )
        (await dialer.connect(one.control)).close()
        with pytest.raises(trionat.IdentityError, match="WRONG SERVER"):
            await dialer.connect(two.control)


async def test_a_dialer_with_a_folder_knows_whom_another_one_trusted(tmp_path: Path) -> None:
    async with trionat.open_server(SERVER) as ready:
        server = Server(control=ready.control, tunnel=ready.control, username="anybody")
        for trusts in (True, False):
            dialer = ServerDialer(server, 5.0, lambda: tmp_path, trust_on_first_use=trusts)
            (await dialer.connect(ready.control)).close()
        with pytest.raises(trionat.IdentityError, match="does not check out"):
            await ServerDialer(server, 5.0, None).connect(ready.control)


# --- where there is no Trio ---


@pytest.mark.parametrize(
    ("begin", "caller", "instead"),
    [
        (lambda: trionat.serve(SERVER), "trionat.serve", "open_server"),
        (lambda: enter(trionat.open_server(SERVER)), "trionat.open_server", "open_server"),
        (lambda: enter(trionat.connect(trionat.ClientConfig())), "trionat.connect", "connect"),
        (lambda: trionat.Client(trionat.ClientConfig()).run(), "Client.run", "connect"),
    ],
)
def test_under_asyncio_one_line_says_what_to_do(
    begin: Callable[[], Any], caller: str, instead: str
) -> None:
    with pytest.raises(trionat.EventLoopError) as raised:
        asyncio.run(begin())
    assert (
        str(raised.value)
        == f"{caller} runs under Trio, and this is asyncio: write async with trionat.TrioThread(trionat.{instead}(...)) (docs/library.md)"
    )
    assert isinstance(raised.value, RuntimeError)


def test_without_any_loop_it_says_the_same() -> None:
    with pytest.raises(trionat.EventLoopError, match="and this is another event loop: write"):
        trionat.serve(SERVER).send(None)


async def enter(manager: Any) -> None:
    async with manager:
        pass


async def test_what_does_not_go_together_is_told() -> None:
    wrong = attrs.evolve(SERVER, visit_port=(), peer_timeout=1.0)
    with pytest.raises(trionat.ConfigError) as raised:
        await trionat.serve(wrong)
    assert [problem.key for problem in raised.value.problems] == [
        "Server.VisitPort",
        "Server.PeerTimeout",
    ]
    assert "ServerConfig: Server.VisitPort: there is no visit port" in str(raised.value)
    client = trionat.ClientConfig(
        services=(trionat.parse_service("1:5"), trionat.parse_service("2:5"))
    )
    with pytest.raises(trionat.ConfigError, match="two services ask for visit port 5"):
        await trionat.Client(client).run()
