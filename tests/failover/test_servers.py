"""Several servers for one client, as processes: who is dialled, and what becomes of a client and its visitors when a server goes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_exactly
from tests.faults.proxy import Proxy, proxied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(90)

AGAIN = 5.0
"""Seconds for a client to serve again elsewhere."""


@attrs.frozen
class Two:
    """Two servers with the same keys and accounts; `ticket` is good at both."""

    servers: dict[str, Server]

    @property
    def ticket(self) -> str:
        tickets = {server.ticket for server in self.servers.values()}
        return max(tickets)

    def of(self, client: Client) -> Server:
        """Return the one that has the client's session."""
        return self.servers[client.connected["server"]]

    def other(self, client: Client) -> str:
        """Return the address of the one that does not have it."""
        [other] = self.servers.keys() - {client.connected["server"]}
        return other


async def make_keys(folder: Path) -> Path:
    """Return a state folder with keys and the first account, as an operator copies it to the other machine."""
    async with running.server(folder) as server:
        return server.state


@asynccontextmanager
async def two_servers(
    folder: Path,
    *flags: str,
    hosts: tuple[str, str] = (services.HOST, services.HOST),
    visit: str = "0,0",
) -> AsyncIterator[Two]:
    """Run two servers, each of which names the other."""
    state = await make_keys(folder / "keys")
    addresses = [f"{host}:{services.free_low_port()}" for host in hosts]
    for name in addresses:
        shutil.copytree(state, folder / name / "state")
    first, second = addresses
    async with (
        running.server(
            folder / first, "--other-server", second, *flags, control=first, visit=visit
        ) as a,
        running.server(
            folder / second, "--other-server", first, *flags, control=second, visit=visit
        ) as b,
    ):
        yield Two({first: a, second: b})


async def talk(client: Client) -> None:
    """Show that visitors are served."""
    async with await client.visit() as visitor:
        assert await ask(visitor, b"anybody there?") == b"anybody there?"


async def test_a_killed_server_costs_its_client_a_moment(
    echo_server: Service, tmp_path: Path
) -> None:
    """The client goes to the other server; the one who talks to a visitor of the dead one hears of it at once."""
    async with services.handed_over() as (service, accepted), two_servers(tmp_path) as two:
        assert two.ticket.startswith("tn2_")
        async with running.client(
            tmp_path / "c", two.ticket, service, echo_server, "--min-idle-tunnels", 2
        ) as client:
            before = two.of(client)
            async with await client.visit() as visitor:
                await visitor.send_all(b"hi")
                peer = await accepted.receive()
                assert await read_exactly(peer, 2) == b"hi"
                before.kill()
                await client.wait_connected(within=AGAIN)
                assert two.of(client) is not before
                with trio.fail_after(AGAIN):
                    assert await end_of(peer) == "reset"
            closed = await client.wait_record("visitor closed")
            address = client.connected["server"]
            assert closed["reason"] == f"the session is at another server now, {address}"
            async with await client.visit(1) as visitor:
                assert await ask(visitor, b"anybody there?") == b"anybody there?"


@pytest.mark.parametrize("stopped", [0, 1])
async def test_a_server_that_hangs_holds_up_no_start(
    stopped: int, echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        server = list(two.servers.values())[stopped]
        server.process.process.send_signal(signal.SIGSTOP)
        try:
            async with running.client_process(
                tmp_path / "c", two.ticket, str(echo_server)
            ) as client:
                await client.wait_connected(within=9)  # ConnectTimeout is 10
                assert two.of(client) is not server
                await talk(client)
        finally:
            server.process.process.send_signal(signal.SIGCONT)


async def test_a_client_comes_back_to_the_server_that_has_its_streams(
    echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        first, second = two.servers
        proxy = Proxy(two.servers[first].control, services.free_low_port())
        async with (
            proxied(proxy),
            running.client_process(
                tmp_path / "c",
                two.ticket,
                str(echo_server),
                *("--server", f"{services.HOST}:{proxy.port},{second}"),
            ) as client,
        ):
            await client.wait_connected()
            if client.connected["server"] == second:
                two.servers[second].kill()
                await client.wait_connected(within=AGAIN)
            async with await client.visit() as visitor:
                for number in range(3):
                    assert await ask(visitor, b"hello %d" % number) == b"hello %d" % number
                    for passage in list(proxy.passages):
                        passage.reset()
                    await client.wait_connected(within=AGAIN)
                    assert client.connected["server"] != second
                    assert await ask(visitor, b"still here") == b"still here"


# --- a server that stops names another one ---


def told(client: Client) -> list[str]:
    return [event["event"] for event in client.process.events]


async def test_at_a_planned_stop_a_client_is_elsewhere_before_its_session_ends(
    echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        async with running.client(tmp_path / "c", two.ticket, echo_server) as client:
            before = two.of(client)
            async with await client.visit() as visitor:
                assert await ask(visitor, b"before") == b"before"
                before.terminate()
                await client.process.next_event("draining")
                await client.wait_connected(within=AGAIN)
                assert two.of(client) is not before
                await talk(client)
                for _ in range(5):  # who was there may finish
                    assert await ask(visitor, b"still here") == b"still here"
                    await trio.sleep(0.1)
                await visitor.send_eof()
                assert await running.read_all(visitor) == b""
            assert await before.wait(within=AGAIN) == 0
            closed = await before.wait_record("session closed")
            assert closed["reason"].endswith("the client has moved to another server")
            await talk(client)
            assert told(client) == ["connected", "draining", "connected"]
            assert client.port() in two.of(client).ready["visit_ports"]


async def test_a_client_without_visitors_moves_at_once(
    echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        async with running.client(tmp_path / "c", two.ticket, echo_server) as client:
            before = two.of(client)
            before.terminate()
            assert await before.wait(within=AGAIN) == 0
            assert "the client has moved to another server" in before.log_text()
            await client.wait_connected(within=AGAIN)
            await talk(client)
            assert told(client) == ["connected", "draining", "connected"]


async def test_the_server_that_is_named_need_not_be_known(
    echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        first, second = two.servers
        ticket = await ticket_of_one(two.servers[first], first)
        async with running.client(tmp_path / "c", ticket, echo_server) as client:
            assert client.connected["server"] == first
            two.servers[first].terminate()
            await client.wait_connected(within=AGAIN)
            assert client.connected["server"] == second
            await talk(client)


async def test_if_there_is_no_other_server_the_client_waits_for_its_own(
    echo_server: Service, tmp_path: Path
) -> None:
    control = f"{services.HOST}:{services.free_low_port()}"
    nobody = f"{services.HOST}:{services.free_low_port()}"
    flags = ("--other-server", nobody)
    async with running.server(tmp_path / "s", *flags, control=control) as server:
        async with running.client(tmp_path / "c", server.ticket, echo_server) as client:
            server.terminate()
            assert await server.wait(within=10) == 0
            gone = await client.process.next_event("disconnected", within=AGAIN)
            assert gone["reason"] == "the server stops"
            async with running.server(tmp_path / "s", *flags, control=control):
                await client.wait_connected(within=10)
                await talk(client)
                client.terminate()
                assert await client.wait() == 0


async def test_a_client_that_stops_while_it_moves_lets_all_visitors_finish(
    echo_server: Service, tmp_path: Path
) -> None:
    async with two_servers(tmp_path) as two:
        async with running.client(tmp_path / "c", two.ticket, echo_server) as client:
            before = two.of(client)
            async with await client.visit() as old:
                assert await ask(old, b"old") == b"old"
                before.terminate()
                await client.wait_connected(within=AGAIN)
                async with await client.visit() as new:
                    assert await ask(new, b"new") == b"new"
                    client.terminate()
                    await two.of(client).wait_record("the client is leaving")
                    for visitor in (old, new):
                        assert await ask(visitor, b"still here") == b"still here"
                        await visitor.send_eof()
                        assert await running.read_all(visitor) == b""
            assert await client.wait(within=AGAIN) == 0
            assert await before.wait(within=AGAIN) == 0


# --- where the servers are named ---


async def ticket_of_one(server: Server, address: str) -> str:
    """Return a ticket that names no other server."""
    printed = await services.run_trionat(
        *("user", "ticket", "trionat", "--state-dir", server.state, "--other-server", address)
    )
    ticket = printed.stdout.decode().strip()
    assert ticket.startswith("tn1_")
    return ticket


async def test_servers_and_ticket_may_come_from_different_places(
    echo_server: Service, tmp_path: Path
) -> None:
    """A ticket of one server in the environment, the list in the file."""
    async with two_servers(tmp_path) as two:
        first, second = two.servers
        ticket = await ticket_of_one(two.servers[first], first)
        file = tmp_path / "client.yml"
        file.write_text(f"Client:\n  Servers: [{first}, {second}]\n")
        async with running.client_process(
            tmp_path / "c",
            *(str(echo_server), "--config", file),
            environ={"TRIONAT_TICKET": ticket},
        ) as client:
            await client.wait_connected()
            before = two.of(client)
            await talk(client)
            before.kill()
            await client.wait_connected(within=AGAIN)
            assert two.of(client) is not before
            await talk(client)


async def test_a_user_s_ticket_names_the_servers_of_the_last_run(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as two:
        for server in two.servers.values():
            printed = await services.run_trionat(
                "user", "ticket", "trionat", "--state-dir", server.state
            )
            assert printed.stdout.decode().strip() == server.ticket


async def test_a_server_that_refuses_us_is_left_out(echo_server: Service, tmp_path: Path) -> None:
    """Its operator has renewed the ticket there only."""
    async with two_servers(tmp_path) as two:
        first, second = two.servers.values()
        await services.run_trionat(
            *("user", "ticket", "trionat", "--renew", "--state-dir", first.state)
        )
        async with running.client(tmp_path / "c", second.ticket, echo_server) as client:
            assert two.of(client) is second
            await talk(client)
            second.kill()
            await client.wait_record(
                "this server is not tried any more; others are left", within=AGAIN
            )
            lost = await client.process.next_event("disconnected", within=AGAIN)
            while not lost["reason"].startswith("cannot reach"):
                lost = await client.process.next_event("disconnected", within=AGAIN)
            assert lost["retry_in"] is not None


async def test_a_name_may_lead_to_several_machines(echo_server: Service, tmp_path: Path) -> None:
    """Every tunnel goes to the machine that has the session, and the client to another one when that is gone."""
    hosts, port = ("127.0.0.2", "127.0.0.3"), services.free_low_port()
    inside = names(tmp_path / "hosts", "twins.example", "127.0.0.1", *hosts, "::1")
    state = await make_keys(tmp_path / "keys")
    for host in hosts:
        shutil.copytree(state, tmp_path / host / "state")

    async def serve_many(server: Server) -> None:
        """Let more visitors come at once than there are idle tunnels, each with more than goes without a tunnel."""
        await server.wait_record("session up")
        question = bytes(200_000)
        async with AsyncExitStack() as stack:
            for _ in range(8):
                visitor = await stack.enter_async_context(
                    await trio.open_tcp_stream(server.control[0], server.ready["visit_ports"][0])
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(visitor.send_all, question)
                    assert await read_exactly(visitor, len(question)) == question

    public = ("--public-addr", f"twins.example:{port}")
    async with running.server(tmp_path / hosts[1], *public, control=f"{hosts[1]}:{port}") as first:
        async with (
            running.client(tmp_path / "c", first.ticket, echo_server, inside=inside) as client,
            # Its address comes first where one goes by the name.
            running.server(tmp_path / hosts[0], *public, control=f"{hosts[0]}:{port}") as second,
        ):
            assert first.ticket == second.ticket
            await serve_many(first)
            assert "session up" not in second.log_text()
            assert not failed_tunnels(client)
            first.kill()
            await client.wait_connected(within=AGAIN)
            await serve_many(second)
            # What was being opened when the machine went is lost with it; the other machine refuses nothing.
            assert all("connection lost" in reason for reason in failed_tunnels(client))
            client.terminate()
            assert await client.wait() == 0


def failed_tunnels(client: Client) -> list[str]:
    """Return why no tunnel could be opened, each time that it was told."""
    return [
        record["reason"]
        for record in client.records
        if record["event"].startswith("no tunnel can be opened")
    ]


def names(file: Path, name: str, *hosts: str) -> tuple[str, ...]:
    """Return what runs a program for which that name has all these addresses; skip the test where that takes more than we may."""
    file.write_text("".join(f"{host} {name}\n" for host in hosts))
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    inside = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(file))
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no mount namespaces here (unshare of util-linux)")
    return inside


# --- a server that is drained ---


async def drain(server: Server, *flags: str) -> list[dict[str, object]]:
    """Run `trionat drain` to its end; return what it has told."""
    done = await services.run_trionat("drain", "--json", "--state-dir", server.state, *flags)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_drained_server_sends_its_clients_to_the_other_one(
    workers: int, echo_server: Service, tmp_path: Path
) -> None:
    async with (
        two_servers(tmp_path, "--workers", str(workers), visit="0,0,0") as two,
        AsyncExitStack() as stack,
    ):
        first, second = two.servers
        one = two.servers[first]
        ticket = await ticket_of_one(one, first)
        clients = [
            await stack.enter_async_context(
                running.client(tmp_path / f"c{number}", ticket, echo_server)
            )
            for number in range(2)
        ]
        before = [await client.visit() for client in clients]
        for visitor in before:
            assert await ask(visitor, b"before") == b"before"
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                for client in clients:
                    await client.wait_connected(within=10)
                    assert client.connected["server"] == second
                    await talk(client)
                for visitor in before:  # nobody is cut off
                    assert await ask(visitor, b"still here") == b"still here"
                    await visitor.aclose()

            nursery.start_soon(leave)
            progress = await drain(one)
        assert (progress[0]["sessions"], progress[0]["done"]) == (2, False)
        assert (progress[-1]["sessions"], progress[-1]["done"]) == (0, True)
        assert any(each["moved"] == 2 for each in progress)
        for client in clients:
            assert told(client) == ["connected", "draining", "connected"]
        # It stays up, and lets nobody in: who comes is told where to go.
        async with running.client(tmp_path / "late", ticket, echo_server) as late:
            assert late.connected["server"] == second
            await talk(late)
        assert [each["done"] for each in await drain(one)] == [True]
        one.terminate()
        assert await one.wait(within=AGAIN) == 0


async def test_a_drained_server_keeps_who_has_nowhere_to_go(
    echo_server: Service, tmp_path: Path
) -> None:
    async with running.server(
        tmp_path / "s", control=f"127.0.0.1:{services.free_low_port()}"
    ) as server:
        async with running.client(tmp_path / "c", server.ticket, echo_server) as client:
            done = await services.run_trionat(
                "drain", "--timeout", "1.5", "--state-dir", server.state
            )
            assert done.returncode == 6
            first, second = done.stdout.decode().splitlines()
            assert first.startswith("this server knows no other one (Server.OtherServers)")
            assert second == "1 client left"
            await talk(client)
            server.terminate()
            assert await server.wait(within=AGAIN) == 0
            client.terminate()
            assert await client.wait() == 0


async def test_who_has_nowhere_to_go_keeps_its_visitors_when_its_connections_are_cut(
    echo_server: Service, tmp_path: Path
) -> None:
    """The other server that a drained one names is down: the client comes back to the drained one, and nobody notices."""
    other = f"{services.HOST}:{services.free_low_port()}"
    proxy = Proxy(target=("", 0), port=services.free_low_port())
    async with running.server(tmp_path / "s", "--other-server", other) as server:
        proxy.target = server.control
        printed = await services.run_trionat(
            *("user", "ticket", "trionat", "--state-dir", server.state),
            *("--public-addr", f"{services.HOST}:{proxy.port}"),
        )
        ticket = printed.stdout.decode().strip()
        async with (
            proxied(proxy),
            running.client(tmp_path / "c", ticket, echo_server) as client,
            await client.visit() as visitor,
        ):
            assert await ask(visitor, b"before") == b"before"
            done = await services.run_trionat(
                "drain", "--timeout", "1.5", "--state-dir", server.state
            )
            assert done.returncode == 6
            await client.process.next_event("draining")
            for _ in range(2):
                for passage in list(proxy.passages):
                    passage.reset()
                await visitor.send_all(b"still here?")
                await client.wait_connected(within=AGAIN)
                assert await read_exactly(visitor, 11) == b"still here?"
                await talk(client)
