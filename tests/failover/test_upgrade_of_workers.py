"""A server of several processes is upgraded, and no visitor notices, whichever of the processes fails meanwhile."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, wait_until
from tests.e2e.upgrading import Upgradable, is_there, upgradable
from tests.failover.upgrade_scene import SUCCESSION, Load, Scene, Talker, Transfer, scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.services import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.limit(110),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc"),
]

PARENT = "server/workers/parent.py"
WORKERS_SUCCESSION = "server/workers/succession.py"
WORKER = "server/workers/worker.py"
TWO = "  Workers: 2\n"
PORTS = "0,0"
DIES = "        if self.registry.word == 'w2':\n            import os; os._exit(9)\n"
SIZE = 30_000_000


async def test_downloads_and_an_upload_across_three_upgrades(
    echo_server: Service, tmp_path: Path
) -> None:
    """Clients are at both workers, and visitors come and go all the while."""
    transfer = Transfer(SIZE)
    async with (
        services.serve(transfer.give) as source,
        services.serve(transfer.take) as sink,
        upgradable(tmp_path / "s", "--workers", "2", visit="0,0,0,0,0,0") as it,
        clients(it, tmp_path, 2, source, sink, echo_server) as both,
        trio.open_nursery() as nursery,
    ):
        loads = [Load(client.port(2)) for client in both for _ in range(2)]
        async with trio.open_nursery() as visiting:
            for load in loads:
                visiting.start_soon(load.run)
            for client in both:
                nursery.start_soon(transfer.download, client)
            nursery.start_soon(transfer.upload, both[0])
            ports = await held_ports(it)
            for _ in range(3):
                before = [load.done for load in loads]
                upgraded = await it.upgrade()
                assert upgraded["clients"] == 2
                assert upgraded["visitors"] >= 3
                for load, done in zip(loads, before, strict=True):
                    await wait_until(lambda: load.done > done + 3)  # noqa: B023 - at once
                assert await held_ports(it) == ports
                workers = (await it.status())["workers"]
                assert [worker["sessions"] for worker in workers] == [1, 1]
            assert not transfer.downloads, "the downloads have to last for longer than the upgrades"
            transfer.hurry.set()
            visiting.cancel_scope.cancel()
    assert (transfer.downloads, transfer.uploads) == (2, 1)


@asynccontextmanager
async def clients(
    it: Upgradable, folder: Path, count: int, *services: Service
) -> AsyncIterator[list[running.Client]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running.client(folder / f"client {number}", it.server.ticket, *services)
            )
            for number in range(count)
        ]


async def held_ports(it: Upgradable) -> list[list[int]]:
    sessions = (await it.status())["sessions"]
    return sorted([each["port"] for each in session["services"]] for session in sessions)


async def pids(it: Upgradable) -> list[int]:
    return [worker["pid"] for worker in (await it.status())["workers"]]


# --- what can go wrong: the upgrade does not come about, and nobody notices ---


async def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        workers = await pids(here.it)
        here.config.write_text("Server:\n  Nonsense: 1\n")
        result = await here.it.try_upgrade()
        assert result.returncode == 3
        assert "Nonsense" in result.stderr.decode()
        assert await pids(here.it) == workers
        here.config.write_text(f"Server:\n  Name: two\n{TWO}")
        await here.it.upgrade()
        assert (await here.it.status())["server"]["name"] == "two"
        await here.talker.goes_on()
        await wait_until(lambda: not any(map(is_there, workers)))


async def test_a_parent_that_does_not_start(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        here.change("cli/serve.py", "import json\n", "import json\nraise SystemExit(1)\n")
        await here.fails("ended with code 1")


async def test_workers_that_do_not_start(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        here.change(PARENT, "_START_TIMEOUT: Final = 30.0", "_START_TIMEOUT: Final = 5.0")
        here.change(WORKER, "    link.hear = start.send_nowait\n", "    raise SystemExit(1)\n")
        await here.fails("no worker could be started")


async def test_a_parent_that_dies_with_all_it_was_given(tmp_path: Path) -> None:
    """Its workers have it as well, and let go of it without a reset."""
    async with scene(tmp_path, keys=TWO) as here:
        here.change(
            WORKERS_SUCCESSION, "        predecessor.take()", "        import os; os._exit(7)"
        )
        await here.fails("ended with code 7")


async def test_a_parent_that_gives_up_with_all_it_was_given(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        here.change(
            WORKERS_SUCCESSION,
            "        predecessor.take()",
            "        raise StartupError('rather not')",
        )
        await here.fails("rather not")


async def test_a_parent_that_hangs_with_all_it_was_given(tmp_path: Path) -> None:
    module = "server/upgrade/successor.py"
    change = (module, "_TO_TAKE: Final = 10.0", "_TO_TAKE: Final = 2.0")
    async with scene(tmp_path, change, keys=TWO) as here:
        here.change(
            WORKERS_SUCCESSION,
            "        predecessor.take()",
            "        import time; time.sleep(1000)",
        )
        await here.fails("given up", "it has not taken over")


async def test_a_parent_that_hangs_before_it_is_ready(tmp_path: Path) -> None:
    module = "server/upgrade/successor.py"
    change = (module, "_TO_PREPARE: Final = 60.0", "_TO_PREPARE: Final = 5.0")
    async with scene(tmp_path, change, keys=TWO) as here:
        here.change(SUCCESSION, "await predecessor.inherit()", "await trio.sleep(1000)")
        await here.fails("given up", "it is not ready")


async def test_a_new_worker_that_dies_with_all_it_was_given(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        here.change(
            WORKER,
            "                taken = {",
            "                import os; os._exit(7)\n                taken = {",
        )
        await here.fails("has not taken over")


async def test_an_old_worker_that_does_not_give_what_it_has(tmp_path: Path) -> None:
    """For want of descriptors, for instance. It is there, so its visitors are not given up."""
    change = (WORKER, "            await wait_for(give)\n", "            pass\n")
    async with scene(tmp_path, change, keys=TWO) as here:
        result = await here.it.try_upgrade()
        assert result.returncode == 3
        assert "does not give what it has" in result.stderr.decode()
        await here.talker.goes_on()
        async with await here.client.visit() as stream:
            assert await ask(stream, b"who is there?") == b"who is there?"


# --- and what the upgrade takes in its stride ---


async def test_an_old_worker_that_hangs(tmp_path: Path) -> None:
    """It is killed meanwhile, as ever: its client keeps its ports, and those of the other one notice nothing."""
    async with scene(tmp_path, keys=TWO, visit=PORTS) as here, second(here) as other:
        victim = await worker_of(here, other)
        os.kill(victim, signal.SIGSTOP)
        port = other.port()
        upgraded = await here.it.upgrade()
        assert upgraded["clients"] == 2
        await here.talker.goes_on()
        await other.wait_connected()
        assert other.port() == port
        async with await other.visit() as stream:
            assert await ask(stream, b"again") == b"again"
        assert not is_there(victim)


async def test_an_old_worker_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    change = (
        WORKER,
        "        extensions = self._extensions = Extensions()\n",
        "        extensions = self._extensions = Extensions()\n" + DIES,
    )
    async with scene(tmp_path, change, keys=TWO, visit=PORTS) as here, second(here) as other:
        port = other.port()
        upgraded = await here.it.upgrade()
        assert upgraded["clients"] == 2
        await here.talker.goes_on()
        await other.wait_connected()
        assert other.port() == port
        async with await other.visit() as stream:
            assert await ask(stream, b"again") == b"again"


async def test_workers_that_cannot_be_started_any_more(tmp_path: Path) -> None:
    """Another version is installed, and one has ended since: an upgrade is what helps."""
    async with scene(tmp_path, keys=TWO, visit=PORTS) as here, second(here) as other:
        port = other.port()
        version = 'VERSION = "'
        here.change("version.py", version, f"{version}9.")
        os.kill(await worker_of(here, other), signal.SIGKILL)
        await here.it.server.wait_record(
            "trionat was upgraded while it runs, and no worker can be started any more: run trionat upgrade, or restart the server"
        )
        upgraded = await here.it.upgrade()
        assert upgraded["version"].startswith("9.")
        await here.talker.goes_on()
        await other.wait_connected()
        assert other.port() == port
        assert [each["state"] for each in (await here.it.status())["workers"]] == ["up", "up"]


async def test_more_workers_and_fewer(tmp_path: Path) -> None:
    """What is handed over does not tell how many there were."""
    async with scene(tmp_path, visit=PORTS) as here, second(here) as other:
        async with await other.visit() as stream, trio.open_nursery() as nursery:
            talker = Talker(stream)
            nursery.start_soon(talker.run)
            for count in (3, 2, 1):
                here.config.write_text(f"Server:\n  Name: one\n  Workers: {count}\n")
                upgraded = await here.it.upgrade()
                assert (upgraded["clients"], upgraded["visitors"]) == (2, 2)
                await here.talker.goes_on()
                await talker.goes_on()
                workers = (await here.it.status())["workers"]
                assert len(workers) == (0 if count == 1 else count)
                assert sorted(filter(None, (each["sessions"] for each in workers))) in (
                    [],
                    [1, 1],
                ), "they are dealt"
            nursery.cancel_scope.cancel()


async def test_a_group_stays_together(tmp_path: Path) -> None:
    """Its clients share their port afterwards as well, and their visitors go on."""
    async with (
        services.echo() as echo,
        upgradable(tmp_path / "s", "--workers", "2", visit=PORTS) as it,
        running.client(tmp_path / "1", it.server.ticket, echo, "--group", "web") as one,
        running.client(tmp_path / "2", it.server.ticket, echo, "--group", "web") as other,
        await one.visit() as first,
        await other.visit() as second_visitor,
    ):
        assert one.port() == other.port()
        for _ in range(2):
            for visitor in (first, second_visitor):
                assert await ask(visitor, b"still here?") == b"still here?"
            upgraded = await it.upgrade()
            assert (upgraded["clients"], upgraded["visitors"]) == (2, 2)
            for visitor in (first, second_visitor):
                assert await ask(visitor, b"and now?") == b"and now?"
            await wait_sessions(it, 2)
            status = await it.status()
            assert sorted(each["sessions"] for each in status["workers"]) == [0, 2]
            assert {each["services"][0]["port"] for each in status["sessions"]} == {one.port()}


async def wait_sessions(it: Upgradable, count: int) -> None:
    with trio.fail_after(20):
        while len((await it.status())["sessions"]) != count:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.1)


async def test_a_stop_while_a_new_process_starts(tmp_path: Path) -> None:
    async with scene(tmp_path, keys=TWO) as here:
        here.change(SUCCESSION, "await predecessor.inherit()", "await trio.sleep(1000)")
        os.kill(here.it.pid, signal.SIGUSR2)
        await here.it.server.wait_record("upgrade: a new process is started")
        await trio.sleep(1)
        os.kill(here.it.pid, signal.SIGTERM)
        await here.it.server.wait_record("visit ports closed")
        await here.it.status()  # it is still there for its visitors
        await here.talker.goes_on()


async def test_traffic_and_numbers_go_on(echo_server: Service, tmp_path: Path) -> None:
    """No byte is counted twice, and none is lost; nobody gets the number of another."""
    async with (
        upgradable(tmp_path / "s", "--workers", "2", visit=PORTS) as it,
        clients(it, tmp_path, 2, echo_server) as both,
        await both[0].visit() as one,
        await both[1].visit() as two,
    ):
        before = None
        for number in range(3):
            for visitor in (one, two):
                assert await ask(visitor, b"x" * 50_000) == b"x" * 50_000
            numbers = await visitor_numbers(it)
            before = before or numbers
            assert numbers == before
            if number < 2:
                await it.upgrade()
        uids = [each["uid"] for each in (await it.status())["sessions"]]
        assert len(set(uids)) == 2
        assert min(uids) > 2
        async with await both[0].visit() as late:
            assert await ask(late, b"hello") == b"hello"
            assert max(await visitor_numbers(it)) > max(before or [])
    done = await services.run_trionat("traffic", "--json", "--state-dir", it.server.state)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == 2 * 3 * 100_000 + 2 * len("hello")


@asynccontextmanager
async def second(here: Scene) -> AsyncIterator[running.Client]:
    """Another client, which is at the other worker where there are two."""
    async with (
        services.echo() as echo,
        running.client(here.copy.parent / "second", here.it.server.ticket, echo) as client,
    ):
        yield client


async def worker_of(here: Scene, client: running.Client) -> int:
    workers: list[dict[str, Any]] = (await here.it.status())["workers"]
    pid: int = workers[(client.connected["uid"] - 1) % len(workers)]["pid"]
    return pid


async def visitor_numbers(it: Upgradable) -> list[int]:
    sessions = (await it.status())["sessions"]
    return sorted(each["number"] for session in sessions for each in session["visitors"])
