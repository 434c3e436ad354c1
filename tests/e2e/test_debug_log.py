"""What TRIONAT_LOG_LEVEL=debug tells at both ends: every control message and every decision, and no secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running
from tests.e2e.running import ask
from tests.e2e.test_authentication import PASSWORD, user
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

DEBUG = {"TRIONAT_LOG_LEVEL": "debug"}


async def test_both_logs_tell_what_happens(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", visit="0,0", environ=DEBUG) as server:
        await user(server, "add", "ann", stdin=PASSWORD.encode() + b"\n")
        login = ["-c", server.ready["control"], "--fingerprint", server.ready["fingerprint"]]
        by_password = DEBUG | {"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": PASSWORD}
        async with (
            running.client_process(
                tmp_path / "a", server.ticket, str(echo_server), environ=DEBUG
            ) as client,
            running.client_process(
                tmp_path / "b", *login, str(echo_server), environ=by_password
            ) as other,
        ):
            await client.wait_connected()
            await other.wait_connected()
            async with await client.visit() as visitor:
                assert await ask(visitor, b"private words") == b"private words"
                await server.wait_record("connection accepted", dialect="TLS")
                await server.wait_record("login accepted", credential="ticket")
                await server.wait_record("login accepted", credential="password", user="ann")
                await server.wait_record("a password is tried", network="127.0.0.1")
                await server.wait_record("client let in", user="ann")
                await server.wait_record("tunnel taken over", session=1)
                paired = await server.wait_record("visitor paired with a tunnel")
                await client.wait_record("visitor paired with a tunnel", visitor=paired["visitor"])
                for frame in ("Hello", "Expose"):
                    await client.wait_record("frame sent", frame=frame)
                    await server.wait_record("frame received", frame=frame, level="debug")
                await server.wait_record("frame sent", frame="Welcome")
                await client.wait_record("frame received", frame="Welcome")
                await client.wait_record("tunnel opened")
                before = len(server.records), len(client.records)
                for _ in range(200):  # what is relayed costs no line
                    assert await ask(visitor, b"private words") == b"private words"
                more = server.records[before[0] :] + client.records[before[1] :]
                assert len(more) < 60
            server.kill()
            await client.wait_record("session ended")
            await trio.sleep(0.1)
        ticket = Ticket.decode(server.ticket)
        secrets = [server.ticket, PASSWORD, "private words"]
        assert ticket.token is not None
        secrets += [ticket.token.hex(), repr(ticket.token)]
        for log in (server, client, other):
            log.check_log(*secrets)
            assert "debug" in {record["level"] for record in log.records}
            # Of 32 bytes, as the secret of a session is.
            assert not re.findall(r"\b[0-9a-f]{64}\b", log.log_text())


async def test_visitors_that_begin_before_a_tunnel_is_idle(
    echo_server: Service, tmp_path: Path
) -> None:
    """The first tunnel of each is one like any other, and no other one that it goes on over."""
    async with (
        running.server(tmp_path / "s", environ=DEBUG) as server,
        running.client_process(
            tmp_path / "c",
            *(server.ticket, str(echo_server), "--min-idle-tunnels", "1"),
            environ=DEBUG,
        ) as client,
    ):
        await client.wait_connected()
        visitors = [await client.visit() for _ in range(20)]  # and one tunnel is idle
        for visitor in visitors:
            assert await ask(visitor, b"early") == b"early"
        begins = "visitor begins on the control connection"
        await server.wait_record(begins)
        for visitor in visitors:
            assert await ask(visitor, b"over a tunnel") == b"over a tunnel"
            await visitor.aclose()
        await client.wait_record("visitor closed", count=len(visitors))
        for early in [record for record in server.records if record["event"] == begins]:
            for log in (server, client):
                await log.wait_record("visitor paired with a tunnel", visitor=early["visitor"])
        for log in (server, client):
            assert "another tunnel" not in log.log_text()
