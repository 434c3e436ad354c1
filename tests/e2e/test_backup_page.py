"""docs/backup.md, followed word for word: a server moves to another host, and a client that knows nothing of it comes back with its old ticket."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import running, services
from tests.e2e.running import ask

if TYPE_CHECKING:
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

PAGE = (Path(__file__).parents[2] / "docs/backup.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^(old|new)\$ (.+)$", PAGE, flags=re.MULTILINE)


async def test_to_another_host(echo_server: Service, tmp_path: Path) -> None:
    assert [shlex.split(line)[0] for _, line in STEPS] == [
        *("systemctl", "trionat", "scp", "trionat", "systemctl")
    ]
    control = (
        f"{services.HOST}:{services.free_low_port()}"  # what a name leads to, before and after
    )
    visit = str(services.free_low_port())
    start = partial(running.server, control=control, visit=visit)
    hosts = {name: tmp_path / name for name in ("old", "new")}
    hosts["new"].mkdir()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(start(hosts["old"]))
        (hosts["old"] / "server.yml").write_text("Server: {}\n")
        client = await stack.enter_async_context(
            running.client(tmp_path / "client", server.ticket, echo_server)
        )
        port = client.port()
        async with await client.visit() as visitor:
            assert await ask(visitor, b"before") == b"before"
        moved = server
        for name, line in STEPS:
            match shlex.split(line):
                case ["systemctl", "stop", "trionat"]:
                    server.terminate()
                    assert await server.wait() == 0
                case ["systemctl", "start", "trionat"]:
                    moved = await stack.enter_async_context(start(hosts[name]))
                case ["trionat", *words]:
                    result = await services.run_trionat(
                        *words,
                        cwd=hosts[name],
                        TRIONAT_STATE_DIR=str(hosts[name] / "state"),
                    )
                    assert result.returncode == 0, result.stderr
                case ["scp", *files, "new:"]:
                    for file in files:
                        shutil.copy(hosts[name] / file, hosts["new"] / file)
                case other:
                    raise AssertionError(other)
        assert moved.ready["fingerprint"] == server.ready["fingerprint"]
        assert moved.ready["ticket"] == server.ticket
        await client.wait_connected()
        assert client.port() == port
        async with await client.visit() as visitor:
            assert await ask(visitor, b"after") == b"after"
        traffic = await services.run_trionat(
            *("traffic", "--json", "--state-dir", hosts["new"] / "state"), cwd=tmp_path
        )
        [line] = traffic.stdout.decode().splitlines()
        assert json.loads(line)["bytes"] >= 2 * len("before")  # counted by the old one
        client.terminate()
        assert await client.wait() == 0


async def test_a_backup_of_a_server_that_goes_on(echo_server: Service, tmp_path: Path) -> None:
    """With a client and visitors; and the copy serves the same client when the original is gone."""
    control = f"{services.HOST}:{services.free_low_port()}"
    visit = str(services.free_low_port())
    start = partial(running.server, control=control, visit=visit)
    state = ("--state-dir", tmp_path / "old" / "state")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(start(tmp_path / "old", "--console-addr", "0"))
        client = await stack.enter_async_context(
            running.client(tmp_path / "client", server.ticket, echo_server)
        )
        async with await client.visit() as visitor:
            assert await ask(visitor, b"one") == b"one"
            file = tmp_path / "b.tar.gz"
            result = await services.run_trionat(
                *("state", "backup", file, "--json", *state), cwd=tmp_path
            )
            assert result.returncode == 0, result.stderr
            names = {each["name"] for each in json.loads(result.stdout)["files"]}
            assert names >= {"server.key", "server.crt", "ticket.key", "trionat.db", "address"}
            assert any(name.startswith("events/") for name in names)
            assert {each["reason"] for each in json.loads(result.stdout)["left_out"]}.isdisjoint(
                {"no file of trionat"}
            )
            assert await ask(visitor, b"two") == b"two"
            refused = await services.run_trionat("state", "restore", file, *state, cwd=tmp_path)
            assert refused.returncode == 3
            assert b"another trionat serve runs on this state folder" in refused.stderr
            assert await ask(visitor, b"three") == b"three"
        server.kill()
        await server.wait()
        new = tmp_path / "new" / "state"
        restored = await services.run_trionat(
            *("state", "restore", file, "--state-dir", new), cwd=tmp_path
        )
        assert restored.returncode == 0, restored.stderr
        again = await stack.enter_async_context(start(tmp_path / "new"))
        assert again.ready["fingerprint"] == server.ready["fingerprint"]
        await client.wait_connected()
        client.terminate()
        assert await client.wait() == 0
