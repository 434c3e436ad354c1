"""Names where several processes share the work: the parent looks where a visitor wants to go, and the worker that has it does the rest."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.test_names import answering, read_answer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(60)


async def status(state: Path) -> dict[str, object]:
    done = await services.run_trionat("status", "--json", "--state-dir", state)
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def test_names_at_several_workers(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        named = await stack.enter_async_context(
            named_server(tmp_path, "--workers", "2", "--plain-http")
        )
        clients: list[running.Client] = []
        for number in range(4):
            service = await stack.enter_async_context(answering(b"n%d" % number))
            clients.append(
                await stack.enter_async_context(
                    running.client(
                        tmp_path / f"c{number}",
                        named.server.ticket,
                        f"http:{service.port}@n{number}",
                    )
                )
            )
        found = await status(named.server.state)
        workers = {worker["name"]: worker for worker in found["workers"]}  # type: ignore[attr-defined]
        assert {worker["sessions"] for worker in workers.values()} == {2}, "they are at both"
        shown = [each["name"] for each in found["certificates"]]  # type: ignore[attr-defined]
        assert shown == [f"n{number}.{DOMAIN}" for number in range(4)]
        for number in range(4):
            name = f"n{number}.{DOMAIN}"
            assert (await named.ask(name)).body == f"n{number} {name}:{named.https}".encode()
            command = named.curl(f"http://{name}:{named.http}/", name=name)
            done = await trio.run_process(command, capture_stdout=True)
            assert done.stdout == f"n{number} {name}:{named.http}".encode()
        assert (await named.ask(f"nobody.{DOMAIN}")).status == 404
        # On one connection, for a name of another worker: a browser makes a new one then.
        stream = await named.connect(f"n0.{DOMAIN}")
        statuses: set[bytes] = set()
        for number in range(4):
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: n{number}.{DOMAIN}\r\n\r\n".encode())
            head = await stream.receive_some()
            statuses.add(bytes(head).split()[1])
            if b" 200 " not in head:
                break
        assert statuses == {b"200", b"421"}, statuses
        await stream.aclose()
        # A worker is killed: its clients come back, and have their names. Visitors that are on their way to it wait for the next one.
        pid = workers["w1"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        answers: list[int] = []

        async def ask(name: str) -> None:
            answers.append((await named.ask(name)).status)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ask, f"n{number}.{DOMAIN}")
            await trio.sleep(1)
            os.kill(pid, signal.SIGKILL)
        assert sorted(answers) == [200] * 4
        for number in range(4):
            name = f"n{number}.{DOMAIN}"
            with trio.fail_after(20):
                while (answer := await named.ask(name)).status != 200:
                    assert answer.status in (404, 502, 503), answer
                    await trio.sleep(0.1)
            stream = await named.connect(name)
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert await read_answer(stream) == f"n{number} {name}".encode()
            await stream.aclose()


@pytest.mark.limit(100)  # ten processes start, one after another
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_name_that_is_given_free_while_it_is_in_use(tmp_path: Path, workers: str) -> None:
    """Its client goes on with it, and whoever wants it meanwhile neither gets it nor has it kept for him."""
    async with named_server(tmp_path, "--workers", workers) as named, services.http() as service:
        state = ("--state-dir", named.server.state)
        await services.run_trionat("user", "add", "bob", *state, stdin=b"secret-12\n")
        address = f"127.0.0.1:{named.server.control[1]}"
        done = await services.run_trionat("user", "ticket", "bob", "--public-addr", address, *state)
        ticket, exposed = done.stdout.decode().split()[-1], f"http:{service.port}@shop"
        async with running.client(tmp_path / "alice", named.server.ticket, exposed):
            done = await services.run_trionat("user", "release-name", f"shop.{DOMAIN}", *state)
            assert b"trionat kick trionat sends it away" in done.stderr
            async with running.client_process(tmp_path / "bob", ticket, exposed) as bob:
                reason = (await bob.process.next_event("disconnected"))["reason"]
                assert f"shop.{DOMAIN} is in use" in reason
                bob.ended = True
                bob.process.interrupt()
            done = await services.run_trionat("user", "names", "--json", *state)
            assert done.stdout == b""
            assert (await named.ask(f"shop.{DOMAIN}")).status == 200
        async with running.client(tmp_path / "bob", ticket, exposed) as again:
            assert again.connected["services"][0]["public"].startswith(f"https://shop.{DOMAIN}")
        done = await services.run_trionat("user", "names", "--json", *state)
        assert json.loads(done.stdout)["user"] == "bob"
