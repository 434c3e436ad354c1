"""Several clients at one visit port, as processes: each has a service of its own, which says whose it is."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import read_all, read_exactly
from tests.e2e.test_limits import limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Client, Server

pytestmark = pytest.mark.limit(90)


@attrs.define(eq=False)
class Member:
    """A client and its service, which greets with the client's name, and echoes."""

    name: str
    nursery: trio.Nursery
    port: int = attrs.field(factory=services.free_low_port)
    client: Client = attrs.field(init=False)
    _service: trio.CancelScope = attrs.field(init=False)

    async def start_service(self) -> None:
        self._service = await self.nursery.start(self._serve)

    def stop_service(self) -> None:
        self._service.cancel()

    async def _serve(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with services.echo(login=self.name.encode(), port=self.port):
                task_status.started(scope)
                await trio.sleep_forever()


@attrs.define(eq=False)
class Group:
    server: Server
    members: list[Member] = attrs.field(factory=list)

    @property
    def port(self) -> int:
        ports = {member.client.port() for member in self.members}
        assert len(ports) == 1
        return ports.pop()

    async def visit(self) -> tuple[str, trio.SocketStream]:
        """Return who serves a visitor, or an empty text, and its connection; the caller closes."""
        stream = await trio.open_tcp_stream(services.HOST, self.port)
        with trio.fail_after(5):
            return (await stream.receive_some(1)).decode(), stream

    async def crowd(self, count: int, stack: AsyncExitStack) -> Counter[str]:
        """Let so many visitors come, and stay until the end of the stack; return how many each client has got."""
        served: Counter[str] = Counter()
        for _ in range(count):
            name, stream = await self.visit()
            await stack.enter_async_context(stream)
            served[name] += 1
        return served


@asynccontextmanager
async def group(folder: Path, names: str, *flags: str) -> AsyncIterator[Group]:
    """Run a server and a client for each letter; visit ports are two, so that a port of one's own would be noticed."""
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                running.server(folder / "s", *flags, visit="0,0")
            )
            made = Group(server)
            for name in names:
                member = Member(name, nursery)
                await member.start_service()
                member.client = await stack.enter_async_context(
                    running.client(folder / name, server.ticket, member.port, "--group", "web")
                )
                made.members.append(member)
            yield made
        nursery.cancel_scope.cancel()


async def status(server: Server) -> dict[str, Any]:
    done = await services.run_trionat("status", "--json", "--state-dir", server.state)
    return dict(json.loads(done.stdout))


async def test_visitors_are_spread_and_the_status_shows_the_group(tmp_path: Path) -> None:
    async with group(tmp_path, "abc") as web, AsyncExitStack() as stack:
        assert await web.crowd(9, stack) == {"a": 3, "b": 3, "c": 3}
        sessions = (await status(web.server))["sessions"]
        assert [session["group"] for session in sessions] == ["web"] * 3
        assert [len(session["visitors"]) for session in sessions] == [3, 3, 3]
        shown = await services.run_trionat("status", "--state-dir", web.server.state)
        assert f"Groups:\n  web of trionat at {web.port}: uid 1, 2, 3\n" in shown.stdout.decode()


async def test_a_client_that_is_killed_or_leaves_hurts_its_own_visitors_only(
    tmp_path: Path,
) -> None:
    async with group(tmp_path, "abc") as web, AsyncExitStack() as stack:
        by_name: dict[str, trio.SocketStream] = {}
        for _ in range(3):
            name, stream = await web.visit()
            by_name[name] = await stack.enter_async_context(stream)
        assert sorted(by_name) == ["a", "b", "c"]
        killed, leaves, stays = web.members
        killed.client.kill()
        leaves.client.terminate()
        await web.server.wait_record("the client is leaving")
        served = await web.crowd(4, stack)
        assert served == {"c": 4}
        for name in (leaves.name, stays.name):  # who leaves lets its visitor finish
            await by_name[name].send_all(b"still here")
            assert await read_exactly(by_name[name], 10) == b"still here"
        await by_name[leaves.name].send_eof()
        assert await read_all(by_name[leaves.name]) == b""
        assert await leaves.client.wait(within=5) == 0


async def test_a_service_that_is_down_is_left_out_while_it_is(tmp_path: Path) -> None:
    async with group(tmp_path, "ab") as web, AsyncExitStack() as stack:
        down, up = web.members
        down.stop_service()
        refused = 0
        for _ in range(4):  # until its client has noticed
            name, stream = await web.visit()
            await stream.aclose()
            refused += not name
        assert refused <= 1
        assert await web.crowd(4, stack) == {up.name: 4}
        [session] = [
            each for each in (await status(web.server))["sessions"] if each["services"][0]["down"]
        ]
        assert session["uid"] == down.client.connected["uid"]
        await down.start_service()
        await down.client.process.next_event("service-up", within=5)
        with trio.fail_after(5):
            while any(  # noqa: ASYNC110 - there is no event for it
                service["down"]
                for each in (await status(web.server))["sessions"]
                for service in each["services"]
            ):
                await trio.sleep(0.1)
        assert await web.crowd(4, stack) == {down.name: 4}


async def test_a_service_that_was_never_there_costs_no_visitor(tmp_path: Path) -> None:
    async with group(tmp_path, "a") as web, AsyncExitStack() as stack:
        nobody = services.free_low_port()
        async with running.client(
            tmp_path / "late", web.server.ticket, nobody, "--group", "web"
        ) as late:
            await late.process.next_event("service-down")
            await trio.sleep(0.1)
            assert await web.crowd(4, stack) == {"a": 4}


async def test_what_does_not_fit_is_told_in_words(tmp_path: Path) -> None:
    async with group(tmp_path, "a") as web:
        async with running.client_process(
            tmp_path / "other", web.server.ticket, "8080", "8081", "--group", "web"
        ) as other:
            problem = await other.process.next_event("disconnected", within=20)
            assert problem["reason"] == "the group web has 1 service, and this client 2"
            assert problem["retry_in"] is not None
            other.terminate()


# -- over several workers ---------------------------------------------------------------------------------------------

WORKERS = ("--workers", "2")

with_workers = pytest.mark.skipif(os.name != "posix", reason="several processes need Unix sockets")


def workers_of(found: dict[str, Any]) -> set[int]:
    """Return which workers have sessions of the group."""
    number = len(found["workers"])
    return {(each["uid"] - 1) % number for each in found["sessions"] if each["group"] == "web"}


@with_workers
async def test_all_clients_come_to_the_worker_that_has_the_group(tmp_path: Path) -> None:
    async with group(tmp_path, "abcd", *WORKERS) as web, AsyncExitStack() as stack:
        assert await web.crowd(8, stack) == {"a": 2, "b": 2, "c": 2, "d": 2}
        found = await status(web.server)
        assert len(workers_of(found)) == 1
        assert found["server"]["ports_free"] == 1
        shown = await services.run_trionat("status", "--state-dir", web.server.state)
        uids = ", ".join(str(session["uid"]) for session in found["sessions"])
        assert f"Groups:\n  web of trionat at {web.port}: uid {uids}\n" in shown.stdout.decode()
        leaves = web.members.pop()
        leaves.client.kill()
        await web.server.wait_record("session closed")
        assert sorted((await web.crowd(4, stack)).values()) == [1, 1, 2]
        says_so = web.members.pop()
        await stack.aclose()
        says_so.client.terminate()
        await web.server.wait_record("a client has left its group")
        assert await web.crowd(4, stack) == {"a": 2, "b": 2}


@with_workers
async def test_a_worker_that_is_killed_has_the_group_back(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", *WORKERS) as web, AsyncExitStack() as stack:
        port = web.port
        await web.crowd(3, stack)
        found = await status(web.server)
        [number] = workers_of(found)
        os.kill(found["workers"][number]["pid"], signal.SIGKILL)
        name, stream = await web.visit()  # it waits until one of them is back
        await stack.enter_async_context(stream)
        assert name in set("abc")
        for member in web.members:
            await member.client.wait_connected()
        assert web.port == port
        served = await web.crowd(5, stack)
        served[name] += 1
        assert served == {"a": 2, "b": 2, "c": 2}
        assert len(workers_of(await status(web.server))) == 1


@with_workers
async def test_who_waits_at_another_worker_is_sent_to_the_group_once_it_is_there(
    tmp_path: Path,
) -> None:
    """All ports are taken, so all of the group wait at first, at both workers; one gets the port when it is free."""
    async with (
        services.echo(login=b"x") as service,
        running.server(tmp_path / "s", *WORKERS, visit="0") as server,
        AsyncExitStack() as stack,
    ):
        first = await stack.enter_async_context(
            running.client(tmp_path / "first", server.ticket, service)
        )
        members = [
            await stack.enter_async_context(
                running.client_process(
                    *(tmp_path / f"member {number}", server.ticket, str(service)),
                    *("--group", "web"),
                )
            )
            for number in range(4)
        ]
        for member in members:
            await member.process.next_event("queued")
        assert len((await status(server))["queue"]) == 4
        first.terminate()
        for member in members:
            await member.wait_connected(within=10)
            assert member.port() == first.port()
        found = await status(server)
        assert [each["group"] for each in found["sessions"]] == ["web"] * 4
        assert len(workers_of(found)) == 1
        assert not found["queue"]


@with_workers
async def test_one_that_leaves_its_group_gives_its_place_up_wherever_it_comes(
    tmp_path: Path,
) -> None:
    async with group(tmp_path, "ab", *WORKERS) as web:
        leaves = web.members[0]
        leaves.client.kill()
        await web.server.wait_record("session closed")
        async with running.client(tmp_path / leaves.name, web.server.ticket, leaves.port) as alone:
            assert alone.port() != web.members[1].client.port()
            sessions = (await status(web.server))["sessions"]
            assert sorted(str(each["group"]) for each in sessions) == ["None", "web"]


@with_workers
async def test_each_client_counts_for_the_users_limit_of_sessions(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", *WORKERS) as web:
        await limit(web.server, "trionat", "--sessions", "2", wait=False)
        for flags in (("--group", "web"), ()):
            async with running.client_process(
                tmp_path / "third", web.server.ticket, "8080", *flags
            ) as third:
                gone = await third.process.next_event("disconnected", within=20)
                assert "all the sessions that it may have" in gone["reason"]
                third.terminate()
