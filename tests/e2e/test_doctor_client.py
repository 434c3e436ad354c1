"""A client's doctor: each fault is made for real, and found."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.doctor import examine
from tests.e2e.running import ask
from tests.failover.test_servers import names
from tests.faults.networks import network
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Server

pytestmark = pytest.mark.limit(60)

AFTER_LOGIN = ("version", "clock", "proxies", "visitors")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running.server(tmp_path / "s", visit="0,0") as server:
        yield server


def changed(ticket: str, **fields: object) -> str:
    return attrs.evolve(Ticket.decode(ticket), **fields).encode()  # type: ignore[arg-type]


async def test_nothing_wrong(server: Server, tmp_path: Path) -> None:
    """It changes nothing, and the user's own client stays as it is."""
    async with (
        services.echo() as echo,
        running.client(tmp_path / "c", server.ticket, echo) as client,
        await client.visit() as visitor,
    ):
        seen = await examine(server.ticket, echo, "--state-dir", tmp_path / "none", cwd=tmp_path)
        assert seen.wrong == set()
        assert "only" not in seen.of("version", "ok"), (
            "as if the other one, which is the same, could not"
        )
        assert "nobody is in between" in seen.of("tls", "ok")
        assert "lets trionat in" in seen.of("ticket", "ok")
        assert "is open, from here and from the server itself" in seen.of("visitors", "ok")
        assert f"{echo} answers" in seen.of("service", "ok")
        assert await ask(visitor, b"still here") == b"still here"
        await server.wait_record("session closed")
        ends = [each for each in server.records if each["event"] == "session closed"]
        assert [each["code"] for each in ends] == ["left"]
    assert not (tmp_path / "none").exists()


async def test_people_get_lines(server: Server, tmp_path: Path) -> None:
    done = await services.run_trionat("doctor", server.ticket, "1", cwd=tmp_path)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 6
    assert lines[0].split()[:2] == ["ok", "configuration"]
    number = next(number for number, line in enumerate(lines) if line.startswith("wrong"))
    assert lines[number].split()[1] == "service"
    assert lines[number + 1].strip().startswith("-> start that service")
    assert lines[-1] == "1 wrong"
    assert "tn1_A" not in done.stdout.decode()


async def test_a_wrong_clock(server: Server, tmp_path: Path) -> None:
    fake = services.find_program("faketime", package="faketime")
    for offset, told in (("+2h", "2 hours ahead of"), ("-3d", "3 days behind")):
        seen = await examine(server.ticket, cwd=tmp_path, inside=(fake, "-f", offset))
        assert seen.wrong == {"clock"}
        assert told in seen.of("clock")


async def test_a_port_that_is_closed(server: Server, tmp_path: Path) -> None:
    """What comes after it is not wrong, but not known."""
    ticket = changed(server.ticket, port=services.free_low_port())
    seen = await examine(ticket, cwd=tmp_path)
    assert seen.wrong == {"port"}
    assert "Connection refused" in seen.of("port")
    for check in ("trionat", "tls", "ticket", *AFTER_LOGIN):
        assert "not looked at" in seen.of(check, "unknown")


@pytest.mark.parametrize(
    ("banner", "told"),
    [(b"SSH-2.0-Somebody\r\n", "it says 'SSH-2.0-Somebody'"), (b"", "is no trionat")],
)
async def test_another_program_at_the_port(
    server: Server, tmp_path: Path, banner: bytes, told: str
) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(banner or b"\0\0\0")
        await trio.sleep(0.2)

    async with services.serve(handler) as other:
        seen = await examine(changed(server.ticket, port=other.port), cwd=tmp_path)
    assert seen.wrong == {"trionat"}
    assert told in seen.of("trionat")


async def test_a_wrong_pin(server: Server, tmp_path: Path) -> None:
    """Nothing is sent to that server."""
    seen = await examine(changed(server.ticket, fingerprint=b"x" * 32), cwd=tmp_path)
    assert seen.wrong == {"tls"}
    assert "somebody is in between" in seen.of("tls")
    assert not [each for each in server.records if each["event"] == "session up"]


async def test_no_authority_vouches(server: Server, tmp_path: Path) -> None:
    host, port = server.control
    seen = await examine("-c", f"{host}:{port}", "-u", "trionat", "-P", "no", cwd=tmp_path)
    assert seen.wrong == {"tls"}
    assert "--fingerprint" in seen.of("tls")


async def test_trust_on_first_use_is_left_to_the_client(server: Server, tmp_path: Path) -> None:
    host, port = server.control
    state = tmp_path / "known"
    seen = await examine(
        *("-c", f"{host}:{port}", "-u", "trionat", "-P", "no", "--trust-on-first-use"),
        *("--state-dir", state),
        cwd=tmp_path,
    )
    assert "would trust what it shows now" in seen.of("tls", "warning")
    assert seen.wrong == {"ticket"}
    assert not state.exists()


async def test_a_void_ticket(server: Server, tmp_path: Path) -> None:
    await services.run_trionat("user", "ticket", "trionat", "--renew", "--state-dir", server.state)
    seen = await examine(server.ticket, cwd=tmp_path)
    assert seen.wrong == {"ticket"}
    assert "wrong ticket" in seen.of("ticket")
    assert "trionat user ticket trionat" in seen.of("ticket")


async def test_an_expired_user(server: Server, tmp_path: Path) -> None:
    done = await services.run_trionat(
        "user", "expire", "trionat", "2020-01-31", "--state-dir", server.state
    )
    assert done.returncode == 0, done.stderr
    seen = await examine(server.ticket, cwd=tmp_path)
    assert seen.wrong == {"ticket"}
    assert "expired" in seen.of("ticket")
    assert "user expire trionat never" in seen.of("ticket")


async def test_a_disabled_user(server: Server, tmp_path: Path) -> None:
    done = await services.run_trionat("user", "disable", "trionat", "--state-dir", server.state)
    assert done.returncode == 0, done.stderr
    seen = await examine(server.ticket, cwd=tmp_path)
    assert seen.wrong == {"ticket"}
    assert "is disabled" in seen.of("ticket")
    assert "user enable trionat" in seen.of("ticket")


async def test_a_narrowed_ticket_that_has_expired(server: Server, tmp_path: Path) -> None:
    """What helps comes first: another ticket, as the account is all right."""
    ticket = Ticket.decode(server.ticket).narrow("until 2020-01-31T12:00:00Z")
    seen = await examine(ticket.encode(), cwd=tmp_path)
    assert seen.wrong == {"ticket"}
    assert "-> a new ticket, at the server: trionat user ticket trionat; if" in seen.of("ticket")


async def test_a_user_that_expires_soon(tmp_path: Path) -> None:
    """With several processes the one that has the session knows it as well."""
    async with running.server(tmp_path / "s", "--workers", "2") as server:
        expire = ("user", "expire", "trionat")
        await services.run_trionat(*expire, "30d", "--state-dir", server.state)
        seen = await examine(server.ticket, cwd=tmp_path)
        assert re.search(r"lets trionat in, until 20\d\d-", seen.of("ticket", "ok"))
        assert not seen.of("ticket", "warning")
        await services.run_trionat(*expire, "2d", "--state-dir", server.state)
        seen = await examine(server.ticket, cwd=tmp_path)
    assert seen.wrong == set()
    assert "the login of trionat is void from" in seen.of("ticket", "warning")


async def test_a_name_that_leads_nowhere(server: Server, tmp_path: Path) -> None:
    seen = await examine(changed(server.ticket, host="nobody.invalid"), cwd=tmp_path)
    assert seen.wrong == {"dns"}
    assert "nobody.invalid leads nowhere" in seen.of("dns")


async def test_each_address_of_a_name(server: Server, tmp_path: Path) -> None:
    """One that does not answer is found, although another one does, and the rest goes on."""
    inside = names(tmp_path / "hosts", "two.test", "127.0.0.1", "127.0.0.9")
    seen = await examine(changed(server.ticket, host="two.test"), cwd=tmp_path, inside=inside)
    assert seen.wrong == {"port"}
    assert seen.of("port").startswith("127.0.0.9:")
    assert "lets trionat in" in seen.of("ticket", "ok")


async def test_a_public_address_that_leads_elsewhere(tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", "--public-addr", "127.0.0.7") as server:
        seen = await examine(changed(server.ticket, host="127.0.0.1"), cwd=tmp_path)
    assert seen.wrong == {"visitors"}
    assert "from the server itself: Connection refused (127.0.0.7:" in seen.of("visitors")


async def test_a_firewall_before_the_visit_ports(tmp_path: Path) -> None:
    """The control port is open, and the server itself gets to its visit port; only visitors do not."""
    port = services.free_low_port()
    with network() as host, network(beside=host) as here:
        peer = ("peer", "name", "eth0", "netns", str(host.holder.pid))
        here.run("ip", "link", "add", "eth0", "type", "veth", *peer)
        for each, address in ((host, "10.78.0.1"), (here, "10.78.0.2")):
            each.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            each.run("ip", "link", "set", "eth0", "up")
        async with running.server(
            tmp_path / "s",
            *("--public-addr", "10.78.0.1", "--visit-host", "10.78.0.1"),
            control="10.78.0.1:0",
            visit=str(port),
            inside=host.inside,
        ) as server:
            open_ = await examine(server.ticket, cwd=tmp_path, inside=here.inside)
            assert open_.wrong == set()
            rule = ("ipproto", "tcp", "dport", str(port), "blackhole")
            here.run("ip", "rule", "add", "pref", "1", *rule)
            shut = await examine(server.ticket, cwd=tmp_path, inside=here.inside)
    assert shut.wrong == {"visitors"}
    assert "the server itself gets there" in shut.of("visitors")
    assert f"open port {port}" in shut.of("visitors")


async def test_what_the_server_would_refuse(server: Server, tmp_path: Path) -> None:
    """It says so as `connect` would, and what the user's own client has is fine."""
    has, other = server.ready["visit_ports"]
    narrowed = Ticket.decode(server.ticket).narrow(f"only ports={other}").encode()
    async with services.echo() as echo:
        wanted = f"{echo}:{has}"
        async with running.client(tmp_path / "c", server.ticket, wanted):
            seen = await examine(server.ticket, wanted, cwd=tmp_path)
            assert seen.wrong == set()
            assert "has the visit ports and names" in seen.of("offer", "ok")
            for ticket, service, refusal in (
                (server.ticket, f"http:{echo}@shop", "this server has no domain"),
                (server.ticket, f"{echo}:99", "visit port 99 is not one that this server offers ("),
                (
                    narrowed,
                    wanted,
                    f"{has} is not one that this server offers to this ticket ({other})",
                ),
            ):
                seen = await examine(ticket, service, cwd=tmp_path)
                assert seen.wrong == {"offer"}
                assert refusal in seen.of("offer")
            assert "trionat user limit trionat" in seen.of("offer")
        await server.wait_record("session closed")
    ends = {each["code"] for each in server.records if each["event"] == "session closed"}
    assert ends == {"left"}


async def test_few_descriptors(server: Server, tmp_path: Path) -> None:
    limited = (services.find_program("prlimit", package="util-linux"), "--nofile=300")
    seen = await examine(server.ticket, cwd=tmp_path, inside=limited)
    assert seen.wrong == {"descriptors"}
    assert "300 may be open, and 2056 are needed" in seen.of("descriptors")


async def test_all_sessions_are_taken(tmp_path: Path) -> None:
    """Nothing is wrong with that, and the doctor cannot look."""
    async with (
        services.echo() as echo,
        running.server(tmp_path / "s", visit="0") as server,
        running.client(tmp_path / "c", server.ticket, echo),
    ):
        seen = await examine(server.ticket, cwd=tmp_path)
    assert seen.wrong == set()
    assert "number 1 in the queue" in seen.of("ticket", "unknown")


async def test_five_faults_at_once(tmp_path: Path) -> None:
    """Those that hide behind each other aside, all of them are found, in the order of the checks."""
    async with running.server(tmp_path / "s", "--public-addr", "127.0.0.7") as server:
        ticket = tmp_path / "ticket"
        await trio.Path(ticket).write_text(changed(server.ticket, host="127.0.0.1"))
        await trio.Path(ticket).chmod(0o644)
        inside = (
            *(services.find_program("prlimit", package="util-linux"), "--nofile=300"),
            *(services.find_program("faketime", package="faketime"), "-f", "+2h"),
        )
        seen = await examine(
            *("--ticket-file", ticket, services.free_low_port()), cwd=tmp_path, inside=inside
        )
    found = [each["check"] for each in seen.findings if each["verdict"] == "wrong"]
    assert found == ["files", "clock", "visitors", "service", "descriptors"]


async def test_two_servers(server: Server, tmp_path: Path) -> None:
    """Each is looked at, and told by its address."""
    host, port = server.control
    other = services.free_low_port()
    seen = await examine(
        *(server.ticket, "--server", f"{host}:{port}", "--server", f"{host}:{other}"), cwd=tmp_path
    )
    [wrong] = [each for each in seen.findings if each["verdict"] == "wrong"]
    assert (wrong["check"], wrong["about"]) == ("port", f"{host}:{other}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "there is neither a server nor a client here"),
        (("tn1_AAAA",), "damaged"),
        (("-c", "nobody:here:1"), "--controller-addr"),
    ],
)
async def test_a_wrong_command_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = await services.run_trionat(
        "doctor", *arguments, "--state-dir", tmp_path / "none", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in done.stderr.decode()


async def test_a_wrong_file_is_a_finding(server: Server, tmp_path: Path) -> None:
    await trio.Path(tmp_path / "client.yml").write_text("Client:\n  Servicez: [8080]\n")
    seen = await examine(server.ticket, cwd=tmp_path)
    assert "did you mean Services?" in seen.of("configuration")


async def test_an_empty_ticket_file_is_one_fault(tmp_path: Path) -> None:
    ticket = tmp_path / "ticket"
    ticket.touch(0o600)
    seen = await examine("--ticket-file", ticket, cwd=tmp_path)
    [wrong] = [each for each in seen.findings if each["check"] == "configuration"]
    assert "the file is empty: a ticket goes there" in wrong["text"]


async def test_what_comes_through_a_pipe_is_read_once(server: Server, tmp_path: Path) -> None:
    """As with `--config <(…)`, `--ticket-file <(…)`: nothing comes the second time."""
    pipes = [tmp_path / "config", tmp_path / "ticket"]
    texts = ("Client: {LocalTimeout: 3}", server.ticket)
    async with trio.open_nursery() as nursery:
        for pipe, text in zip(pipes, texts, strict=True):
            os.mkfifo(pipe)
            nursery.start_soon(trio.Path(pipe).write_text, text)
        seen = await examine("--config", pipes[0], "--ticket-file", pipes[1], cwd=tmp_path)
    assert seen.of("configuration", "ok") == f"client: {pipes[0]} -> "
    assert "lets trionat in" in seen.of("ticket", "ok")


async def test_two_services_at_one_place(tmp_path: Path) -> None:
    """It is dialled once, and told once."""
    ticket = tmp_path / "ticket"
    ticket.touch(0o600)
    port = services.free_low_port()
    seen = await examine("--ticket-file", ticket, f"{port}:60000", f"{port}:60001", cwd=tmp_path)
    [service] = [each for each in seen.findings if each["check"] == "service"]
    assert (service["verdict"], service["about"]) == ("wrong", "")


async def test_a_reader_that_leaves(server: Server, tmp_path: Path) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    command = [*services.trionat_command("doctor", server.ticket)]
    done = await trio.run_process(
        [shell, "-c", '"$@" | head -1', "sh", *command],
        capture_stdout=True,
        capture_stderr=True,
        cwd=tmp_path,
        env=services.trionat_environ(),
    )
    assert done.stdout.startswith(b"ok ")
    assert done.stderr == b""
