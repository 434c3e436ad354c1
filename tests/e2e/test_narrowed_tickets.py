"""A ticket that was narrowed, by the operator and by whoever has it: what a client gets with it, and when that is over."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.running import Server
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(90)

WATCH_INTERVAL = 2.0
"""Seconds within which a session ends whose ticket has run out."""


async def command(*words: str | Path, cwd: Path) -> str:
    """Run a command that succeeds; return what it prints."""
    result = await services.run_trionat(*words, cwd=cwd)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().strip()


async def operator_ticket(server: Server, *options: str) -> str:
    """Have the operator print a ticket of the first user."""
    words = ("user", "ticket", "trionat", "--public-addr", server.ready["public"])
    return await command(*words, "--state-dir", server.state, *options, cwd=server.state)


async def refused(folder: Path, ticket: str, *services_: str) -> tuple[int, str]:
    """Run a client that is sent away at once; return its exit code and its last line."""
    with trio.fail_after(30):
        result = await services.run_trionat(
            "connect", ticket, *services_, "--state-dir", folder, cwd=folder.parent
        )
    text = result.stderr.decode()
    assert "Traceback" not in text
    return result.returncode, text.splitlines()[-1]


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
async def test_it_gets_its_port_and_runs_out(
    echo_server: Service, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    async with running.server(tmp_path / "s", *flags, visit="0,0,0") as server:
        first, second, third = server.ready["visit_ports"]
        ticket = await operator_ticket(server, "--only-port", f"{second},{third}")
        end = datetime.now(UTC) + timedelta(seconds=20)
        ticket = await command(
            *("ticket", "narrow", ticket, "--only-port", str(second)),
            *("--expires", f"{end:%Y-%m-%dT%H:%M:%S}"),
            cwd=tmp_path,
        )
        assert await refused(tmp_path / "no", ticket, f"{echo_server}:{first}") == (
            2,
            f"trionat: visit port {first} is not one that this server offers to this ticket ({second})",
        )
        async with (
            running.client(tmp_path / "w", server.ticket, f"{echo_server}:{first}") as whole,
            running.client(tmp_path / "a", ticket, echo_server) as client,
        ):
            assert client.port() == second
            caveats = list(Ticket.decode(ticket).caveats)
            up = await server.wait_record("session up", ports=[second])
            assert up["restrictions"] == caveats
            status = ("status", "--json", "--state-dir", server.state)
            found: dict[str, Any] = json.loads(await command(*status, cwd=tmp_path))
            by_port = {each["services"][0]["port"]: each for each in found["sessions"]}
            assert by_port[second]["restrictions"] == caveats
            assert by_port[first]["restrictions"] == []
            shown = await command("status", "--state-dir", server.state, cwd=tmp_path)
            assert f"    narrowed ticket: {'; '.join(caveats)}" in shown.splitlines()
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
                with trio.fail_after(20 + WATCH_INTERVAL + 5):
                    assert await end_of(visitor) in {"end", "reset"}
            assert end.replace(microsecond=0) <= datetime.now(UTC)
            assert await client.wait() == 4
            over = f"trionat: this ticket of trionat was good until {end:%Y-%m-%d %H:%M} UTC: ask for another one"
            assert client.process.errors.decode().splitlines()[-1] == over
            assert await refused(tmp_path / "no", ticket, str(echo_server)) == (4, over)
            async with await whole.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
            await server.wait_record("session closed", code="account-expired")
        assert ticket not in server.log_text()
        assert Ticket.decode(ticket).token.hex() not in server.log_text()


async def test_renewing_ends_its_sessions(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", visit="0") as server:
        ticket = await operator_ticket(server, "--only-port", str(server.ready["visit_ports"][0]))
        async with running.client(tmp_path / "a", ticket, echo_server) as client:
            await operator_ticket(server, "--renew")
            assert await client.wait() == 4
            assert client.process.errors.decode().endswith(
                "trionat: the ticket of trionat is void by now\n"
            )
        assert await refused(tmp_path / "no", ticket, str(echo_server)) == (
            4,
            "trionat: authentication failed: wrong ticket",
        )


async def test_a_name_is_no_port(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", visit="0") as server:
        ticket = await operator_ticket(server, "--only-name", "shop")
        assert await refused(tmp_path / "no", ticket, str(echo_server)) == (
            2,
            "trionat: this ticket may have no visit port at all",
        )
