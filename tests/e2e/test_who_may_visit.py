"""Who may visit a service that has a name: passwords, networks, a rate, and whom its owner lets in."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.test_names import answering
from trionat.protocol.ticket import TOKEN_BYTES, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.e2e.named import Answer, NamedServer
    from tests.e2e.running import Client
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

NAME = f"shop.{DOMAIN}"
ANN = ("--user", "ann:secret")


@asynccontextmanager
async def published(
    folder: Path,
    *flags: str,
    server: tuple[str | Path, ...] = (),
    service: AbstractAsyncContextManager[Service] | None = None,
) -> AsyncIterator[tuple[NamedServer, Client]]:
    """Run a server, and a client with these flags whose service is at `NAME`."""
    async with (
        named_server(folder, *server) as named,
        services.http() if service is None else service as local,
        running.client(
            folder / "client", named.server.ticket, f"http:{local.port}@shop", *flags, stdin=None
        ) as client,
    ):
        yield named, client


class Heads:
    """A service that keeps the heads of its requests."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def answer(self, stream: trio.SocketStream) -> None:
        """Serve a connection; requests without a body."""
        unread = b""
        async for piece in stream:
            unread += piece
            while b"\r\n\r\n" in unread:
                head, _, unread = unread.partition(b"\r\n\r\n")
                self.got.append(head + b"\r\n")
                await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")


async def test_a_password(tmp_path: Path) -> None:
    async with published(tmp_path, "--basic-auth", "ann:open:sesame") as (named, client):
        answer = await named.ask(NAME)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == f'Basic realm="{NAME}", charset="UTF-8"'
        assert (await named.ask(NAME, "/", "--user", "ann:wrong")).status == 401
        assert (await named.ask(NAME, "/", "--user", "bob:open:sesame")).status == 401
        answer = await named.ask(NAME, "/", "--user", "ann:open:sesame")
        assert (answer.status, answer.body) == (200, b"hello")
        # On one connection: what was right once costs nothing more.
        url = named.url(NAME)
        began = time.monotonic()
        many = await named.ask(NAME, "/", "--user", "ann:open:sesame", *([url] * 50))
        assert many.body.count(b"hello") == 51
        assert time.monotonic() - began < 5
        for log in (named.server.log_text(), client.log_text()):
            assert "sesame" not in log


async def test_several_users_have_a_password_each(tmp_path: Path) -> None:
    async with (
        named_server(tmp_path) as named,
        services.http() as service,
        running.client(
            tmp_path / "client",
            named.server.ticket,
            f"http:{service.port}@shop",
            *("--basic-auth", "ann:one,two", "--basic-auth", "bob:three"),
        ),
    ):
        for login, status in (("ann:one,two", 200), ("bob:three", 200), ("ann:three", 401)):
            assert (await named.ask(NAME, "/", "--user", login)).status == status, login


async def test_who_guesses_has_to_wait(tmp_path: Path) -> None:
    async with published(tmp_path, "--basic-auth", "ann:secret") as (named, _):
        statuses = [
            (await named.ask(NAME, "/", "--user", f"ann:{guess}")).status for guess in range(12)
        ]
        assert statuses[:10] == [401] * 10
        assert statuses[10:] == [429, 429]
        late = await named.ask(NAME, "/", "--user", "ann:secret")
        assert late.status == 429
        assert 0 < int(late.headers["retry-after"]) <= 60


async def test_the_service_does_not_get_the_password(tmp_path: Path) -> None:
    heads = Heads()
    service = services.serve(heads.answer)
    async with published(tmp_path, "--basic-auth", "ann:secret", service=service) as (named, _):
        assert (await named.ask(NAME, "/", *ANN)).status == 204
    [head] = heads.got
    assert b"uthorization" not in head, head


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (("--allow", "192.0.2.0/24"), 403),
        (("--allow", "127.0.0.0/8"), 200),
        (("--deny", "127.0.0.1"), 403),
        (("--allow", "127.0.0.0/8", "--deny", "127.0.0.1"), 403),
    ],
)
async def test_networks(tmp_path: Path, flags: tuple[str, ...], status: int) -> None:
    async with published(tmp_path, *flags) as (named, _):
        assert (await named.ask(NAME)).status == status


async def test_a_rate(tmp_path: Path) -> None:
    async with published(tmp_path, "--rate", "2", service=answering(b"shop")) as (named, _):
        command = named.curl(
            *("--write-out", "%{http_code} ", "--output", "/dev/null"),
            named.url(NAME, "/?[1-20]"),
            name=NAME,
        )
        done = await trio.run_process(command, capture_stdout=True)
        statuses = done.stdout.split()
        assert statuses.count(b"200") in (10, 11, 12), statuses
        assert set(statuses) == {b"200", b"429"}, statuses
        await trio.sleep(1.1)
        assert (await named.ask(NAME)).status == 200


async def test_the_owner_lets_visitors_in(tmp_path: Path) -> None:
    async with published(tmp_path, "--approve") as (named, client):
        first = await named.ask(NAME, "/secret", "--user-agent", "Browser 1")
        assert (first.status, first.headers.get("refresh")) == (403, "3"), first
        asked = await client.process.next_event("approval-asked")
        assert (asked["host"], asked["name"]) == (
            "127.0.0.1",
            client.connected["services"][0]["local"],
        )
        assert "GET /secret" in asked["what"]
        assert (await named.ask(NAME)).status == 403
        await client.process.say(json.dumps({"approve": "127.0.0.1"}) + "\n")
        await become(named, 200)
        await client.process.say(json.dumps({"deny": "127.0.0.1"}) + "\n")
        answer = await become(named, 403)
        assert "refresh" not in answer.headers


@pytest.mark.limit(60)
async def test_the_owner_answers_at_a_terminal(tmp_path: Path) -> None:
    async with named_server(tmp_path) as named, services.http() as service:
        command = services.trionat_command(
            *("connect", named.server.ticket, f"http:{service.port}@shop", "--approve"),
            *("--state-dir", tmp_path / "client"),
        )
        child, terminal = pty.fork()
        if not child:
            os.execve(command[0], command, services.trionat_environ())
        try:
            await shown(terminal, f"https://{NAME}")
            assert (await named.ask(NAME, "/secret")).status == 403
            await shown(terminal, "GET /secret, curl")
            os.write(terminal, b"n\n")
            await shown(terminal, "127.0.0.1 is kept out for an hour")
            answer = await become(named, 403)
            assert "refresh" not in answer.headers
            os.write(terminal, b"y\n")  # of nobody
            os.kill(child, signal.SIGINT)
            with trio.fail_after(running.START_TIMEOUT):
                _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            child = 0
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)  # noqa: ASYNC222 (it ends at once)
            os.close(terminal)


async def shown(terminal: int, text: str) -> None:
    """Read what a terminal shows until it has shown a text."""
    seen = ""
    with trio.fail_after(running.START_TIMEOUT):
        while text not in seen:
            await trio.lowlevel.wait_readable(terminal)
            seen += os.read(terminal, 4096).decode()


async def test_whom_the_owner_lets_in_does_not_hang_on_one_client(tmp_path: Path) -> None:
    """Each client salts its password anew, so what it says is not quite the same."""
    flags = ("--approve", "--basic-auth", "ann:secret", "--group", "web")
    proxy = ("--trusted-proxies", "127.0.0.1")
    async with published(tmp_path, *flags, server=proxy) as (named, first), answering(b"2") as two:
        again = (named.server.ticket, f"http:{two.port}@shop", *flags)

        async def ask(host: str) -> int:
            return (await named.ask(NAME, "/", *ANN, "-H", f"X-Forwarded-For: {host}")).status

        async def asked(client: Client) -> str:
            host: str = (await client.process.next_event("approval-asked"))["host"]
            return host

        async with running.client(tmp_path / "second", *again, stdin=None) as second:
            assert await ask("198.51.100.1") == 403
            assert await asked(first) == await asked(second) == "198.51.100.1"
            await second.process.say(json.dumps({"approve": "198.51.100.1"}) + "\n")
            with trio.fail_after(20):
                while await ask("198.51.100.1") != 200:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.05)
        # Who is left is asked, and comes back without being asked again.
        assert await ask("198.51.100.1") == 200
        assert await ask("198.51.100.2") == 403
        assert await asked(first) == "198.51.100.2"
        first.kill()
        await first.wait(within=10)
        async with running.client(tmp_path / "client", *again, stdin=None):
            assert await ask("198.51.100.1") == 200


async def test_a_person_is_asked_for_a_service_by_its_name(tmp_path: Path) -> None:
    output = tmp_path / "output"
    async with (
        named_server(tmp_path) as named,
        services.http() as service,
        trio.open_nursery() as nursery,
    ):
        url = f"https://{NAME}:{named.https}"
        with output.open("wb") as file:
            process = await trio.lowlevel.open_process(
                services.trionat_command(
                    *("connect", named.server.ticket, f"http:{service.port}@shop", "--approve"),
                    *("--state-dir", tmp_path / "client"),
                ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=services.trionat_environ(),
            )
        nursery.start_soon(process.wait)
        try:
            await running.wait_until(lambda: f"{url} -> " in output.read_text())
            assert (await named.ask(NAME)).status == 403
            asked = f"127.0.0.1 wants to visit {url}: GET /"
            await running.wait_until(lambda: asked in output.read_text())
            assert "y or n" not in output.read_text()
        finally:
            process.terminate()


@pytest.mark.parametrize("as_json", [True, False])
async def test_where_nobody_can_be_asked_the_client_says_so(tmp_path: Path, as_json: bool) -> None:
    ticket = Ticket(
        host="127.0.0.1",
        port=services.free_low_port(),
        fingerprint=None,
        username="u",
        token=bytes(TOKEN_BYTES),
    )
    done = await trio.run_process(
        services.trionat_command(
            *("connect", ticket.encode(), "http:8080", "--approve", "--once"),
            *("--state-dir", tmp_path, *(("--json",) if as_json else ())),
        ),
        stdin=subprocess.DEVNULL,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=services.trionat_environ(),
    )
    assert done.stderr.decode().count("nobody can be asked who may visit") == 1, done.stderr


async def become(named: NamedServer, status: int, *arguments: str) -> Answer:
    """Ask until the answer has this status."""
    with trio.fail_after(20):
        while True:
            answer = await named.ask(NAME, "/", *arguments)
            if answer.status == status:
                return answer
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "status"), [((), 403), (("--trusted-proxies", "127.0.0.1"), 200)]
)
async def test_only_a_proxy_of_the_operator_s_says_where_a_visitor_comes_from(
    tmp_path: Path, flags: tuple[str, ...], status: int
) -> None:
    async with published(
        tmp_path, "--allow", "198.51.100.0/24", server=flags, service=answering(b"shop")
    ) as (named, _):
        forged = ("--header", "X-Forwarded-For: 192.0.2.1, 198.51.100.9")
        assert (await named.ask(NAME, "/", *forged)).status == status
        assert (await named.ask(NAME, "/")).status == 403
        # One connection of a proxy's may carry several visitors.
        stream = await named.connect(NAME)
        for host, expected in (("198.51.100.9", status), ("192.0.2.1", 403)):
            await stream.send_all(
                f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Forwarded-For: {host}\r\n\r\n".encode()
            )
            head = bytes(await stream.receive_some())
            assert head.split()[1] == str(expected).encode(), head
            if expected != 200:
                break
        await stream.aclose()


async def test_a_ticket_for_less_takes_no_password_away(tmp_path: Path) -> None:
    flags = ("--basic-auth", "ann:secret", "--group", "web")
    async with published(tmp_path, *flags) as (named, _):
        narrow = Ticket.decode(named.server.ticket).narrow("only names=shop").encode()
        reason = await refusal(tmp_path / "guest", narrow, "http:8080@shop", "--group", "web")
        assert reason == f"{NAME} is in use by another client of this account"
        assert (await named.ask(NAME)).status == 401


async def test_a_group_has_one_word_about_who_may_visit(tmp_path: Path) -> None:
    flags = ("--basic-auth", "ann:secret", "--group", "web")
    async with published(tmp_path, *flags) as (named, first), answering(b"two") as two:
        again = (named.server.ticket, f"http:{two.port}@shop", "--group", "web")
        reason = await refusal(tmp_path / "open", *again)
        assert f"the group web says otherwise about {NAME} than this client" in reason
        assert (await named.ask(NAME)).status == 401
        async with running.client(tmp_path / "second", *again, "--basic-auth", "ann:secret"):
            assert {(await named.ask(NAME, "/", *ANN)).status for _ in range(4)} == {200}
            first.kill()
            await first.wait(within=10)
            assert (await named.ask(NAME)).status == 401
            answer = await named.ask(NAME, "/", *ANN)
            assert (answer.status, answer.body.split()[0]) == (200, b"two")


async def refusal(folder: Path, *arguments: str) -> str:
    """Run a client that is not let in; return why."""
    async with running.client_process(folder, *arguments) as client:
        problem = await client.process.next_event("disconnected", within=20)
        client.terminate()
    reason: str = problem["reason"]
    return reason
