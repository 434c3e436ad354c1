"""The doctor without a machine: how checks run, what is made of two visits, what is masked, and how a server visits."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory_server import open_memory_server
from trionat.address import TCPAddress
from trionat.cli.diagnostics import find_problems
from trionat.cli.doctor import _Patient
from trionat.client.native.dialer import Server
from trionat.config.client import ClientConfig
from trionat.config.load import load
from trionat.doctor.bundle import check_place, last_lines, write_bundle
from trionat.doctor.check import Check, run_checks
from trionat.doctor.clock import check_clock, compare_clocks
from trionat.doctor.configuration import check_configuration
from trionat.doctor.files import SecretFile, check_files
from trionat.doctor.finding import Finding, Verdict, fine, wrong
from trionat.doctor.login import ADVICE, CANNOT_LOOK
from trionat.doctor.masking import Masker, secret_contents
from trionat.doctor.peer import Peer, Visit
from trionat.doctor.proxies import check_proxies
from trionat.doctor.version import check_version
from trionat.doctor.visitors import check_visitors
from trionat.errors import RemoteProtocolError, StartupError
from trionat.protocol.messages import (
    EXAMINE,
    Close,
    CloseCode,
    Examine,
    Examined,
    Publish,
    PublishKind,
    RefusalCode,
    ServiceRequest,
    Welcome,
)
from trionat.protocol.ticket import Ticket
from trionat.server.sessions.examination import Examination
from trionat.server.visitors.ports import VisitPort

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy

HERE = TCPAddress("127.0.0.1", 1)
WELCOME = Welcome(
    uid=1,
    secret=bytes(32),
    ports=(60000,),
    host="public.example",
    ping_interval=2.5,
    peer_timeout=8,
    max_tunnels=9,
)
EXAMINED = Examined(
    service=0,
    dialled="public.example:60000",
    answered=True,
    failure="",
    time=1000.0,
    client="192.0.2.1:4000",
    software="trionat 9",
)


# -- how they run -----------------------------------------------------------------------------------------------------


def after(seconds: float, *findings: Finding) -> Callable[[], Awaitable[Sequence[Finding]]]:
    async def look() -> Sequence[Finding]:
        await trio.sleep(seconds)
        return findings

    return look


async def test_they_run_beside_each_other_and_are_shown_in_order(autojump_clock: MockClock) -> None:
    shown: list[tuple[float, str]] = []
    checks = [
        Check(name="slow", look=after(3, fine("a"), fine("b"))),
        Check(name="quick", look=after(1, fine("c"))),
        Check(name="last", look=after(4, fine("d"))),
    ]
    await run_checks(checks, lambda _, found: shown.append((trio.current_time(), found.text)))
    assert shown == [(3, "a"), (3, "b"), (3, "c"), (4, "d")]


async def test_what_hides_behind_something_wrong_is_not_known(autojump_clock: MockClock) -> None:
    first = Check(name="first", look=after(1, wrong("no", "do")))
    second = Check(name="second", look=after(0, fine("yes")), needs=(first,))
    third = Check(name="third", look=after(0, fine("yes")), needs=(second,))
    beside = Check(name="beside", look=after(0, fine("yes")), after=(first,))
    results = await run_checks([first, second, third, beside])
    assert [results[check][0].verdict for check in (second, third)] == [Verdict.UNKNOWN] * 2
    assert "first has to be right" in results[second][0].text
    assert results[beside] == (fine("yes"),)


async def test_one_that_hangs(autojump_clock: MockClock) -> None:
    check = Check(name="hangs", look=after(100, fine("late")), patience=5)
    [found] = (await run_checks([check]))[check]
    assert (found.verdict, trio.current_time()) == (Verdict.WRONG, 5)


async def test_an_error_of_ours_is_a_finding() -> None:
    async def look() -> Sequence[Finding]:
        await trio.lowlevel.checkpoint()
        raise StartupError("it is not there: make it")

    check = Check(name="fails", look=look)
    assert (await run_checks([check]))[check] == [wrong("it is not there: make it", "")]


async def test_what_the_system_refuses_is_a_finding(tmp_path: Path) -> None:
    async def look() -> Sequence[Finding]:
        await trio.lowlevel.checkpoint()
        (tmp_path / "missing").read_bytes()
        return []

    check = Check(name="fails", look=look)
    [found] = (await run_checks([check]))[check]
    assert found.verdict is Verdict.WRONG
    assert found.text == f"{tmp_path}/missing: No such file or directory"


async def test_a_bug_is_none() -> None:
    async def look() -> Sequence[Finding]:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        await run_checks([Check(name="bug", look=look)])


# -- what is made of it -----------------------------------------------------------------------------------------------


def peer(**fields: object) -> Peer:
    server = Server(control=HERE, tunnel=HERE, username="alice")
    return Peer(server=server, config=ClientConfig(), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("from_here", "from_there", "verdict", "told"),
    [
        ("", "", Verdict.OK, "from here and from the server itself"),
        ("", "no answer", Verdict.OK, "which nobody needs"),
        ("", None, Verdict.OK, "is open, from here -> "),
        ("no answer", "", Verdict.WRONG, "a firewall is in between"),
        ("no answer", "refused", Verdict.WRONG, "does PublicAddr"),
        ("no answer", None, Verdict.WRONG, "open port 60000"),
    ],
)
def test_two_visits(from_here: str, from_there: str | None, verdict: Verdict, told: str) -> None:
    visit = Visit(address=TCPAddress("public.example", 60000), failure=from_here)
    examined = None
    if from_there is not None:
        examined = attrs.evolve(EXAMINED, failure=from_there, answered=not from_there)
    [found] = check_visitors(peer(visit=visit, examined=examined))
    assert found.verdict is verdict
    assert told in f"{found.text} -> {found.advice}"


@pytest.mark.parametrize(
    ("apart", "told"),
    [(45, "45 seconds behind"), (-7200, "2 hours ahead of"), (300000, "3 days behind")],
)
def test_clocks_apart(apart: float, told: str) -> None:
    found = compare_clocks(1e9 + apart, 1e9, "that of the other")
    assert found.verdict is Verdict.WRONG
    assert told in found.text
    assert compare_clocks(1e9 + 20, 1e9, "that of the other").verdict is Verdict.OK


def test_a_server_that_has_not_examined_us() -> None:
    """One that can, and does not answer in time, is not older."""
    for capabilities, told in (((EXAMINE,), "not told in time"), ((), "it is older")):
        asked = peer(welcome=attrs.evolve(WELCOME, capabilities=capabilities))
        for check in (check_clock, check_proxies):
            (found,) = check(asked)
            assert found.verdict is Verdict.UNKNOWN
            assert told in found.text


def test_an_older_server() -> None:
    """It tells neither its clock nor its software, and that is said."""
    older = peer(welcome=WELCOME)
    [told, *warnings] = check_version(older)
    assert told.verdict is Verdict.OK
    assert "the server is older" in warnings[0].text
    [clock] = check_clock(older)
    assert clock.verdict is Verdict.UNKNOWN


# -- how a server visits ----------------------------------------------------------------------------------------------


async def answer_of(
    address: TCPAddress, token: str = "token", *, is_there: bool = True
) -> Examined:
    """Return what a server tells of a service of a client that is at that visit port, or was."""
    point = VisitPort(address.port) if is_there else None
    examination = Examination(address.host, TCPAddress("192.0.2.1", 4000), lambda _: point)
    told, answers = trio.open_memory_channel[Examined](1)
    async with trio.open_nursery() as nursery:
        with told, answers:
            nursery.start_soon(examination.run, lambda answer, _: told.send_nowait(answer))
            examination.ask(Examine(service=0, token=token))
            answer = await answers.receive()
        nursery.cancel_scope.cancel()
    assert answer.dialled == str(address if is_there else attrs.evolve(address, port=0))
    assert answer.client == "192.0.2.1:4000"
    assert answer.answered is (not answer.failure)
    return answer


@pytest.mark.parametrize(
    ("says", "failure"),
    [(b"token", ""), (b"token and more", ""), (b"to", "else"), (b"other", "else"), (b"", "else")],
)
async def test_a_visit(says: bytes, failure: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        if says:
            await stream.send_all(says)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        answer = await answer_of(TCPAddress("127.0.0.1", listener.socket.getsockname()[1]))
        nursery.cancel_scope.cancel()
    assert failure in answer.failure
    assert bool(answer.failure) is bool(failure)


async def test_no_visit_to_a_service_that_was_taken_away() -> None:
    """Its port may be somebody else's by now."""
    answer = await answer_of(TCPAddress("127.0.0.1", 1), is_there=False)
    assert answer.failure == "the service was taken away"


async def test_a_visit_where_nobody_is() -> None:
    assert (await answer_of(TCPAddress("127.0.0.1", 1))).failure == "Connection refused"


async def test_a_service_that_a_client_does_not_have(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        assert EXAMINE in client.welcome.capabilities
        await client.say(Examine(service=1, token="token"))
        close = await client.hear(Close)
        assert (close.code, close.text) == (
            CloseCode.PROTOCOL,
            "EXAMINE for service 1, which is not there",
        )


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ((), None),
        ((ServiceRequest(),), ""),
        ((ServiceRequest(visit_port=60001),), ""),  # which this client has itself
        ((ServiceRequest(visit_port=99),), "visit port 99 is not one"),
        ((ServiceRequest(publish=Publish(kind=PublishKind.HTTP)),), ""),
        ((ServiceRequest(publish=Publish(kind=PublishKind.HTTP, name="shop")),), ""),
        ((ServiceRequest(), ServiceRequest(), ServiceRequest()), "3 services asked for"),
    ],
)
async def test_a_server_says_what_it_would_refuse(
    tidy: Tidy, wanted: tuple[ServiceRequest, ...], refusal: str | None
) -> None:
    """Nobody gets or loses anything by that, and who has it now does not count."""
    async with open_memory_server(tidy, domain="tunnel.test") as server:
        client = await server.welcome("client", 60001)
        await client.say(Examine(service=0, token="token", wanted=wanted))
        told = (await client.hear(Examined)).refusal
        assert told == refusal or (told and refusal and told.startswith(refusal))
        ports = server.admission.leases.ports
        assert (ports.free, dict(ports.names)) == (1, {})


async def test_of_questions_that_wait_only_the_latest_one_is_kept_whole(
    autojump_clock: MockClock,
) -> None:
    """A question may be large, and a client may ask for each of its services."""
    examination = Examination("127.0.0.1", HERE, lambda _: None, refusal_of=lambda _: "no")
    for service in range(3):
        examination.ask(Examine(service=service, token="token", wanted=(ServiceRequest(),)))
    told: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(examination.run, lambda answer, _: told.append(answer.refusal))
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert told == [None, None, "no"]


@pytest.mark.parametrize("token", ["", "a b", "x" * 65, "\u00e9"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Examine.from_payload(Examine(service=0, token=token).payload())


# -- what is masked ---------------------------------------------------------------------------------------------------

PASSWORDS = {
    "Database": "d4tabase-Pass",
    "Redis": "red1s-Pass",
    "Auth": "auth-Pa55",
    "Basic": "bas1c-Pass",
    "Webhook": "hook-S3cret",
}
TICKET = Ticket(
    host="a.example", port=8007, fingerprint=bytes(32), username="alice", token=b"0123456789abcdef"
)
FILE = f"""
Server: {{Domain: tunnel.test, VisitPort: [60000]}}
Database: {{Username: u, Password: {PASSWORDS["Database"]}, Host: h, DBName: d}}
Cluster: {{Redis: 'redis://x:{PASSWORDS["Redis"]}@h:1', Node: n, NodeAddr: '10.0.0.1:9', KeyFile: k}}
Auth: {{Username: u, Password: {PASSWORDS["Auth"]}}}
Client:
  Ticket: {TICKET.encode()}
  Services: [{{Local: 8080, Http: shop, BasicAuth: ['ann:{PASSWORDS["Basic"]}']}}]
Events:
  - {{Url: 'https://hooks.example/services/T0/SECRETPATH', Secret: {PASSWORDS["Webhook"]}}}
"""


def masker(tmp_path: Path, *contents: bytes) -> Masker:
    file = tmp_path / "both.yml"
    file.write_text(FILE)
    return Masker.of([load("server", file=file, environ={})], contents)


@pytest.mark.parametrize("secret", [*PASSWORDS.values(), "SECRETPATH", TICKET.token.hex()])
@pytest.mark.parametrize(
    "around", ["{}", "x{}y", '"key": "{}"', "a={}&b", "said {}, and went", "{}\n{}"]
)
def test_what_is_configured(secret: str, around: str, tmp_path: Path) -> None:
    text = around.replace(
        "{}", f"https://hooks.example/services/T0/{secret}" if secret == "SECRETPATH" else secret
    )
    assert secret not in masker(tmp_path).mask(text)


@pytest.mark.parametrize(
    "text",
    [
        TICKET.encode(),
        f"connect {TICKET.encode()} 8080",
        "trn_" + "a2b3" * 13,
        "redis://u:Sec-Ret@h:1",
        "Authorization: Bearer Sec-Ret.x",
        '{"password": "Sec-Ret", "user": "ann"}',
        "password=Sec-Ret",
        "'client_secret': 'Sec-Ret'",
        "Cookie: Sec-Ret",
        "http://127.0.0.1:4040/?key=Sec-Ret",
        "$argon2id$v=19$m=65536,t=3,p=4$Sec$Ret",
        "-----BEGIN PRIVATE KEY-----\nSec-Ret\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\nSec-Ret",
    ],
)
def test_what_looks_like_a_secret(text: str, tmp_path: Path) -> None:
    masked = masker(tmp_path).mask(f"before {text}")
    assert masked.startswith("before ")
    for part in ("Sec-Ret", "a2b3a2b3", TICKET.encode()[10:], "Sec$Ret"):
        assert part not in masked


def test_what_a_file_holds(tmp_path: Path) -> None:
    """In each way in which somebody may have written it down."""
    key = bytes(range(200, 232))
    known = masker(tmp_path, key, b"first-line-pass\n", b"-----BEGIN X-----\nMIGHAgEAbody\n")
    text = f"{key.hex()} {key.hex().upper()} first-line-pass MIGHAgEAbody"
    masked = known.mask(text)
    assert set(masked) <= {"*", " "}


@pytest.mark.limit(20)
@pytest.mark.parametrize(
    "piece", ["a", "a-", "x://a", "password", "//a:", "a:@", "tn1_aB1aaa ", "token='\\"]
)
def test_no_text_takes_long_to_mask(piece: str) -> None:
    """A log may have half a million characters of anything in one line."""
    Masker(()).mask(piece * (500_000 // len(piece)))


def test_what_is_no_secret_stays(tmp_path: Path) -> None:
    text = "SHA256:oACaSA5gpvROyHHcZZ tunnel.example.com:8007 user=alice token: null /run/app.sock 2026-11-29T10:00:00Z"
    assert masker(tmp_path).mask(text) == text


def test_a_short_secret_leaves_the_rest_readable(tmp_path: Path) -> None:
    file = tmp_path / "both.yml"
    file.write_text("Auth: {Username: u, Password: ab}\n")
    known = Masker.of([load("client", file=file, environ={})])
    assert known.mask("table ab label") == "table ******** label"


@pytest.mark.parametrize(
    ("mode", "for_group", "is_wrong"),
    [(0o600, False, False), (0o640, False, True), (0o640, True, False), (0o644, True, True)],
)
def test_modes_of_files(mode: int, for_group: bool, is_wrong: bool, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    [found] = check_files(
        [SecretFile(path, "a secret", for_group), SecretFile(tmp_path / "no", "")]
    )
    assert (found.verdict is Verdict.WRONG) is is_wrong


def test_a_bundle_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "there.zip"
    path.write_bytes(b"mine")
    with pytest.raises(StartupError, match="name another one"):
        write_bundle(path, {}, Masker(()))
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["there.zip", "dangling.zip", "missing/x.zip", "x" * 300])
def test_where_no_bundle_can_be_is_known_before(name: str, tmp_path: Path) -> None:
    """Not only when all has been looked at, and without a traceback."""
    (tmp_path / "there.zip").touch()
    (tmp_path / "dangling.zip").symlink_to("nowhere")
    with pytest.raises(StartupError, match=r"name another one|cannot write it"):
        check_place(tmp_path / name)
    check_place(tmp_path / "free.zip")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_no_pipe_is_waited_for(tmp_path: Path) -> None:
    """LogFilename may be /dev/stderr, or a pipe to another program; a ticket's file a pipe that was read before."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no file" in last_lines([pipe])
    (tmp_path / "key").write_bytes(b"x" * 100_000)
    missing = tmp_path / "missing"
    assert [len(each) for each in secret_contents([pipe, missing, tmp_path / "key"])] == [65536]


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    text = last_lines([log, tmp_path / "missing.log"])
    assert text.splitlines()[0] == str(log)
    assert text.splitlines()[1:] == [f"line {number}" for number in range(99_500, 100_000)]


def test_every_refusal_has_advice_or_says_enough() -> None:
    """A new code has to be thought of here as well."""
    says_enough = {
        RefusalCode.TOO_MANY_SERVICES,
        RefusalCode.EVICTED,
        RefusalCode.KICKED,
        RefusalCode.NAME_TAKEN,
        RefusalCode.MOVED,
        RefusalCode.UNKNOWN_SESSION,
    }
    assert set(RefusalCode) - set(ADVICE) - set(CANNOT_LOOK) == says_enough


def test_a_fault_of_the_ticket_is_told_once_and_not_left_out_for_another_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "ticket"
    configuration = load("client", flags={"Client.TicketFile": str(file)}, environ={})
    [fault] = find_problems(configuration)
    assert fault.key == "Client.TicketFile"
    other = attrs.evolve(fault, key="Client.CAFile")
    for told, findings in (fault, 1), (other, 2):
        patient = _Patient(configurations={"client": configuration}, problems=[])
        found = check_configuration([told], [], "")
        list(patient._inner(found, [told]))
        assert len(found) == findings
        assert f": {fault.reason}" in found[-1].text
