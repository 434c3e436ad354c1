"""The link between client and server is gone, without FIN or RST: both notice, the port waits, and so do visitors."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running
from tests.e2e.running import ask, read_exactly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.networks import Lab

pytestmark = [pytest.mark.limit(90), pytest.mark.timeout(200)]

NOTICED_WITHIN = 10.0
BACK_WITHIN = 5.0
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
            async with await lab.server.connect(lab.SERVER, port) as visitor:
                assert await ask(visitor, b"before") == b"before"
                restore = lose(lab)
                lost = trio.current_time()
                early = await lab.server.connect(lab.SERVER, port)
                await early.send_all(b"early")
                gone = await client.process.next_event(
                    "disconnected", within=NOTICED_WITHIN + SLACK
                )
                client_noticed = trio.current_time() - lost
                await server.wait_record("session closed", within=NOTICED_WITHIN + SLACK)
                server_noticed = trio.current_time() - lost
                assert await running.end_of(visitor) == "reset"
            late = await lab.server.connect(lab.SERVER, port)
            await late.send_all(b"late")
            await trio.sleep(2)
            restore()
            restored = trio.current_time()
            await client.wait_connected(within=BACK_WITHIN + SLACK)
            back = trio.current_time() - restored
            assert client.port() == port
            for stream, said in ((early, b"early"), (late, b"late")):
                async with stream:
                    with trio.fail_after(SLACK):
                        assert await read_exactly(stream, len(said)) == said
            print(
                f"{gone['reason']}: client {client_noticed:.1f} s, server {server_noticed:.1f} s, back {back:.1f} s"
            )
        nursery.cancel_scope.cancel()


@pytest.mark.limit(150)
async def test_outages_of_any_length(lab: Lab, tmp_path: Path) -> None:
    """However long the client has been trying, it is back soon: no try hangs or waits through the end of the outage."""
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
                lab.cut()
                await trio.sleep(seconds)
                lab.mend()
                mended = trio.current_time()
                await client.wait_connected(within=BACK_WITHIN + SLACK)
                assert client.port() == port
                print(f"away for {seconds} s: back {trio.current_time() - mended:.1f} s")
        nursery.cancel_scope.cancel()


async def test_busy_tunnel_that_dies_alone(lab: Lab, tmp_path: Path) -> None:
    """Its visitor is reset, in time; the session goes on, and serves the next one when there is a way again."""
    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(echo, nursery)
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
                assert await ask(visitor, b"before") == b"before"
                up = await server.wait_record("session up")
                control_port = up["address"].rpartition(":")[2]
                rule = ("ip", "rule", "add", "ipproto", "tcp")
                lab.router.run(*rule, "pref", "50", "sport", control_port, "lookup", "main")
                lab.router.run(*rule, "pref", "60", "dport", "8007", "blackhole")
                lost = trio.current_time()
                await visitor.send_all(b"lost")
                with trio.fail_after(20 + SLACK):
                    assert await running.end_of(visitor) == "reset"
                print(f"given up after {trio.current_time() - lost:.1f} s")
            lab.router.run("ip", "rule", "del", "pref", "60")
            mended = trio.current_time()
            async with await lab.server.connect(lab.SERVER, client.port()) as visitor:
                with trio.fail_after(BACK_WITHIN + SLACK):
                    assert await ask(visitor, b"after") == b"after"
            print(f"served {trio.current_time() - mended:.1f} s after there is a way")
            assert not [r for r in server.records if r["event"] == "session closed"]
            # The client had nothing to send and does not know yet: it would wait for the visitor for as long as it may.
            client.terminate()
            assert await client.wait() == 0
        nursery.cancel_scope.cancel()
