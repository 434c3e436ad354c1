"""Clients of the Go program at a real `trionat serve`, in both of their dialects. Most tests share one server process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import legacy_peers, raw_path, running, services
from tests.e2e.legacy_peers import (
    HOST,
    Dialect,
    Id,
    LegacyClient,
    in_both_dialects,
    running_client,
)
from tests.e2e.running import ask, end_of, name_of, read_all, read_exactly, reset
from trionat.address import parse_tcp_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.e2e.running import Logged
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(30)

PORTS = 8
RESERVATION = 5.0
HANDSHAKE_TIMEOUT = 1.0
SLACK = 3.0  # for a busy machine

NAME, PASSWORD = "王小明", "correct 🐴 battery staple"

BAD: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "protocol" / "vectors.json").read_text(encoding="utf-8")
)["bad"]

both_dialects = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)


@attrs.frozen(kw_only=True)
class Site:
    """A server that lets legacy clients in."""

    server: Logged
    ready: dict[str, Any] = attrs.field(repr=False)
    state: Path

    def client(
        self, dialect: Dialect, service: Service | None = None, **others: Any
    ) -> LegacyClient:
        """Return a client of it that does not run yet."""
        control, tunnel = (parse_tcp_address(self.ready[key]) for key in ("control", "tunnel"))
        login = {"username": NAME, "password": PASSWORD} | others
        return LegacyClient(
            dialect=dialect,
            control_address=(control.host, control.port),
            tunnel_address=(tunnel.host, tunnel.port),
            service=None if service is None else (service.host, service.port),
            **login,
        )

    @asynccontextmanager
    async def up(
        self, dialect: Dialect, service: Service | None = None, **others: Any
    ) -> AsyncIterator[LegacyClient]:
        """Run a client; it has its session when this yields, and is killed when this is left."""
        async with running_client(self.client(dialect, service, **others)) as client:
            await client.wait_session()
            yield client

    async def wait_lost(self, client: LegacyClient) -> None:
        """Wait until the server knows that a session is over."""
        await self.server.wait_record("session closed", session=client.uid)

    def user(self, *arguments: str, stdin: str = "") -> None:
        """Run `trionat user` on its accounts."""
        subprocess.run(
            services.trionat_command("user", *arguments, "--state-dir", self.state),
            input=stdin.encode(),
            env=services.trionat_environ(),
            check=True,
        )


def site_of(server: running.Server) -> Site:
    """Return a server of one test's own."""
    return Site(server=server, ready=server.ready, state=server.state)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("legacy")
    flags = ("--legacy-clients", "--port-reservation", str(RESERVATION))
    timeout = ("--handshake-timeout", str(HANDSHAKE_TIMEOUT))
    visit = ",".join(["0"] * PORTS)
    with running.standing_server(folder, *flags, *timeout, visit=visit) as (server, ready):
        site = Site(server=server, ready=ready, state=folder / "server")
        site.user("add", NAME, stdin=PASSWORD)
        yield site
    server.check_log(PASSWORD)


@both_dialects
async def test_services(
    dialect: Dialect,
    site: Site,
    http_server: Service,
    redis_server: Service,
    echo_server: Service,
) -> None:
    """HTTP, 64 MiB each way, Redis, and 50 visitors at once; and what the server says meanwhile, and how often."""
    async with site.up(dialect, http_server) as client:
        since = trio.current_time()
        await raw_path.check_http(client.visit)
        client.service = (HOST, redis_server.port)
        await raw_path.check_redis(client.visit)
        client.service = (HOST, echo_server.port)
        await raw_path.check_many(client.visit, count=50)
        await client.wait_heard(Id.KEEP_ALIVE, count=2)
        elapsed = trio.current_time() - since
        said = [message.id for message in client.heard]
        assert said[:2] == [Id.USER_AUTHENTICATION_SUCCESSFULLY, Id.USER_INFORMATION]
        assert said.count(Id.NEW_CONNECTION) == 1 + 4 + 1 + 50
        assert elapsed - 1.5 <= said.count(Id.KEEP_ALIVE) <= elapsed + 1
        assert set(said[2:]) == {Id.NEW_CONNECTION, Id.KEEP_ALIVE}


@asynccontextmanager
async def joining(client: LegacyClient) -> AsyncIterator[raw_path.Join]:
    """Yield what joins a visitor to a tunnel of `client`, both of them the test's."""
    async with AsyncExitStack() as streams:
        visitors = 0

        async def join() -> raw_path.Ends:
            nonlocal visitors
            visitors += 1
            visitor = await streams.enter_async_context(await client.visit())
            await visitor.send_all(b"early")
            await client.wait_heard(Id.NEW_CONNECTION, count=visitors)
            tunnel = await streams.enter_async_context(await client.open_tunnel())
            assert await read_exactly(tunnel, 5) == b"early"
            return visitor, tunnel

        yield join


@both_dialects
async def test_ends_of_streams(dialect: Dialect, site: Site) -> None:
    async with site.up(dialect) as client, joining(client) as join:
        await raw_path.check_half_close(join)
        await raw_path.check_resets(join)
        await raw_path.check_blocked_reader(join)


@both_dialects
async def test_tunnel_says_who_it_is_in_pieces(dialect: Dialect, site: Site) -> None:
    """What comes with the last byte of its frame is the visitor's already."""
    async with site.up(dialect) as client, await client.visit() as visitor:
        await client.wait_heard(Id.NEW_CONNECTION)
        async with await trio.open_tcp_stream(*client.tunnel_address) as tunnel:
            frame = legacy_peers.information_frame(dialect, client.uid, client.port)
            for position in range(len(frame) - 1):
                await tunnel.send_all(frame[position : position + 1])
                await trio.sleep(0.002)
            await tunnel.send_all(frame[-1:] + b"hello")
            assert await read_exactly(visitor, 5) == b"hello"


@both_dialects
async def test_first_come_first_served(dialect: Dialect, site: Site) -> None:
    """A visitor that left is passed over, and the tunnel that was meant for it finds nobody."""
    async with site.up(dialect) as client, AsyncExitStack() as streams:
        visitors = []
        for count, words in enumerate((b"gone", b"next", b"last"), start=1):
            visitor = await streams.enter_async_context(await client.visit())
            await visitor.send_all(words)
            visitors.append(visitor)
            await client.wait_heard(Id.NEW_CONNECTION, count=count)
        reset(visitors[0])
        for words in (b"next", b"last"):
            tunnel = await streams.enter_async_context(await client.open_tunnel())
            assert await read_exactly(tunnel, 4) == words
        async with await client.open_tunnel() as tunnel:
            assert await end_of(tunnel) == "end"


async def test_who_is_refused(site: Site) -> None:
    """A wrong password, an unknown name, an account that has expired; and one that ends while it is used."""
    await trio.to_thread.run_sync(partial(site.user, "add", "bob", stdin=PASSWORD))
    async with site.up(Dialect.NAT_V1) as lost:
        pass
    await site.wait_lost(lost)
    async with AsyncExitStack() as clients:
        inside = [
            await clients.enter_async_context(site.up(dialect, username="bob"))
            for dialect in Dialect
        ]
        assert lost.port not in [client.port for client in inside]  # that is another user's
        await trio.to_thread.run_sync(site.user, "expire", "bob", "2020-01-31")
        with trio.fail_after(5 + SLACK):
            for client in inside:
                assert await client.wait_outcome() in ("closed", "reset")
                await site.wait_lost(client)

    async def is_sent_away(client: LegacyClient) -> None:
        async with running_client(client):
            assert await client.wait_outcome() == "auth-fail"
            assert [message.id for message in client.heard] == [Id.AUTH_FAIL]

    logins = [(NAME, "wrong"), ("nobody", PASSWORD), ("bob", PASSWORD)]
    tries = enumerate(itertools.product(Dialect, logins), start=10)
    async with trio.open_nursery() as nursery:
        for number, (dialect, (username, password)) in tries:
            # Addresses of their own: the next failure of the same one is answered later.
            source = f"127.0.0.{number}"
            client = site.client(dialect, username=username, password=password, source=source)
            nursery.start_soon(is_sent_away, client)
    wrong = "authentication failed: wrong name or password"
    await site.server.wait_record("connection closed", reason=wrong, level="info", count=4)
    reason = "the account bob has expired"
    await site.server.wait_record("connection closed", reason=reason, level="info", count=2)


@both_dialects
async def test_two_clients_of_one_user_behind_one_address(
    dialect: Dialect, site: Site, echo_server: Service
) -> None:
    """Both work; the one that is lost comes back to its own port, and does not disturb the other."""
    async with (
        site.up(dialect, echo_server) as other,
        await other.visit() as witness,
        AsyncExitStack() as lives,
    ):
        ports = set()
        for _ in range(3):
            client = await lives.enter_async_context(site.up(dialect, echo_server))
            ports.add(client.port)
            for port in (client.port, other.port):
                async with await trio.open_tcp_stream(HOST, port) as visitor:
                    assert await ask(visitor, b"hello") == b"hello"
            client.kill()
            await site.wait_lost(client)
        assert len(ports) == 1
        assert other.port not in ports
        assert await ask(witness, b"still here") == b"still here"


@both_dialects
async def test_port_waits_for_a_client_that_was_killed(
    dialect: Dialect, site: Site, echo_server: Service
) -> None:
    """Other ports are free besides; visitors that came in between are served after all, first come first served."""
    async with site.up(dialect, echo_server) as client:
        async with await client.visit() as served:
            assert await ask(served, b"hello") == b"hello"
            client.kill()
            await end_of(served)  # by the kernel's hand, which says FIN where nothing is unread
        await site.wait_lost(client)
        async with AsyncExitStack() as streams:
            waiting = [await streams.enter_async_context(await client.visit()) for _ in range(3)]
            for visitor in waiting:
                await visitor.send_all(b"anybody?")
                await visitor.send_eof()
            async with (
                site.up(dialect, source="127.0.0.3") as stranger,
                site.up(dialect, echo_server) as again,
            ):
                assert stranger.port != client.port  # it is not for somebody at another address
                assert again.port == client.port
                assert again.uid != client.uid
                for visitor in waiting:
                    assert await read_all(visitor) == b"anybody?"


async def test_native_and_legacy_side_by_side(
    site: Site, echo_server: Service, tmp_path: Path
) -> None:
    """On the same ports of one server; and no tunnel gets to a visitor that is not its client's."""
    async with (
        running.client(tmp_path / "c", site.ready["ticket"], echo_server) as native,
        site.up(Dialect.NAT_DOC) as doc,
        site.up(Dialect.NAT_V1) as v1,
    ):
        assert len({native.port(), doc.port, v1.port}) == 3
        async with await native.visit() as visitor:
            assert await ask(visitor, b"hello") == b"hello"

        async def keep_others_out(client: LegacyClient) -> None:
            async with await client.visit() as visitor:
                await client.wait_heard(Id.NEW_CONNECTION)
                strangers = [
                    (9999, client.port, HOST),  # nobody's
                    (0, client.port, HOST),
                    (-1, client.port, HOST),
                    (native.connected["uid"], native.port(), HOST),
                    (client.uid, client.port, "127.0.0.2"),
                ]
                async with trio.open_nursery() as nursery:
                    for uid, port, source in strangers:
                        frame = legacy_peers.information_frame(client.dialect, uid, port)
                        nursery.start_soon(is_refused, site, client, source, frame, str(uid))
                async with await client.open_tunnel() as tunnel:
                    await tunnel.send_all(b"at last")
                    assert await read_exactly(visitor, 7) == b"at last"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_others_out, doc)
            nursery.start_soon(keep_others_out, v1)
        # Two of one user and address: each has visitors of its own.
        async with await doc.visit() as visitor:
            await doc.wait_heard(Id.NEW_CONNECTION, count=2)
            async with await v1.open_tunnel() as tunnel:
                assert await end_of(tunnel) == "end"
            async with await doc.open_tunnel() as tunnel:
                await tunnel.send_all(b"mine")
                assert await read_exactly(visitor, 4) == b"mine"


async def is_refused(
    site: Site, client: LegacyClient, source: str, frame: bytes, expected: str
) -> None:
    """Check that a tunnel that begins so is closed, with a quiet line that has the expected words."""
    before = len(site.server.records)
    tunnel = await trio.open_tcp_stream(*client.tunnel_address, local_address=source)
    async with tunnel:
        name = name_of(tunnel)
        await tunnel.send_all(frame + b"stolen")
        await end_of(tunnel)
        record = await site.server.wait_record("connection closed", after=before, address=name)
        assert record["level"] == "info"
        assert expected in record["reason"]


async def test_bad_bytes(site: Site, echo_server: Service) -> None:
    await in_both_dialects(bad_bytes, site, echo_server)


async def bad_bytes(dialect: Dialect, site: Site, echo_server: Service) -> None:
    """Each costs its own connection and one line; a visitor is served all the while."""
    control, tunnel = (parse_tcp_address(site.ready[key]) for key in ("control", "tunnel"))
    inputs = [bytes.fromhex(v["bytes_hex"]) for v in BAD if v["dialect"] in ("any", dialect.value)]
    login = site.client(dialect)
    credentials = legacy_peers.credentials_frame(
        dialect, legacy_peers.Credentials(login.username, login.password)
    )
    inputs += [  # good frames, but not in their place
        legacy_peers.frame(dialect, Id.KEEP_ALIVE),
        legacy_peers.frame(dialect, Id.AUTH_FAIL),
        credentials[:-1],
        legacy_peers.frame(dialect, Id.USER_INFORMATION, b""),
    ]

    async def send(data: bytes, port: int, source: str) -> None:
        before = len(site.server.records)
        async with await trio.open_tcp_stream(HOST, port, local_address=source) as stream:
            with suppress(trio.BrokenResourceError):  # it need not hear the rest
                await stream.send_all(data)
            with trio.fail_after(HANDSHAKE_TIMEOUT + SLACK):
                await end_of(stream)
            name = name_of(stream)
            record = await site.server.wait_record("connection closed", after=before, address=name)
            assert record["level"] == "info"
            assert record["reason"]
            assert "\n" not in record["reason"]
            lines = [r for r in site.server.records[before:] if r.get("address") == name]
            assert lines == [record]

    async with site.up(dialect, echo_server) as client, await client.visit() as visitor:
        over = trio.Event()

        async def keep_talking() -> None:
            while not over.is_set():
                with trio.fail_after(2):
                    assert await ask(visitor, b"still here?") == b"still here?"
                await trio.sleep(0.01)

        async with trio.open_nursery() as talking:
            talking.start_soon(keep_talking)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nonsense_in_a_session, dialect, site)
                for number, data in enumerate(inputs, 1):  # one address has but so many lines
                    for port in (control.port, tunnel.port):
                        nursery.start_soon(send, data, port, f"127.0.1.{number}")
            over.set()
        assert not client.outcome


async def nonsense_in_a_session(dialect: Dialect, site: Site) -> None:
    """It has nothing to say in a session: frames that a client may send are ignored, others end it."""
    async with site.up(dialect) as client:
        assert client.control is not None
        for message in (Id.KEEP_ALIVE, Id.USER_AUTHENTICATION_SUCCESSFULLY):
            await client.control.send_all(legacy_peers.frame(dialect, message))
        await client.wait_heard(Id.KEEP_ALIVE)
        assert not client.outcome
        await client.control.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.wait_outcome() in ("closed", "reset")
        await site.wait_lost(client)


@both_dialects
async def test_our_own_client(
    dialect: Dialect, site: Site, echo_server: Service, tmp_path: Path
) -> None:
    """`trionat connect --dialect` and `trionat serve` understand each other as well as either does others."""
    addresses = ("-c", site.ready["control"], "-t", site.ready["tunnel"])
    login = {"TRIONAT_AUTH_USERNAME": NAME, "TRIONAT_AUTH_PASSWORD": PASSWORD}
    arguments = ("--dialect", dialect.value, *addresses, str(echo_server))
    async with running.client_process(tmp_path / "c", *arguments, environ=login) as client:
        await client.wait_connected()
        await raw_path.check_many(client.visit, count=50)
        assert len(client.process.events) == 1


# --- servers of a test's own ---


async def test_refused_unless_the_key_is_set(echo_server: Service, tmp_path: Path) -> None:
    """On both ports; one warning, however many come, says which key it is."""
    async with running.server(tmp_path / "s") as server:
        site = site_of(server)

        async def log_in(client: LegacyClient) -> None:
            async with running_client(client):
                assert await client.wait_outcome() in ("closed", "reset")
                assert not client.heard

        async def open_tunnel(client: LegacyClient) -> None:
            async with await client.open_tunnel() as tunnel:
                await end_of(tunnel)

        async with trio.open_nursery() as nursery:
            for dialect in (*Dialect, *Dialect):
                client = site.client(dialect)
                nursery.start_soon(log_in, client)
                nursery.start_soon(open_tunnel, client)
        async with (
            running.client(tmp_path / "c", server.ticket, echo_server) as native,
            await native.visit() as visitor,
        ):
            assert await ask(visitor, b"hello") == b"hello"
        warnings = [record for record in server.records if record["level"] == "warning"]
        assert len(warnings) == 1
        assert "LegacyClients" in json.dumps(warnings)


async def test_queue(echo_server: Service, tmp_path: Path) -> None:
    await in_both_dialects(queue, echo_server, tmp_path)


async def queue(dialect: Dialect, echo_server: Service, tmp_path: Path) -> None:
    """One session and one place, and nobody has to log in: the third is told that it is full and comes again and again."""
    bounds = ("--max-tcp-conn-num", "1", "--max-conn-num", "1", "--port-reservation", "0.2")
    legacy = ("--legacy-clients", "--start-auth", "false")
    folder = tmp_path / dialect.value
    async with running.server(folder, *bounds, *legacy, visit="0,0") as server:
        site = site_of(server)

        def client(number: int) -> LegacyClient:
            # Addresses of their own: none of them can take over the lease of another.
            source = f"127.0.0.{number}"
            return site.client(dialect, echo_server, username=f"user {number}", source=source)

        first, second, third = map(client, (1, 2, 3))
        async with AsyncExitStack() as clients:
            await clients.enter_async_context(running_client(first))
            await first.wait_session()
            assert first.heard[0].id is Id.USER_INFORMATION  # it was not asked to log in
            await server.wait_record("session up", user="anonymity")

            await clients.enter_async_context(running_client(second))
            await server.wait_record("client queued", position=1)
            await clients.enter_async_context(running_client(third))
            await third.wait_heard(Id.CONNECTION_IF_FULL, count=2)
            assert not second.heard  # the queue is silent

            second.kill()  # and leaves its place at once
            await server.wait_record("client queued", position=1, count=2)
            assert Id.USER_INFORMATION not in [message.id for message in third.heard]
            first.kill()
            await third.wait_session()
            async with await third.visit() as visitor:
                assert await ask(visitor, b"my turn") == b"my turn"


async def test_drain(tmp_path: Path) -> None:
    """SIGTERM: a client of these dialects cannot be told, but its visitors may finish; then it is closed."""
    legacy = ("--legacy-clients", "--start-auth", "false")
    async with running.server(tmp_path / "s", *legacy, visit="0,0") as server:
        site = site_of(server)
        async with AsyncExitStack() as stack:
            clients, ends = [], []
            for dialect in Dialect:
                client = await stack.enter_async_context(site.up(dialect))
                join = await stack.enter_async_context(joining(client))
                clients.append(client)
                ends.append(await join())
            server.terminate()
            await server.wait_record("visit ports closed")
            for client in clients:
                with pytest.raises(OSError, match="connect"):
                    await client.visit()
            for visitor, tunnel in ends:
                await tunnel.send_all(b"the rest")
                await tunnel.send_eof()
                assert await read_all(visitor) == b"the rest"
            assert server.process.process.poll() is None
            for visitor, tunnel in ends:
                await visitor.send_all(b"thanks")
                await visitor.send_eof()
                assert await read_all(tunnel) == b"thanks"
            assert await server.wait(within=5) == 0
            for client in clients:
                assert await client.wait_outcome() == "closed"


async def test_server_that_is_killed(echo_server: Service, tmp_path: Path) -> None:
    """The clients see the end at once, and with the next server they are in again."""
    addresses = [f"{HOST}:{services.free_low_port()}" for _ in range(2)]
    visit = f"{services.free_low_port()},{services.free_low_port()}"
    legacy = ("--legacy-clients", "--start-auth", "false", "--tunnel-addr", addresses[1])
    for ending in ("killed", "interrupted"):
        async with running.server(
            tmp_path / "s", *legacy, control=addresses[0], visit=visit
        ) as server:
            site = site_of(server)
            async with AsyncExitStack() as stack:
                clients = []
                for dialect in Dialect:
                    client = await stack.enter_async_context(site.up(dialect, echo_server))
                    visitor = await stack.enter_async_context(await client.visit())
                    assert await ask(visitor, b"hello") == b"hello"
                    clients.append((client, visitor))
                if ending == "killed":
                    server.kill()
                    for client, visitor in clients:
                        assert await client.wait_outcome() in ("closed", "reset")
                        await end_of(visitor)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can cut a cable for one socket")
async def test_deadlines(echo_server: Service, tmp_path: Path) -> None:
    """Clients that are cut off are given up within 10 s, or at once for one who takes their place; visitors wait for 8 s."""
    legacy = ("--legacy-clients", "--start-auth", "false", "--port-reservation", "30")
    async with (
        running.server(tmp_path / "s", *legacy, visit=",".join("0" * PORTS)) as server,
        AsyncExitStack() as stack,
    ):
        site = site_of(server)
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def cut_off(dialect: Dialect, source: str) -> None:
            async with site.up(dialect, source=source) as client:
                assert client.control is not None
                legacy_peers.deafen(client.control)
                since = trio.current_time()
                await server.wait_record("session closed", session=client.uid, within=10 + SLACK)
                assert trio.current_time() - since < 10

        async def replaced(dialect: Dialect, source: str) -> None:
            async with site.up(dialect, source=source) as client:
                assert client.control is not None
                legacy_peers.deafen(client.control)
                await trio.sleep(4)
                async with site.up(dialect, echo_server, source=source) as again:
                    assert again.port == client.port
                    async with await again.visit() as visitor:
                        assert await ask(visitor, b"hello") == b"hello"

        async def nobody_comes(dialect: Dialect, source: str) -> None:
            async with site.up(dialect, source=source) as client, await client.visit() as visitor:
                await client.wait_heard(Id.NEW_CONNECTION)
                since = trio.current_time()
                await end_of(visitor)
                assert 7 < trio.current_time() - since < 8 + SLACK

        for number, dialect in enumerate(Dialect, start=1):
            for count, check in enumerate((cut_off, replaced, nobody_comes)):
                nursery.start_soon(check, dialect, f"127.0.{number}.{count + 1}")
