"""The link between client and server is gone, without FIN or RST: both notice, the port waits, and all visitors go on with the link."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running
from tests.e2e.running import ask, read_all, read_exactly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.networks import Lab

pytestmark = [pytest.mark.limit(90), pytest.mark.timeout(200)]

NOTICED_WITHIN = 10.0
BACK_WITHIN = 5.0
RESUME_WAIT = 30.0
GOES_ON_WITHIN = 6.0
SLACK = 2.0
"""Seconds that a busy machine may add to what the product promises."""


async def echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


def cut(lab: Lab) -> Callable[[], None]:
    lab.cut()
    return lab.mend


def unplug(lab: Lab) -> Callable[[], None]:
    lab.unplug_client()
    return lab.plug_client


def move(lab: Lab) -> Callable[[], None]:
    lab.unplug_client()
    return lab.move_client


@pytest.mark.parametrize("lose", [cut, unplug, move])
async def test_link_that_goes_away_and_comes_back(
    lab: Lab, tmp_path: Path, lose: Callable[[Lab], Callable[[], None]]
) -> None:
    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(echo, nursery)
        control = f"{lab.SERVER}:8007"
        async with (
            running.server(tmp_path / "s", control=control, inside=lab.server.inside) as server,
            running.client(
                tmp_path / "c", server.ticket, service, inside=lab.client.inside
            ) as client,
        ):
            port = client.port()
            served = await lab.server.connect(lab.SERVER, port)
            assert await ask(served, b"before") == b"before"
            restore = lose(lab)
            lost = trio.current_time()
            await served.send_all(b"meanwhile")
            early = await lab.server.connect(lab.SERVER, port)
            await early.send_all(b"early")
            gone = await client.process.next_event("disconnected", within=NOTICED_WITHIN + SLACK)
            client_noticed = trio.current_time() - lost
            await server.wait_record("session closed", within=NOTICED_WITHIN + SLACK)
            server_noticed = trio.current_time() - lost
            late = await lab.server.connect(lab.SERVER, port)
            await late.send_all(b"late")
            await trio.sleep(2)
            restore()
            restored = trio.current_time()
            await client.wait_connected(within=BACK_WITHIN + SLACK)
            back = trio.current_time() - restored
            assert client.port() == port
            for stream, said in ((served, b"meanwhile"), (early, b"early"), (late, b"late")):
                async with stream:
                    with trio.fail_after(SLACK):
                        assert await read_exactly(stream, len(said)) == said
                    assert await ask(stream, b"after") == b"after"
                    await stream.send_eof()
                    assert await read_all(stream) == b""  # and nothing of it came twice
            print(
                f"{gone['reason']}: client {client_noticed:.1f} s, server {server_noticed:.1f} s, back {back:.1f} s"
            )
        nursery.cancel_scope.cancel()


@pytest.mark.limit(150)
async def test_outages_of_any_length(lab: Lab, tmp_path: Path) -> None:
    """However long the client has been trying, it is back soon: no try hangs or waits through the end of the outage.

    Visitors go on after those that are shorter than ResumeWait, and are reset in others.
    """
    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(echo, nursery)
        async with (
            running.server(
                tmp_path / "s",
                "--port-reservation",
                "100",
                control=f"{lab.SERVER}:8007",
                inside=lab.server.inside,
            ) as server,
            running.client(
                tmp_path / "c", server.ticket, service, inside=lab.client.inside
            ) as client,
        ):
            port = client.port()
            for seconds in (9, 17, 40):
                visitor = await lab.server.connect(lab.SERVER, port)
                assert await ask(visitor, b"before") == b"before"
                lab.cut()
                await trio.sleep(seconds)
                lab.mend()
                mended = trio.current_time()
                await client.wait_connected(within=BACK_WITHIN + SLACK)
                assert client.port() == port
                async with visitor:
                    with trio.fail_after(SLACK):
                        if seconds < RESUME_WAIT:
                            assert await ask(visitor, b"after") == b"after"
                        else:
                            assert await running.end_of(visitor) == "reset"
                print(f"away for {seconds} s: back {trio.current_time() - mended:.1f} s")
            # The client waits for the last visitor 15 s longer than the server, and gives it DrainGrace at most.
            client.terminate()
            assert await client.wait() == 0
        nursery.cancel_scope.cancel()


def tunnel_ports(lab: Lab, *, control: str) -> list[str]:
    """Return the client's ports of its tunnels, the one with the most bytes first; `control` is that of its control connection."""
    command = [*lab.client.inside, "ss", "-tniHO", "state", "established", "dport", "=", ":8007"]
    found = subprocess.run(command, check=True, timeout=10, capture_output=True, text=True).stdout
    bytes_sent = {}
    for line in found.splitlines():
        port = line.split()[2].rpartition(":")[2]
        sent = re.search(r"bytes_sent:(\d+)", line)
        bytes_sent[port] = int(sent[1]) if sent else 0
    del bytes_sent[control]
    return sorted(bytes_sent, key=lambda port: -bytes_sent[port])


@pytest.mark.parametrize("who", ["visitor", "service"])
@pytest.mark.parametrize("alone", [True, False])
async def test_busy_tunnel_that_dies(lab: Lab, tmp_path: Path, alone: bool, who: str) -> None:
    """Its visitor goes on over another tunnel, in time; the session stays, and serves the next one.

    Also where it is not alone, but all tunnels die while the control connection lives: then no dead one is tried before a new one.
    """
    at_service: list[trio.SocketStream] = []

    async def echo_and_tell(stream: trio.SocketStream) -> None:
        at_service.append(stream)
        await echo(stream)

    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(echo_and_tell, nursery)
        async with (
            running.server(
                tmp_path / "s",
                control=f"{lab.SERVER}:8007",
                inside=lab.server.inside,
            ) as server,
            running.client(
                tmp_path / "c", server.ticket, service, inside=lab.client.inside
            ) as client,
        ):
            async with await lab.server.connect(lab.SERVER, client.port()) as visitor:
                for number in range(64):  # so much that its tunnel is the one with the most bytes
                    piece = bytes([number]) * 1024
                    assert await ask(visitor, piece) == piece
                up = await server.wait_record("session up")
                tunnels = tunnel_ports(lab, control=up["address"].rpartition(":")[2])
                assert len(tunnels) > 1
                for port in tunnels[:1] if alone else tunnels:
                    rule = ("ip", "rule", "add", "pref", "60", "ipproto", "tcp")
                    lab.router.run(*rule, "sport", port, "dport", "8007", "blackhole")
                    lab.router.run(*rule, "sport", "8007", "dport", port, "blackhole")
                lost = trio.current_time()
                await (visitor if who == "visitor" else at_service[-1]).send_all(b"lost")
                with trio.fail_after(GOES_ON_WITHIN + SLACK):
                    assert await read_exactly(visitor, 4) == b"lost"
                print(f"goes on after {trio.current_time() - lost:.1f} s")
                assert await ask(visitor, b"after") == b"after"
                await visitor.send_eof()
                assert await read_all(visitor) == b""
            async with await lab.server.connect(lab.SERVER, client.port()) as visitor:
                with trio.fail_after(BACK_WITHIN + SLACK):
                    assert await ask(visitor, b"next") == b"next"
            assert not [r for r in server.records if r["event"] == "session closed"]
        nursery.cancel_scope.cancel()
