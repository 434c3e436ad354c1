"""A server of several processes: clients spread over them, tunnels come to the right one, and one may die."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_exactly, wait_until
from tests.e2e.test_events import write_config
from tests.e2e.test_inside import Operator
from tests.e2e.test_limits import limit
from tests.e2e.test_older_peers import DATA, OPEN, attach, log_in
from tests.events.receiver import receiving
from tests.faults.proxy import Proxy, proxied
from tests.unit.test_router import client_hello

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service
    from tests.mariadb import MariaDB

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(os.name != "posix", reason="several processes need Unix sockets"),
]

WORKERS = ("--workers", "2")


def children(pid: int) -> list[int]:
    """The processes that a process has started, which are workers here."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


async def status(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await Operator(server.state)("status", "--json"))
    return found


async def worker_of(server: Server, client: Client) -> dict[str, Any]:
    """What the status says of the worker that has a client's session."""
    found = await status(server)
    number = (client.connected["uid"] - 1) % len(found["workers"])
    worker: dict[str, Any] = found["workers"][number]
    assert worker["state"] == "up"
    return worker


@asynccontextmanager
async def clients(
    server: Server, folder: Path, service: object, count: int
) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running.client(folder / f"client {number}", server.ticket, service)
            )
            for number in range(count)
        ]


async def check(client: Client) -> None:
    """Have several visitors at once served, which takes more tunnels than there are."""
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(_visit, client, f"visitor {number}".encode())


async def _visit(client: Client, text: bytes) -> None:
    async with await client.visit() as visitor:
        assert await ask(visitor, text) == text


async def test_clients_spread_and_their_tunnels_find_them(
    echo_server: Service, tmp_path: Path
) -> None:
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0,0,0") as server,
        clients(server, tmp_path, echo_server, 4) as four,
    ):
        found = await status(server)
        assert [worker["sessions"] for worker in found["workers"]] == [2, 2]
        assert {session["uid"] for session in found["sessions"]} == {
            client.connected["uid"] for client in four
        }
        assert found["server"]["ports_free"] == 0
        for client in four:
            await check(client)
        after = await status(server)
        assert sum(session["received"] for session in after["sessions"]) == 4 * 6 * len("visitor 0")
        text = await Operator(server.state)("status")
        assert "w1" in text
        assert "w2" in text
        tree = await Operator(server.state)("tasks")
        assert "worker w1" in tree
        assert "worker w2" in tree
        for client in four:
            assert f"session {client.connected['uid']} of trionat" in tree


async def test_kick_reaches_all_workers(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0") as server,
        clients(server, tmp_path, echo_server, 2) as both,
    ):
        operator = Operator(server.state)
        visitors: list[trio.SocketStream] = []
        for client in both:
            visitor = await client.visit()
            assert await ask(visitor, b"hello") == b"hello"
            visitors.append(visitor)
        numbers = [
            visitor["number"]
            for session in (await status(server))["sessions"]
            for visitor in session["visitors"]
        ]
        assert len(set(numbers)) == 2
        for number in numbers:
            assert await operator("kick", f"v{number}") == f"visitor v{number} is reset\n"
        for visitor in visitors:
            assert await end_of(visitor) == "reset"
            await visitor.aclose()
        said = await operator("kick", "trionat")
        assert said.splitlines() == [
            f"session {uid} is ended" for uid in sorted(client.connected["uid"] for client in both)
        ]
        for client in both:
            assert await client.wait() == 4
        assert (await status(server))["server"]["ports_free"] == 2


async def test_a_worker_is_killed(echo_server: Service, tmp_path: Path) -> None:
    """Its visitors' streams are lost; whoever comes meanwhile waits, and is served; others notice nothing."""
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0") as server,
        clients(server, tmp_path, echo_server, 2) as both,
    ):
        victim, other = both
        pid = (await worker_of(server, victim))["pid"]
        async with await victim.visit() as lost, await other.visit() as steady:
            assert await ask(lost, b"before") == b"before"
            assert await ask(steady, b"before") == b"before"
            os.kill(pid, signal.SIGKILL)
            killed = trio.current_time()
            served: list[float] = []

            async def visit(delay: float) -> None:
                await trio.sleep(delay)
                await _visit(victim, b"meanwhile")
                served.append(trio.current_time() - killed)

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(visit, number / 100)
                await end_of(lost)
                assert await ask(steady, b"meanwhile") == b"meanwhile"
                await victim.wait_connected()
            assert len(served) == 50
            assert await ask(steady, b"after") == b"after"
        found = await status(server)
        assert [worker["state"] for worker in found["workers"]] == ["up", "up"]
        assert [worker["sessions"] for worker in found["workers"]] == [1, 1]
        assert sum(worker["restarts"] for worker in found["workers"]) == 1
        again = await worker_of(server, victim)
        assert again["pid"] != pid
        assert again["restarts"] == 1
        await check(victim)
        await check(other)


async def test_a_killed_worker_is_back_within_two_seconds(
    echo_server: Service, tmp_path: Path
) -> None:
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        port, pid = client.port(), (await worker_of(server, client))["pid"]
        os.kill(pid, signal.SIGKILL)
        killed = trio.current_time()
        await client.wait_connected()
        assert trio.current_time() - killed < 2 * SLOWNESS
        assert client.port() == port


SLOWNESS = 2
"""How many times slower than an idle machine of two cores this one may be."""


async def test_a_client_that_comes_back_to_another_worker_is_told_to_be_back(
    echo_server: Service, tmp_path: Path
) -> None:
    """Its worker was killed, as is each that takes its place."""
    async with receiving() as receiver:
        config = write_config(tmp_path, receiver)
        async with (
            running.server(tmp_path, "--config", config, *WORKERS, visit="0,0") as server,
            clients(server, tmp_path, echo_server, 1) as (client,),
        ):
            up = (await receiver.wait_type("session.up"))["data"]
            victim = (await worker_of(server, client))["pid"]
            kept = {*children(server.process.process.pid)} - {victim}
            with trio.fail_after(40):
                while "session.back" not in {each["type"] for each in receiver.events}:
                    for pid in {*children(server.process.process.pid)} - kept:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)  # before it is up
                    await trio.sleep(0.02)
            back = (await receiver.wait_type("session.back"))["data"]
            assert (back["user"], back["points"]) == (up["user"], up["points"])
            assert back["uid"] % 2 != up["uid"] % 2, "it is at the same worker"
            await check(client)
            types = [each["type"] for each in receiver.events]
            assert types[types.index("session.up") :] == [
                "session.up",
                "session.lost",
                "session.back",
            ]


async def test_a_worker_hangs(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0") as server,
        clients(server, tmp_path, echo_server, 2) as both,
    ):
        victim, other = both
        pid = (await worker_of(server, victim))["pid"]
        os.kill(pid, signal.SIGSTOP)
        await check(other)
        await server.wait_record("a worker hangs: it is killed", within=10)
        await victim.wait_connected()
        await check(victim)
        await check(other)


async def test_the_parent_is_killed(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", *WORKERS) as server:
        workers = children(server.process.process.pid)
        assert len(workers) == 2
        server.kill()
        await wait_until(lambda: not any(map(_runs, workers)))


def _runs(pid: int) -> bool:
    try:
        return "trionat.server.workers" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


async def test_a_planned_stop(echo_server: Service, tmp_path: Path) -> None:
    """Visitors finish, clients are told, and no process is left. SIGTERM to all of them, as systemd sends it, is the same."""
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0") as server:
        workers = children(server.process.process.pid)
        async with clients(server, tmp_path, echo_server, 2) as both:
            streams = [await client.visit() for client in both]
            for visitor in streams:
                assert await ask(visitor, b"before") == b"before"
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
            server.terminate()
            for client in both:
                await client.process.next_event("draining")
                with pytest.raises(OSError, match=r".+"):
                    await trio.open_tcp_stream(services.HOST, client.port())
            for visitor in streams:
                assert await ask(visitor, b"during the stop") == b"during the stop"
                await visitor.aclose()
            assert await server.wait() == 0
        assert not any(map(_runs, workers))


async def test_connections_during_a_stop_are_closed(echo_server: Service, tmp_path: Path) -> None:
    """Up to the last moment the parent passes some on, to workers that have just ended; the server's log is looked at in the end."""
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0") as server,
        clients(server, tmp_path, echo_server, 2),
        trio.open_nursery() as nursery,
    ):
        host, port = server.ready["control"].rsplit(":", 1)
        greeting = client_hello("trionat")

        async def come() -> None:
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    async with await trio.open_tcp_stream(host, int(port)) as stream:
                        await stream.send_all(greeting)

        for _ in range(8):
            nursery.start_soon(come)
        await trio.sleep(0.5)
        server.terminate()
        assert await server.wait() == 0
        nursery.cancel_scope.cancel()


async def test_a_second_signal_stops_at_once(echo_server: Service, tmp_path: Path) -> None:
    """What is cut off does not look complete."""
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0") as server:
        workers = children(server.process.process.pid)
        async with clients(server, tmp_path, echo_server, 2) as both:
            streams = [await client.visit() for client in both]
            for visitor in streams:
                assert await ask(visitor, b"before") == b"before"
            server.terminate()
            for client in both:
                await client.process.next_event("draining")
            server.terminate()
            assert await server.wait(within=5) == 130
            for visitor in streams:
                assert await end_of(visitor) == "reset"
                await visitor.aclose()
        assert not any(map(_runs, workers))


async def test_a_client_that_comes_again_finds_its_visitors(
    echo_server: Service, tmp_path: Path
) -> None:
    """A new process of it has no route: it is sent to the worker at which its visitors wait."""
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0,0") as server,
        running.client(tmp_path / "steady", server.ticket, echo_server) as steady,
    ):
        async with running.client(tmp_path / "c", server.ticket, echo_server) as first:
            port, number = first.port(), first.connected["uid"] % 2
            assert number != steady.connected["uid"] % 2
            first.kill()
            await first.process.process.wait()
        # A third one takes the place of the lost session, so that the other worker would have least to do.
        async with (
            running.client(tmp_path / "third", server.ticket, echo_server),
            await trio.open_tcp_stream(services.HOST, port) as visitor,
            running.client(tmp_path / "c", server.ticket, echo_server) as again,
        ):
            assert again.port() == port
            assert again.connected["uid"] % 2 == number
            assert await ask(visitor, b"waited") == b"waited"
            await visitor.aclose()


async def test_streams_go_on_at_the_worker_that_has_them(
    echo_server: Service, tmp_path: Path
) -> None:
    """All connections of the clients are cut: each comes back to its worker, and its visitors go on where they were."""
    port = services.free_low_port()
    public = ("--public-addr", f"{services.HOST}:{port}")
    async with running.server(tmp_path / "s", *WORKERS, *public, visit="0,0") as server:
        proxy = Proxy(server.control, port)
        async with proxied(proxy), clients(server, tmp_path, echo_server, 2) as both:
            workers = [client.connected["uid"] % 2 for client in both]
            assert set(workers) == {0, 1}
            streams = [await client.visit() for client in both]
            for round_number in range(2):
                for visitor in streams:
                    assert await ask(visitor, b"before") == b"before"
                for passage in list(proxy.passages):
                    passage.reset()
                for client in both:
                    await client.wait_connected()
                assert [client.connected["uid"] % 2 for client in both] == workers, round_number
            for visitor in streams:
                assert await ask(visitor, b"after") == b"after"
                await visitor.aclose()


async def test_limits_of_a_user_hold_for_all_workers(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0,0,0") as server:
        await limit(server, "trionat", "--sessions", "2", "--visitors", "4", wait=False)
        async with (
            clients(server, tmp_path, echo_server, 2) as both,
            running.client_process(tmp_path / "third", server.ticket, str(echo_server)) as third,
        ):
            assert {client.connected["uid"] % 2 for client in both} == {0, 1}
            gone = await third.process.next_event("disconnected")
            assert "all the sessions that it may have" in gone["reason"]
            await trio.sleep(2.5)  # shares are dealt
            async with AsyncExitStack() as stack:
                served = 0
                for number in range(12):
                    visitor = await stack.enter_async_context(await both[number % 2].visit())
                    served += await _is_served(visitor)
                assert served == 4
                sessions = (await status(server))["sessions"]
                assert sum(len(session["visitors"]) for session in sessions) == 4


async def _is_served(visitor: trio.SocketStream) -> bool:
    try:
        await visitor.send_all(b"x")
        return await visitor.receive_some(1) == b"x"
    except trio.BrokenResourceError:
        return False


async def test_all_visitors_of_a_limit_may_be_at_one_worker(
    echo_server: Service, tmp_path: Path
) -> None:
    """What one does not need the other may give, after a second or two."""
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0") as server:
        await limit(server, "trionat", "--visitors", "4", wait=False)
        async with clients(server, tmp_path, echo_server, 2) as both, AsyncExitStack() as stack:
            served = 0
            with trio.fail_after(20):
                while served < 4:
                    visitor = await stack.enter_async_context(await both[0].visit())
                    served += await _is_served(visitor)
                    await trio.sleep(0.2)
            await trio.sleep(2)
            for client in both:
                async with await client.visit() as one_too_many:
                    assert not await _is_served(one_too_many)


async def test_bandwidth_and_quota_of_a_user(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0") as server:
        await limit(server, "trionat", "--bandwidth", "500k", wait=False)
        async with clients(server, tmp_path, echo_server, 2) as both:
            await trio.sleep(2)
            since = trio.current_time()
            async with trio.open_nursery() as nursery:
                for client in both:
                    nursery.start_soon(_there_and_back, client, 500_000)
            # 2 MB in all, and a quarter of a second in store.
            assert 3.5 < trio.current_time() - since < 6
            await limit(server, "trionat", "--bandwidth", "none", "--quota", "3M")
            await _there_and_back(both[0], 300_000)
            await _there_and_back(both[1], 300_000)
            for client in both:
                assert "used up" in (await client.process.next_event("disconnected"))["reason"]


async def _there_and_back(client: Client, size: int) -> None:
    async with await client.visit() as visitor, trio.open_nursery() as nursery:
        nursery.start_soon(visitor.send_all, bytes(size))
        await read_exactly(visitor, size)


async def test_clients_of_0_1_share_the_first_worker(tmp_path: Path, echo_server: Service) -> None:
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0") as server,
        running.client(tmp_path / "new", server.ticket, echo_server) as new,
    ):
        for _ in range(2):
            control, welcome = await log_in(server)
            assert welcome["uid"] % 2 == 1  # of the first one
            assert "route" not in welcome
            tunnel = await attach(server, welcome)
            [port] = welcome["ports"]
            async with await trio.open_tcp_stream(services.HOST, port) as visitor:
                await visitor.send_all(b"question")
                await tunnel.receive_only(OPEN)
                assert await tunnel.receive_data(8) == b"question"
                await tunnel.send(DATA, b"answer")
                assert await read_exactly(visitor, 6) == b"answer"
            tunnel.reset()
            control.reset()
        await check(new)


@pytest.mark.parametrize("dialect", ["nat-doc", "nat-v1"])
async def test_clients_of_nat_share_the_first_worker(
    echo_server: Service, tmp_path: Path, dialect: str
) -> None:
    legacy = {"TRIONAT_SERVER_LEGACY_CLIENTS": "true", "TRIONAT_SERVER_START_AUTH": "false"}
    async with running.server(tmp_path / "s", *WORKERS, visit="0,0", environ=legacy) as server:
        addresses = ("-c", server.ready["control"], "-t", server.ready["tunnel"])
        arguments = ("--dialect", dialect, *addresses, str(echo_server))
        async with (
            running.client_process(tmp_path / "a", *arguments) as one,
            running.client_process(tmp_path / "b", *arguments) as two,
        ):
            for client in (one, two):
                await client.wait_connected()
                assert client.connected["uid"] % 2 == 1
                await check(client)
            pid = (await status(server))["workers"][0]["pid"]
            os.kill(pid, signal.SIGKILL)
            for client in (one, two):
                await client.wait_connected()
                await check(client)


async def test_a_hangup_is_told_and_the_log_follows_its_name(
    echo_server: Service, tmp_path: Path
) -> None:
    anew = ["env", "--default-signal=HUP", "setsid"]  # whatever nohup(1) these tests run under
    async with (
        running.server(tmp_path / "s", *WORKERS, inside=anew) as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        for pid in (server.process.process.pid, *children(server.process.process.pid)):
            os.kill(pid, signal.SIGHUP)
        await server.wait_record("SIGHUP: the configuration is read again")
        server.log_file.rename(tmp_path / "old.log")
        await trio.sleep(1.5)
        await check(client)
        await server.wait_record("visitor closed", count=6)


async def test_tunnels_without_tls(echo_server: Service, tmp_path: Path) -> None:
    """Their first bytes tell whose they are."""
    plain = ("--tunnel-encryption", "none")
    async with (
        running.server(tmp_path / "s", *WORKERS, *plain, visit="0,0") as server,
        running.client(tmp_path / "a", server.ticket, echo_server, *plain) as one,
        running.client(tmp_path / "b", server.ticket, echo_server, *plain) as two,
    ):
        assert {one.connected["uid"] % 2, two.connected["uid"] % 2} == {0, 1}
        dialect = "native, tunnels not encrypted"
        await server.wait_record("session up", count=2, dialect=dialect)
        await check(one)
        await check(two)


async def test_guesses_are_counted_in_one_place(tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", *WORKERS, "--ban-after", "3") as server:
        address = (
            *("-c", server.ready["control"], "--fingerprint", server.ready["fingerprint"]),
            "8080",
        )
        for number in range(3):
            result = await services.run_trionat(
                *("connect", *address, "--state-dir", tmp_path / f"c{number}"),
                TRIONAT_AUTH_USERNAME="trionat",
                TRIONAT_AUTH_PASSWORD="wrong",
            )
            assert result.returncode == 4, result.stderr
        banned = (await status(server))["banned"]
        assert [each["network"] for each in banned] == ["127.0.0.1"]


async def test_accounts_in_mariadb(echo_server: Service, tmp_path: Path, mariadb: MariaDB) -> None:
    database = mariadb.new_database()
    config = tmp_path / "server.yml"
    config.write_text(
        f'Database:\n  Username: "{database.username}"\n  Password: "{database.password}"\n'
        f'  Host: "{database.host}"\n  DBName: "{database.db_name}"\n'
    )
    add = "insert into userInfo_userinfo (username, password) values ('ann', 'secret')"
    await trio.to_thread.run_sync(mariadb.sql, add, database.db_name)
    environ = {"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": "secret"}
    async with running.server(tmp_path / "s", *WORKERS, "--config", config, visit="0,0") as server:
        address = (
            *("-c", server.ready["control"], "-t", server.ready["control"]),
            *("--fingerprint", server.ready["fingerprint"], str(echo_server)),
        )
        async with (
            running.client_process(tmp_path / "a", *address, environ=environ) as one,
            running.client_process(tmp_path / "b", *address, environ=environ) as two,
        ):
            for client in (one, two):
                await client.wait_connected()
                await check(client)
            assert {one.connected["uid"] % 2, two.connected["uid"] % 2} == {0, 1}
            remove = "delete from userInfo_userinfo"
            await trio.to_thread.run_sync(mariadb.sql, remove, database.db_name)
            for client in (one, two):
                assert await client.wait() == 4


async def test_the_log_of_all_is_one(echo_server: Service, tmp_path: Path) -> None:
    debug = {"TRIONAT_LOG_LEVEL": "debug"}
    async with (
        running.server(tmp_path / "s", *WORKERS, visit="0,0", environ=debug) as server,
        clients(server, tmp_path, echo_server, 2) as both,
    ):
        for client in both:
            await check(client)
        for word in ("w1", "w2"):
            await server.wait_record("session up", worker=word)
            await server.wait_record("visitor closed", worker=word, count=6)
            await server.wait_record("frame received", worker=word, level="debug")


async def test_what_a_terminal_sends_is_for_the_parent(tmp_path: Path) -> None:
    """Ctrl-C in the first moments of a worker ended it with a traceback: it ignores signals only after its imports."""
    async with running.server(tmp_path / "s", *WORKERS, visit="0") as server:
        for pid in children(server.process.process.pid):
            assert os.getpgid(pid) == pid


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks there")
async def test_workers_do_not_inherit_passwords(tmp_path: Path) -> None:
    environ = {"TRIONAT_AUTH_PASSWORD": "in the environment", "HARMLESS": "stays"}
    async with running.server(tmp_path / "s", *WORKERS, visit="0", environ=environ) as server:
        workers = children(server.process.process.pid)
        assert len(workers) == 2
        for pid in workers:
            inherited = await trio.Path(f"/proc/{pid}/environ").read_bytes()
            assert b"HARMLESS=stays" in inherited
            assert b"in the environment" not in inherited


async def test_nothing_is_left_behind(echo_server: Service, tmp_path: Path) -> None:
    """Descriptors of the parent and of the workers, after sessions and visitors that came and went."""

    def descriptors(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    async with running.server(tmp_path / "s", *WORKERS, visit="0,0") as server:
        pids = [server.process.process.pid, *children(server.process.process.pid)]
        assert len(pids) == 3
        before: list[int] = []
        for _ in range(3):
            async with clients(server, tmp_path, echo_server, 2) as both:
                for client in both:
                    await check(client)
            await server.wait_record("ports are free again", count=2)
            await trio.sleep(0.5)
            before = before or [descriptors(pid) for pid in pids]
        assert [descriptors(pid) for pid in pids] == before
