"""Seeing inside a running server, and sending somebody away: status, tasks and kick as processes beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of
from tests.pages import blocks
from trionat.server.admin.messages import (
    AskStatus,
    KickVisitor,
    Request,
    decode_answer,
    encode_request,
)
from trionat.server.admin.socket import call

if TYPE_CHECKING:
    from tests.e2e.services import Service

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(os.name != "posix", reason="Windows has no Unix sockets in Python"),
]

ARCHITECTURE = Path(__file__).parents[2] / "docs/architecture.md"


@attrs.frozen
class Operator:
    """Whoever sits at the machine of a server."""

    state: Path

    async def __call__(self, *words: str, code: int = 0) -> str:
        """Run a command; return what it says, on standard output or, where it fails, on standard error."""
        process = await trio.run_process(
            services.trionat_command(*words, "--state-dir", str(self.state)),
            env=services.trionat_environ(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert process.returncode == code, (process.stdout, process.stderr)
        assert (process.stderr if code == 0 else process.stdout) == b""
        return (process.stderr if code else process.stdout).decode()

    async def ask(self, request: Request) -> dict[str, Any]:
        """Ask as a command does, without one: a process takes its time."""
        return decode_answer(
            await trio.to_thread.run_sync(call, self.state, encode_request(request))
        )

    async def status(self) -> dict[str, Any]:
        return await self.ask(AskStatus())


async def test_status_and_kick(tmp_path: Path) -> None:
    """Three visitors are served and two wait, a client queues, ports are reserved, for which one waits; then each of them is sent away."""
    async with (
        services.echo() as echo,
        running.server(
            tmp_path / "s", "--max-tcp-conn-num", "3", "--visitor-wait", "60", visit="0,0,0,0"
        ) as server,
        AsyncExitStack() as others,
    ):
        operator = Operator(server.state)
        nobody = json.loads(await operator("status", "--json"))
        assert (nobody["sessions"], nobody["queue"], nobody["reserved"]) == ([], [], [])
        assert nobody["server"]["control"] == server.ready["control"]

        async def start(name: str, *arguments: object) -> running.Client:
            return await others.enter_async_context(
                running.client(tmp_path / name, server.ticket, *arguments)
            )

        # Three tunnels and no more, so that who comes then waits.
        client = await start("client", echo, "--max-tunnels", "3", "--min-idle-tunnels", "1")
        visitors = [await others.enter_async_context(await client.visit()) for _ in range(3)]
        for visitor in visitors:
            assert await ask(visitor, b"hello") == b"hello"
        waiting = [await others.enter_async_context(await client.visit()) for _ in range(2)]
        other = await start("other", echo)
        lost = await start("lost", echo, echo)
        lost_ports = [lost.port(0), lost.port(1)]
        lost.kill()
        await server.wait_record("session closed", code="lost")
        patient = await others.enter_async_context(await lost.visit())
        queued = await others.enter_async_context(
            running.client_process(tmp_path / "queued", server.ticket, str(echo))
        )
        await queued.process.next_event("queued")

        status = await operator.status()
        assert status["server"]["ports_held"] == 4
        one, two = status["sessions"]
        assert [service["port"] for service in one["services"]] == [client.port()]
        assert [each["waiting"] for each in one["visitors"]] == [False, False, False, True, True]
        assert [each["address"] for each in one["visitors"]] == [
            running.name_of(visitor) for visitor in (*visitors, *waiting)
        ]
        assert [(each["received"], each["sent"]) for each in one["visitors"][:3]] == 3 * [(5, 5)]
        assert (one["tunnels_idle"], one["tunnels_busy"]) == (0, 3)
        assert (one["received"], one["sent"]) == (15, 15)
        assert two["services"][0]["port"] == other.port()
        [place] = status["queue"]
        assert (place["position"], place["user"]) == (1, "trionat")
        [reserved] = status["reserved"]
        assert reserved["ports"] == lost_ports
        assert 20 < reserved["remaining"] <= 30
        assert reserved["waiting"] == 1
        [waits] = reserved["visitors"]
        assert (waits["address"], waits["waiting"]) == (running.name_of(patient), True)

        text = await operator("status", "--visitors")
        assert re.search(r"\n  visitors   3 served, 3 waiting, ", text)
        assert len(re.findall(r"\n    v\d+ served ", text)) == 3
        assert "\nIn the queue:\n    1  trionat, 127.0.0.1:" in text
        assert "\nReserved for clients that were lost:\n" in text
        assert f"\n    v{waits['number']} waiting, here for " in text

        numbers = [each["number"] for each in one["visitors"]]
        assert await operator("kick", f"v{numbers[0]}") == f"visitor v{numbers[0]} is reset\n"
        assert await end_of(visitors[0]) == "reset"
        await client.wait_record("visitor closed", reason="sent away by the server's operator")
        assert await ask(waiting[0], b"my turn") == b"my turn"
        for number, visitor in ((numbers[4], waiting[1]), (waits["number"], patient)):
            assert (await operator.ask(KickVisitor(number)))["visitors"] == [number]
            assert await end_of(visitor) == "reset"
            assert (await operator.ask(KickVisitor(number)))["visitors"] == []

        assert await operator("kick", "1") == "session 1 is ended\n"
        assert await client.wait(within=5) == 4
        assert b"trionat: sent away by the server's operator" in client.process.errors
        for visitor in (*visitors[1:], waiting[0]):
            await end_of(visitor)
        await queued.wait_connected(within=5)
        assert queued.port() == client.port()  # it was free at once

        said = (await operator("kick", "trionat")).splitlines()
        assert said[0] == "session 2 is ended"
        assert said[-1].endswith("are not reserved any more")
        async with await other.visit() as late:
            assert await end_of(late) == "end"
        assert await other.wait(within=5) == await queued.wait(within=5) == 4
        status = await operator.status()
        assert (status["sessions"], status["reserved"]) == ([], [])
        assert status["server"]["ports_free"] == 4

        assert "there is no session 1 " in await operator("kick", "1", code=2)
        async with running.client(tmp_path / "client", server.ticket, echo) as again:  # no ban
            async with await again.visit() as visitor:
                assert await ask(visitor, b"again") == b"again"
        await server.wait_record("kicked", count=5)
        kicked = [record for record in server.records if record["event"] == "kicked"]
        assert len(kicked) == 5


def owned_in(tree: str) -> set[tuple[str, str]]:
    """Return by whom, and who, of a tree of tasks; nurseries without a name left out, and numbers all alike."""
    owned: set[tuple[str, str]] = set()
    above: list[str] = []
    for line in tree.splitlines():
        found = re.fullmatch(r"([ │├└─]*)(.+)", line)
        assert found is not None
        depth = len(found[1]) // 3
        above[depth:] = [re.sub(r"\d[\d.:-]*", "N", found[2])]
        owners = [name for name in above[:depth] if name != "nursery"]
        owned.add((owners[-1] if owners else "", above[depth]))
    return owned


async def test_tasks_are_those_of_the_picture(echo_server: Service, tmp_path: Path) -> None:
    """Every name that architecture.md has in its first picture is in the tree, where the picture has it."""
    async with (
        running.server(tmp_path / "s", visit="0") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
        running.client_process(tmp_path / "q", server.ticket, str(echo_server)) as queued,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"hello") == b"hello"
        await queued.process.next_event("queued")
        tree = await Operator(server.state)("tasks")
    owned = owned_in(tree)
    session = "session N of trionat"
    expected = {
        "nursery serving": {"command", "nursery besides"},
        "nursery besides": {
            *("admission", "expire visitors", "watch accounts", "flush traffic", "tell refusals"),
            *("count rates", "drain clients"),
            "nursery hearing",
        },
        "nursery hearing": {
            *("listener N", "admin server", "connection from N", session),
            "nursery visiting",
        },
        "nursery visiting": {"visit port N", "visit ports", "nursery waiting"},
        "nursery waiting": {"wait for the stop"},
        "connection from N": {"listen to the queued client"},
        session: {"control link", "demand", "drain", "early visitors", "move", "tunnels"},
        "control link": {"control writer"},
        "tunnels": {"sweep", "tunnel"},
        "tunnel": {"carry"},
    }
    for owner, names in expected.items():
        assert {name for each, name in owned if each == owner and name != "nursery"} == names
    picture = ARCHITECTURE.read_text().split("## Nurseries", 1)[1].split("```")[1]
    nurseries = [each for each in expected if each.startswith("nursery")] + [session, "tunnels"]
    shown = {"carry"}.union(*(expected[each] for each in nurseries))
    for name in shown - {"connection from N", "lease N", "dispatcher N", session}:
        assert name.removeprefix("nursery ").removesuffix(" N") in picture, name
    [block] = [block for block in blocks("docs/operating.md") if "trionat tasks" in block.typed]
    example = "\n".join(line for line in block.shown if "…" not in line).replace("alice", "trionat")
    assert owned_in(example) <= owned


async def test_a_server_that_was_killed_is_followed_by_one_that_answers(tmp_path: Path) -> None:
    async with running.server(tmp_path / "s") as server:
        path = server.state / "status.sock"
        assert stat.S_IMODE((await trio.Path(path).stat()).st_mode) == 0o600
        operator = Operator(server.state)
        server.kill()
    assert await trio.Path(path).exists()  # nobody could remove it
    assert "no server is up on this state folder" in await operator("status", code=3)
    async with running.server(tmp_path / "s") as server:
        assert (await operator.status())["sessions"] == []
        assert stat.S_IMODE((await trio.Path(path).stat()).st_mode) == 0o600
    assert not await trio.Path(path).exists()


async def test_a_stalled_command_does_not_hold_the_stop(tmp_path: Path) -> None:
    async with running.server(tmp_path / "s") as server:
        stalled = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        for sock in stalled:
            sock.connect(str(server.state / "status.sock"))
        start = trio.current_time()
        server.terminate()
        assert await server.wait() == 0
        assert trio.current_time() - start < 5
        for sock in stalled:
            sock.close()


async def test_watch(tmp_path: Path) -> None:
    """One object a line until Ctrl-C, which is how it ends; when the server goes, it says so."""
    async with running.server(tmp_path / "s") as server:
        command = services.trionat_command("status", "--watch", "--json", "--state-dir", str(server.state))  # fmt: skip
        for sign, code in ((signal.SIGINT, 0), (None, 3)):
            process = await trio.lowlevel.open_process(
                command,
                env=services.trionat_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            lines = b""
            while lines.count(b"\n") < 2:
                lines += await process.stdout.receive_some()
            assert [json.loads(line)["sessions"] for line in lines.splitlines()] == [[], []]
            if sign is None:
                server.terminate()
                await server.wait()
            else:
                process.send_signal(sign)
            with trio.fail_after(running.START_TIMEOUT):
                errors = await running.read_all(process.stderr)
                assert await process.wait() == code
            assert (b"no server is up" in errors) is (sign is None)
            await process.stdout.aclose()
            await process.stderr.aclose()
