"""Visit ports come and go while a server of several processes runs: all of them know it, also one that dies in the middle."""

from __future__ import annotations

import os
import random
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import wait_until
from tests.e2e.test_reload import is_open, low_ports, serve, visiting, written
from tests.failover.test_workers import children, status, worker_of
from trionat.config.reload import Reloaded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(os.name != "posix", reason="several processes need Unix sockets"),
]


async def wait_closed(port: int) -> None:
    """Until nobody listens there: workers hear of it within a moment."""
    with trio.fail_after(5):
        while await is_open(port):  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)


async def test_visit_ports_come_and_go_in_all_workers(echo_server: Service, tmp_path: Path) -> None:
    first, second, third, fourth = low_ports(4)
    async with serve(tmp_path / "s", VisitPort=[first, second], Workers=2) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        async with one as client, visiting(client) as visitor:
            async with running.client(tmp_path / "2", server.ticket, echo_server) as other:
                assert other.port() == second
                workers = [await worker_of(server, each) for each in (client, other)]
                assert workers[0]["name"] != workers[1]["name"]
                server.write(VisitPort=[first, third], Workers=2)
                assert await server.reload() == Reloaded(
                    changed=(
                        f"Server.VisitPort: {written(first, second)} -> {written(first, third)}",
                    )
                )
                await other.process.next_event("disconnected", within=5)
                await other.wait_connected()
                assert other.port() == third
                async with visiting(other):
                    await wait_closed(second)
                    assert await running.ask(visitor, b"still") == b"still"
                # One that waits for a port gets the next that comes, whichever worker it waits at.
                async with services.trionat_process(
                    *("connect", server.ticket, "--json", str(echo_server), "--identity", "third"),
                    *("--state-dir", tmp_path / "3"),
                    stdin=b"",
                ) as late:
                    await late.next_event("queued", within=10)
                    server.write(VisitPort=[first, second, third, fourth], Workers=2)
                    await server.reload()
                    connected = await late.next_event("connected", within=10)
                    [service] = connected["services"]
                    port = int(service["public"].rpartition(":")[2])
                    assert port in {second, fourth}
                    async with await trio.open_tcp_stream(services.HOST, port) as stream:
                        assert await running.ask(stream, b"here") == b"here"
                    assert (await status(server))["server"]["ports_held"] == 3
                assert await is_open(second)
                assert await is_open(fourth)
            server.write(VisitPort=[first, third], Workers=2)
            await server.reload()
            await wait_closed(second)
            await wait_closed(fourth)
        assert not [each for each in client.records if each["event"] == "connected again"]


async def test_more_sessions_are_there_at_once(echo_server: Service, tmp_path: Path) -> None:
    """Also for a client that waits at a worker."""
    first, second = low_ports(2)
    keys: dict[str, Any] = {"VisitPort": [first, second], "Workers": 2}
    async with (
        serve(tmp_path / "s", MaxTCPConnNum=1, **keys) as server,
        running.client(tmp_path / "1", server.ticket, echo_server),
        services.trionat_process(
            *("connect", server.ticket, "--json", str(echo_server), "--identity", "late"),
            *("--state-dir", tmp_path / "2"),
            stdin=b"",
        ) as late,
    ):
        await late.next_event("queued", within=10)
        server.write(MaxTCPConnNum=2, **keys)
        await server.reload()
        await late.next_event("connected", within=5)


async def test_what_cannot_be_had_changes_nothing_in_any_worker(
    echo_server: Service, tmp_path: Path
) -> None:
    first, second, taken = low_ports(3)
    keys: dict[str, Any] = {"Workers": 2, "VisitPortPolicy": "require"}
    async with serve(tmp_path / "s", VisitPort=[first, second], **keys) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        two = running.client(tmp_path / "2", server.ticket, f"{echo_server}:{second}")
        async with one as client, two as other, visiting(client), visiting(other):
            with socket.create_server((services.HOST, taken)):
                server.write(VisitPort=[first, taken], DenyVisitors="127.0.0.1", **keys)
                code, outcome, _ = await server.try_reload()
                assert code == 2
                assert str(taken) in outcome.problems[0]
            for each in (client, other):
                async with visiting(each):
                    pass
            server.write(VisitPort=[first, second, taken], **keys)
            await server.reload()
            assert await is_open(taken)


async def test_a_worker_dies_before_it_has_heard_of_it(
    echo_server: Service, tmp_path: Path
) -> None:
    """The next one has the new configuration, and nothing of what was taken away."""
    first, second, third = low_ports(3)
    async with serve(tmp_path / "s", VisitPort=[first, second], Workers=2) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        two = running.client(tmp_path / "2", server.ticket, echo_server)
        async with one as client, two as other, visiting(client):
            assert other.port() == second
            victim = (await worker_of(server, other))["pid"]
            os.kill(victim, signal.SIGSTOP)
            try:
                server.write(VisitPort=[first, third], Workers=2)
                await server.reload()
                server.write(VisitPort=[first, second], Workers=2)
                code, outcome, _ = await server.try_reload()
                assert code == 2  # its client still has it
                assert str(second) in outcome.problems[0]
            finally:
                with suppress(
                    ProcessLookupError
                ):  # its parent has done it: the commands took longer than one may hang
                    os.kill(victim, signal.SIGKILL)
            await other.process.next_event("disconnected", within=10)
            await other.wait_connected()
            assert other.port() == third
            async with visiting(other):
                await wait_closed(second)
            server.write(VisitPort=[first, second, third], Workers=2)
            await server.reload()
            assert await is_open(second)


async def test_reloads_while_workers_die(echo_server: Service, tmp_path: Path) -> None:
    """Whatever comes between what, in the end all is as the last one says."""
    chance = random.Random(5)
    first, second, third = low_ports(3)
    async with serve(tmp_path / "s", VisitPort=[first, second], Workers=2) as server:
        one = running.client(tmp_path / "1", server.ticket, f"{echo_server}:{first}")
        two = running.client(tmp_path / "2", server.ticket, echo_server)
        async with one as client, two as other:
            for number in range(8):
                server.write(VisitPort=[first, (second, third)[number % 2]], Workers=2)
                if number in (2, 5):
                    pids = children(server.process.process.pid)
                    os.kill(chance.choice(pids), signal.SIGKILL)
                await server.try_reload()
                await trio.sleep(chance.random() / 4)
            code = 2
            with trio.fail_after(20):
                while code:  # one that is still being given up is refused, for a moment
                    code, _, _ = await server.try_reload()
            await wait_closed(second)

            async def answered(each: running.Client) -> bool:
                with trio.move_on_after(2):
                    async with await trio.open_tcp_stream(
                        services.HOST, first if each is client else third
                    ) as stream:
                        return await running.ask(stream, b"there") == b"there"
                return False

            for each in (client, other):
                with trio.fail_after(30):
                    while True:
                        try:
                            if await answered(each):
                                break
                        except (OSError, trio.BrokenResourceError, EOFError, AssertionError):
                            pass
                        await trio.sleep(0.1)
            await wait_until(lambda: len(children(server.process.process.pid)) == 2)
