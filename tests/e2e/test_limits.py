"""Limits of users, on a server that runs: `trionat user limit` takes effect within seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

WATCH_INTERVAL = 2.0
"""Seconds within which new limits count."""


async def limit(server: Server, name: str, *limits: str, wait: bool = True) -> None:
    """Run `trionat user limit`, and wait until it counts for sessions that are up."""
    result = await services.run_trionat(
        "user", "limit", name, *limits, "--state-dir", server.state, cwd=server.state
    )
    assert result.returncode == 0, result.stderr.decode()
    if wait:
        await trio.sleep(WATCH_INTERVAL + 0.5)


async def seconds_for(client: Client, size: int) -> float:
    """Return how long it takes until so many bytes have come back to a visitor."""
    async with await client.visit() as visitor:
        assert await ask(visitor, b"x") == b"x"
        since = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visitor.send_all, bytes(size))
            await running.read_exactly(visitor, size)
        return trio.current_time() - since


async def test_ports_sessions_and_visitors(
    echo_server: Service, http_server: Service, tmp_path: Path
) -> None:
    async with running.server(tmp_path / "s", visit="0,0,0") as server:
        first, second, third = server.ready["visit_ports"]
        await limit(
            *(server, "trionat", "--sessions", "1", "--visitors", "1"),
            *("--visit-ports", f"{second},{third}"),
            wait=False,
        )
        not_offered = await services.run_trionat(
            "connect", server.ticket, f"{echo_server}:{first}", "--state-dir", tmp_path / "no"
        )
        assert not_offered.returncode == 2
        assert "is not one that this server offers to this account" in not_offered.stderr.decode()
        async with (
            running.client(tmp_path / "a", server.ticket, echo_server) as client,
            running.client_process(tmp_path / "b", server.ticket, str(http_server)) as other,
        ):
            assert client.port() == second
            gone = await other.process.next_event("disconnected")
            assert (
                gone["reason"] == "this account has all the sessions that it may have at once (1)"
            )
            assert gone["retry_in"] is not None
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
                async with await client.visit() as one_too_many:
                    assert await end_of(one_too_many) == "end"
                reason = "this user has all the visitors that it may have at once (1)"
                await server.wait_record("visitor refused", reason=reason, user="trionat")
            client.terminate()  # which makes room
            assert await client.wait() == 0
            await other.wait_connected()
            assert other.port() in {second, third}


async def test_bandwidth_and_quota(echo_server: Service, tmp_path: Path) -> None:
    """Of a client of the Go program's dialect as well, which shares its user's bandwidth."""
    legacy = {"TRIONAT_SERVER_LEGACY_CLIENTS": "true"}
    async with running.server(tmp_path / "s", visit="0,0", environ=legacy) as server:
        added = await services.run_trionat(
            *("user", "add", "ann", "--state-dir", server.state), stdin=b"secret", cwd=tmp_path
        )
        assert added.returncode == 0
        ticket = await services.run_trionat(
            *("user", "ticket", "ann", "--state-dir", server.state), cwd=tmp_path
        )
        await limit(server, "ann", "--bandwidth", "500k", wait=False)
        addresses = ("-c", server.ready["control"], "-t", server.ready["tunnel"])
        async with (
            running.client(tmp_path / "a", ticket.stdout.decode().strip(), echo_server) as client,
            running.client_process(
                *(tmp_path / "b", "--dialect", "nat-v1", *addresses, str(echo_server)),
                environ={"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": "secret"},
            ) as other,
        ):
            await other.wait_connected()
            async with trio.open_nursery() as nursery:
                since = trio.current_time()
                for each in (client, other):
                    nursery.start_soon(seconds_for, each, 250_000)
            # Twice 250 kB, there and back, and a quarter of a second in store.
            assert 1.7 < trio.current_time() - since < 3
            await limit(server, "ann", "--bandwidth", "none", "--quota", "2M")
            assert await seconds_for(client, 250_000) < 0.8
            async with await client.visit() as visitor:
                await ask(visitor, bytes(300_000))  # 2.1 MB in all
                reason = "the account ann has used up its 2.0 MB of this month (UTC)"
                gone = await client.process.next_event("disconnected")
                assert gone["reason"] == reason
                assert await end_of(visitor) == "reset"
            gone = await client.process.next_event("disconnected")
            assert (gone["reason"], gone["retry_in"] is None) == (reason, False)
            await other.process.next_event("disconnected")
            await limit(server, "ann", "--quota", "4M", wait=False)
            for each in (client, other):
                await each.wait_connected()
            assert await seconds_for(client, 100) < 1
