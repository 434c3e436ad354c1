"""Who may log in, and who may stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e import running, services
from tests.e2e.running import ask, end_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.e2e.running import Server
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

PASSWORD = "correct horse battery staple"


async def user(server: Server, *arguments: str, stdin: bytes = b"") -> str:
    """Run `trionat user` on a server's state folder, and return what it prints."""
    result = await services.run_trionat(
        "user", *arguments, "--state-dir", server.state, stdin=stdin, cwd=server.state
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


async def refused(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `trionat connect`, which ends by itself; return its code and its lines on standard error."""
    async with running.client_process(folder, *arguments, environ=environ) as client:
        code = await client.wait()
        assert [event["event"] for event in client.process.events] in ([], ["disconnected"])
        lines = client.process.errors.decode().splitlines()
        told = [line for line in lines if line.startswith("trionat: ")]
        assert len(told) == 1, lines
        return code, told[0].removeprefix("trionat: ")


async def test_passwords(echo_server: Service, tmp_path: Path) -> None:
    """By environment or flag; a wrong one and an unknown name get the same answer and exit code 4."""
    async with running.server(tmp_path / "s") as server:
        await user(server, "add", "ann", stdin=PASSWORD.encode() + b"\n")
        pin = str(server.ready["fingerprint"])
        login = ["-c", server.ready["control"], "--fingerprint", pin, str(echo_server)]
        right = {"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": PASSWORD}
        async with running.client_process(tmp_path / "c", *login, environ=right) as client:
            await client.wait_connected()
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
        answer = (4, "authentication failed: wrong name or password")
        wrong = right | {"TRIONAT_AUTH_PASSWORD": PASSWORD + "x"}
        assert await refused(tmp_path / "wrong", *login, environ=wrong) == answer
        assert await refused(tmp_path / "who", *login, "-u", "bob", "-P", PASSWORD) == answer
        for text in (server.log_text(), client.log_text()):
            assert PASSWORD not in text
        failed = await server.wait_record("connection closed", count=2, reason=answer[1])
        assert failed["level"] == "info"


async def test_tickets(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s") as server:
        local = str(echo_server)
        await user(server, "add", "ann", stdin=PASSWORD.encode())
        first = (await user(server, "ticket", "ann")).strip()
        by_file = tmp_path / "ticket"
        by_file.write_text(first + "\n")
        arguments = ["--ticket-file", str(by_file), local]
        async with running.client_process(tmp_path / "a", *arguments) as client:
            await client.wait_connected()
        second = (await user(server, "ticket", "ann", "--renew")).strip()
        assert second != first
        void = (4, "authentication failed: wrong ticket")
        assert await refused(tmp_path / "b", first, local) == void
        environ = {"TRIONAT_TICKET": second}
        async with running.client_process(tmp_path / "c", local, environ=environ) as client:
            await client.wait_connected()
        code, message = await refused(tmp_path / "d", second[:-3] + "xyz", local)
        assert (code, message) == (2, "ticket: the ticket is damaged: copy it again, whole")
        assert second not in server.log_text() + client.log_text()


@pytest.mark.parametrize(
    ("command", "reason", "answer"),
    [
        (
            ["remove", "trionat"],
            "the account trionat was removed",
            "authentication failed: wrong ticket",
        ),
        (
            ["expire", "trionat", "2020-01-31"],
            "the account trionat has expired",
            "the account trionat has expired",
        ),
        (
            ["disable", "trionat"],
            "the account trionat is disabled: ask the server's operator",
            "the account trionat is disabled: ask the server's operator",
        ),
    ],
    ids=["removed", "expired", "disabled"],
)
async def test_account_that_ends_while_it_is_used(
    command: list[str], reason: str, answer: str, echo_server: Service, tmp_path: Path
) -> None:
    """The session is closed within a few seconds, visitors and all; the client says why, ends, and is not let in again."""
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"hello") == b"hello"
        await user(server, *command)
        gone = await client.process.next_event("disconnected", within=5)
        assert (gone["reason"], gone["retry_in"]) == (reason, None)
        assert await client.wait() == 4
        assert f"trionat: {reason}\n" in client.process.errors.decode()
        assert await end_of(visitor) == "reset"
        await server.wait_record("session closed", reason=reason)
        await server.wait_record("ports are free again")
        assert await refused(tmp_path / "c", server.ticket, str(echo_server)) == (4, answer)


async def test_without_authentication(echo_server: Service, tmp_path: Path) -> None:
    """Whoever comes is `anonymity`; a ticket there holds address and fingerprint only. There are no accounts at all."""
    async with running.server(tmp_path / "s", "--start-auth", "false", visit="0,0") as server:
        assert await user(server, "list", "--json") == ""
        pin = str(server.ready["fingerprint"])
        login = ["-c", server.ready["control"], "--fingerprint", pin, str(echo_server)]
        async with (
            running.client(tmp_path / "a", server.ticket, echo_server) as one,
            running.client_process(tmp_path / "b", *login, "-u", "ann", "-P", "any") as other,
        ):
            await other.wait_connected()
            for client in (one, other):
                async with await client.visit() as visitor:
                    assert await ask(visitor, b"hello") == b"hello"
            await server.wait_record("session up", user="anonymity", count=2)
