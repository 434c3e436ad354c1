"""`trionat ticket`, and `trionat user ticket` where it narrows."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tests.unit.commands import Outcome
from trionat.cli import app
from trionat.protocol.ticket import MAX_CAVEATS, Ticket
from trionat.server.accounts.scope import until

if TYPE_CHECKING:
    from tests.unit.commands import Trionat

TICKET = Ticket(
    host="tunnel.example.com", port=8007, fingerprint=bytes(32), username="alice", token=bytes(16)
)
AT = ("--public-addr", "tunnel.example.com")


def run(*args: str, stdin: str | bytes = "") -> Outcome:
    result = CliRunner().invoke(app, ["ticket", *args], input=stdin, catch_exceptions=False)
    assert "Traceback" not in result.output
    return Outcome(result.exit_code, result.stdout, result.stderr)


def fails(*args: str, stdin: str | bytes = "") -> str:
    outcome = run(*args, stdin=stdin)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert "tn1_A" not in line
    return line.removeprefix("trionat: ")


def caveats(text: str) -> tuple[str, ...]:
    return Ticket.decode(text).caveats


# --- trionat user ticket ---


def test_the_operator_makes_one_that_is_good_for_less(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    whole = trionat("ticket", "alice", *AT).out
    outcome = trionat(
        *("ticket", "alice", *AT, "--only-name", "Shop", "--only-name", "shop-*,blog"),
        *("--only-port", "60003,60001", "--only-port", "60002", "--expires", "2099-01-31"),
    )
    assert outcome.code == 0
    assert caveats(outcome.out) == (
        "only names=shop,shop-*,blog ports=60001-60003",
        "until 2099-02-01T00:00:00Z",
    )
    assert outcome.out.startswith("tn3_")
    assert outcome.err.splitlines() == [
        "It is narrowed: only names=shop,shop-*,blog ports=60001-60003; until 2099-02-01T00:00:00Z",
        "Whoever has it can log in as alice: trionat connect TICKET SERVICE",
    ]
    assert trionat.accepts("alice", outcome.out)
    assert trionat.accepts("alice", whole)
    assert trionat("ticket", "alice", *AT).out == whole
    trionat("ticket", "alice", *AT, "--renew")
    assert not trionat.accepts("alice", outcome.out)


def test_the_operator_renews_and_narrows_at_once(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    whole = trionat("ticket", "alice", *AT).out
    outcome = trionat("ticket", "alice", *AT, "--renew", "--only-port", "60001")
    assert trionat.accepts("alice", outcome.out)
    assert not trionat.accepts("alice", whole)
    assert "Tickets of alice handed out before are void." in outcome.err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--only-name", "a b"], "--only-name: 'a b' is not a valid pattern of names: a label has"),
        (["--only-name", "1.2.3.4"], "--only-name: '1.2.3.4' is an IP address: write a name"),
        (["--only-port", "0"], "--only-port: '0' is not 1 to 1024 ports from 1 to 65535"),
        (["--only-port", "1-1025"], "--only-port: '1-1025' is not 1 to 1024 ports"),
        (["--expires", "soon"], "--expires: 'soon' is not a valid time: write 2027-01-31"),
        (
            ["--expires", "1m"],
            "--expires: '1m' is not a valid time: write 2027-01-31 (through that day), 2027-01-31T12:00 (UTC), 30d (days), 12h (hours) or never",
        ),
        (["--expires", "2020-01-01"], "--expires: 2020-01-01 is over already"),
        (
            ["--only-name", ",".join(f"a-long-name-{number}" for number in range(30))],
            "ticket: a restriction of a ticket is 1 to 255 printable characters of ASCII, got a value",
        ),
        (
            ["--only-port", "60005"],
            "ticket: such a ticket would be good for nothing, since it has the limits of its account",
        ),
    ],
)
def test_wrong_restrictions_change_nothing(trionat: Trionat, args: list[str], reason: str) -> None:
    trionat("add", "alice", stdin="x\n")
    trionat("limit", "alice", "--visit-ports", "60001-60004")
    before = trionat.user("alice")
    assert trionat.fails(2, "ticket", "alice", *AT, "--renew", *args).startswith(reason)
    assert trionat.user("alice") == before


# --- trionat ticket narrow ---


def test_a_holder_narrows_offline() -> None:
    first = run("narrow", TICKET.encode(), "--only-name", "shop-*", "--only-port", "60001-60009")
    assert first == Outcome(
        0,
        TICKET.narrow("only names=shop-* ports=60001-60009").encode() + "\n",
        "It is narrowed: only names=shop-* ports=60001-60009\n",
    )
    second = run("narrow", first.out, "--only-port", "60001")
    assert Ticket.decode(second.out) == Ticket.decode(first.out).narrow("only ports=60001")
    assert second.err == ("It is narrowed: only names=shop-* ports=60001-60009; only ports=60001\n")
    for tool in (["-"], ["-", "--only-port", "60002"]):
        fails("narrow", *tool, stdin=second.out)
    third = run(
        "narrow", "-", "--expires", "12h", stdin=f"  {second.out[:50]}\r\n{second.out[50:]}\r\n"
    )
    *before, end = caveats(third.out)
    assert tuple(before) == caveats(second.out)
    now = datetime.now(UTC)
    assert until(now + timedelta(hours=11, minutes=59)) < end <= until(now + timedelta(hours=12))


def test_never_is_no_end() -> None:
    assert fails("narrow", TICKET.encode(), "--expires", "never").startswith("ticket: say what the")
    narrowed = run("narrow", TICKET.encode(), "--expires", "never", "--only-name", "a")
    assert caveats(narrowed.out) == ("only names=a",)


def test_a_ticket_that_is_void_already_is_told() -> None:
    old = TICKET.narrow("until 2020-01-01T00:00:00Z").encode()
    assert run("narrow", old, "--only-name", "a").err.splitlines()[1] == (
        "It is of no use now: it was good until 2020-01-01 00:00 UTC."
    )


def test_what_cannot_be_narrowed() -> None:
    text = TICKET.encode()
    assert fails("narrow", text) == (
        "ticket: say what the new one is to be good for: --only-name, --only-port or --expires"
    )
    assert fails("narrow", text[:-5], "--expires", "1h") == (
        "TICKET: the ticket is damaged: copy it again, whole"
    )
    assert fails("narrow", "-", "--expires", "1h") == (
        "standard input: there is no ticket: this is empty"
    )
    assert fails("narrow", "-", "--expires", "1h", stdin="hello").startswith(
        "standard input: this is not a valid ticket"
    )
    assert fails("narrow", "-", "--expires", "1h", stdin=b"\xff\xfe\xff").startswith(
        "standard input: this is not UTF-8"
    )
    full = TICKET.narrow(*["until 2099-01-01T00:00:00Z"] * MAX_CAVEATS).encode()
    assert fails("narrow", full, "--expires", "1h").startswith(
        "ticket: a ticket has room for 16 restrictions of 1024 characters together: ask for"
    )
    newer = TICKET.narrow("only on=sundays").encode()
    assert fails("narrow", newer, "--expires", "1h") == (
        "ticket: the ticket has a restriction that is not known here: 'only on=sundays'"
    )
    ports = TICKET.narrow("only ports=60001").encode()
    assert fails("narrow", ports, "--only-name", "shop") == (
        "ticket: such a ticket would be good for nothing, since it has only ports=60001 already"
    )


# --- trionat ticket show ---


def test_a_ticket_is_shown_without_its_secret() -> None:
    narrowed = TICKET.narrow("only names=shop", "until 2026-11-29T12:00:00Z")
    assert run("show", narrowed.encode()).out == (
        "user          alice\n"
        "servers       tunnel.example.com:8007\n"
        "fingerprint   SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
        "restrictions  only names=shop; until 2026-11-29T12:00:00Z\n"
    )
    shown = run("show", "-", "--json", stdin=narrowed.encode()).out
    assert json.loads(shown) == {
        "user": "alice",
        "servers": ["tunnel.example.com:8007"],
        "fingerprint": "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "restrictions": ["only names=shop", "until 2026-11-29T12:00:00Z"],
    }
    plain = Ticket(host="h", port=1, fingerprint=None, username="a", token=bytes(16))
    assert re.findall("none.*", run("show", plain.encode()).out) == [
        "none: the server is checked by authority and name",
        "none",
    ]
    # One that a newer trionat has narrowed can be looked at.
    assert "sundays" in run("show", TICKET.narrow("only on=sundays").encode()).out
