"""Many of everything at one server: nothing is lost but what a configured bound refuses, and that is counted.

`nox -s load` runs it with the figures of docs/reliability.md and prints what it saw.
"""

from __future__ import annotations

import json
import random
import socket
import statistics
import sys
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.load.crowd import Crowd
from tests.load.figures import (
    BURST,
    MOST_VISITORS,
    SESSIONS,
    VISITORS,
    Belongings,
    allow_all_descriptors,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.e2e.running import Running, Server
    from tests.e2e.services import Service, TrionatProcess

pytestmark = [
    pytest.mark.limit(170),
    pytest.mark.timeout(200),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process has is read from /proc"),
]

PROCESSES: Final = 4
"""Of clients, so that none of them needs more than a part of what the server has."""

PATIENCE: Final = 12.0
"""Seconds of silence after which a visitor counts as lost: what it may wait for a tunnel (8 s), and a busy machine."""

HOME_WITHIN: Final = 75.0
"""Seconds for idle tunnels to go home: those that were not needed for 30 s, looked at every 30 s, and a busy machine."""

BACK_WITHIN: Final = 15.0
"""Seconds for all clients to be back at a server that is up: never more than 5 s between two tries, and a busy machine."""

MOST_PER_VISITOR: Final = 100 * 1024
"""Bytes of memory of one process for an idle visitor; it takes less than half."""


async def status(server: Server) -> dict[str, Any]:
    done = await services.run_trionat("status", "--json", "--state-dir", server.state)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def visitors_of(told: dict[str, Any]) -> int:
    return sum(len(session["visitors"]) for session in told["sessions"])


async def tasks(server: Server) -> int:
    done = await services.run_trionat("tasks", "--state-dir", server.state)
    return len(done.stdout.splitlines())


def belongings(process: Running) -> Belongings:
    return Belongings.of(process.process.process.pid)


# -- idle visitors ----------------------------------------------------------------------------------------------------


async def test_idle_visitors(tmp_path: Path, echo_server: Service) -> None:
    """As many as are wanted, or as a server lets in under this machine's limit: two descriptors each, in three quarters."""
    descriptors = allow_all_descriptors()
    count = min(VISITORS, (descriptors * 3 // 4 - 400) // 2)
    each = count // PROCESSES + 1
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            running.server(
                tmp_path / "s", "--max-visitors", str(each), visit=",".join("0" * PROCESSES)
            )
        )
        clients = [
            await stack.enter_async_context(
                running.client(
                    tmp_path / f"c{number}",
                    server.ticket,
                    echo_server,
                    *("--identity", f"c{number}", "--max-tunnels", each + 64),
                )
            )
            for number in range(PROCESSES)
        ]
        await trio.sleep(1)  # idle tunnels
        before, tasks_before = (
            [belongings(each) for each in (server, *clients)],
            await tasks(server),
        )
        crowd = stack.enter_context(Crowd())
        come = partial(crowd.come, [client.port() for client in clients], count)
        await trio.to_thread.run_sync(partial(come, most_waiting=400, patience=PATIENCE))
        assert (len(crowd.served), crowd.refused) == (count, 0)
        took = max(crowd.waits)
        await trio.sleep(5)
        during = [belongings(each) for each in (server, *clients)]
        await trio.to_thread.run_sync(partial(crowd.speak, "still here", patience=PATIENCE))
        told = await status(server)
        assert visitors_of(told) == count
        assert told["refused"] == {}

        more = [now.memory - then.memory for then, now in zip(before, during, strict=True)]
        at_server, at_clients = more[0] / count, sum(more[1:]) / count
        print(
            f"\n{count} idle visitors, {descriptors} descriptors allowed; the slowest was served after {took:.2f} s"
            f"\nserver: {before[0]}; with them: {during[0]}, {await tasks(server)} tasks"
            f"\none of {PROCESSES} clients: {before[1]}; with them: {during[1]}"
            f"\na visitor: {at_server / 1024:.0f} KiB at the server, {at_clients / 1024:.0f} KiB at its client"
        )
        assert max(at_server, at_clients) < MOST_PER_VISITOR
        assert during[0].descriptors - before[0].descriptors <= 2 * count + 64 * PROCESSES

        crowd.leave()
        began = trio.current_time()
        with trio.move_on_after(HOME_WITHIN):
            while belongings(server).descriptors > before[0].descriptors:  # noqa: ASYNC110 - polls
                await trio.sleep(1)
        print(f"{trio.current_time() - began:.0f} s after they left: {belongings(server)}")
        assert belongings(server).descriptors <= before[0].descriptors
        assert await tasks(server) <= tasks_before


# -- sessions ---------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Clients:
    """SESSIONS clients in a few processes (`clients.py`)."""

    programs: Sequence[TrionatProcess]

    async def wait_connected(self) -> dict[int, int]:
        """Wait for all of them to be connected (anew); return each one's port."""
        ports: dict[int, int] = {}
        for program in self.programs:
            for _ in range(SESSIONS // PROCESSES):
                event = await program.next_event("connected", within=BACK_WITHIN)
                ports[event["client"]] = event["port"]
        assert len(ports) == SESSIONS
        return ports


@asynccontextmanager
async def open_clients(ticket: str, folder: Path) -> AsyncIterator[Clients]:
    program = str(Path(__file__).with_name("clients.py"))
    each = SESSIONS // PROCESSES
    async with AsyncExitStack() as stack:
        yield Clients(
            [
                await stack.enter_async_context(
                    services.json_process(
                        [sys.executable, program, ticket, str(first), str(each), str(folder)],
                        environ=services.trionat_environ(),
                    )
                )
                for first in range(0, SESSIONS, each)
            ]
        )


def free_low_ports(count: int) -> str:
    """Return a range of ports that nobody listens on now, and that no outgoing connection can take."""
    for _ in range(100):
        first = random.randrange(20_000, 32_768 - count)
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.create_server((services.HOST, port)))
            except OSError:
                continue
        return f"{first}-{first + count - 1}"
    raise RuntimeError(f"no {count} free ports in a row")


async def serve_each(ports: Sequence[int]) -> float:
    """Have a visitor come to each port; return how long the slowest was on its way."""
    with Crowd() as crowd:
        come = partial(crowd.come, ports, len(ports), patience=PATIENCE)
        await trio.to_thread.run_sync(come)
        assert (len(crowd.served), crowd.refused) == (len(ports), 0)
        return max(crowd.waits)


async def test_sessions_come_back(tmp_path: Path) -> None:
    allow_all_descriptors()
    start = partial(
        running.server,
        tmp_path / "s",
        control=f"{services.HOST}:{services.free_low_port()}",
        visit=free_low_ports(SESSIONS),
    )
    began = trio.current_time()
    async with (
        start() as server,
        open_clients(server.ticket, tmp_path / "c") as clients,
    ):
        ports = await clients.wait_connected()
        up = trio.current_time() - began
        slowest = await serve_each(list(ports.values()))
        before = belongings(server)
        server.kill()
        await server.wait()
        async with start() as again:
            began = trio.current_time()
            assert await clients.wait_connected() == ports
            back = trio.current_time() - began
            slowest_again = await serve_each(list(ports.values()))
            assert (await status(again))["refused"].keys() <= {"no_client"}
            print(
                f"\n{SESSIONS} sessions, up after {up:.1f} s with the server: {before}"
                f"\nback at a new server after {back:.1f} s, at the same ports: {belongings(again)}"
                f"\nthe slowest of {SESSIONS} visitors: {slowest:.2f} s, and then {slowest_again:.2f} s"
            )


# -- visitors in one second -------------------------------------------------------------------------------------------


async def test_burst_at_one_port(tmp_path: Path, echo_server: Service) -> None:
    allow_all_descriptors()
    async with (
        running.server(tmp_path / "s", "--max-visitors", str(MOST_VISITORS)) as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        refused = await come_at_once(server, [client.port()])
        assert refused == {"MaxVisitors": BURST - MOST_VISITORS}


async def test_burst_at_many_ports(tmp_path: Path) -> None:
    allow_all_descriptors()
    async with (
        running.server(tmp_path / "s", visit=",".join("0" * SESSIONS)) as server,
        open_clients(server.ticket, tmp_path / "c") as clients,
    ):
        ports = await clients.wait_connected()
        refused = await come_at_once(server, list(ports.values()))
        # Handshakes are what it takes: a slow machine has not done all of them when visitors have waited long enough.
        assert refused.keys() <= {"VisitorWait"}


async def come_at_once(server: Server, ports: Sequence[int]) -> dict[str, int]:
    """Have BURST visitors come within a second; check that all that were not served are counted, and return by which bounds."""
    with Crowd() as crowd:
        come = partial(crowd.come, ports, BURST, seconds=0.9, patience=PATIENCE)
        took = await trio.to_thread.run_sync(come)
        assert len(crowd.served) + crowd.refused == BURST
        await trio.to_thread.run_sync(partial(crowd.speak, "still here", patience=PATIENCE))
        told = await status(server)
        print(
            f"\n{BURST} visitors at {len(ports)} ports in {took:.2f} s: {len(crowd.served)} served, {crowd.refused} refused;"
            f" half of them knew after {statistics.median(crowd.waits):.2f} s, all after {max(crowd.waits):.2f} s"
            f"\nrefused by {told['refused']}; server: {belongings(server)}"
        )
        assert visitors_of(told) == len(crowd.served)
    handshakes = {"MaxHandshakes", "MaxHandshakesPerAddress"}  # of tunnels, which are opened again
    refused: dict[str, int] = {
        bound: count for bound, count in told["refused"].items() if bound not in handshakes
    }
    assert sum(refused.values()) == crowd.refused
    await running.wait_until(lambda: in_log(server) == crowd.refused)
    with trio.fail_after(PATIENCE):
        while visitors_of(await status(server)):  # noqa: ASYNC110 - polls
            await trio.sleep(0.1)
    await serve_each(ports)  # there is room again
    return refused


def in_log(server: Server) -> int:
    """How many visitors were refused, as the log has it."""
    return sum(
        record["refused"] if record["event"] == "visitor refused" else 1
        for record in server.records
        if record["event"] == "visitor refused"
        or record.get("reason") == "no tunnel for it in time"
    )
