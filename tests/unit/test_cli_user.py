from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tests.unit.commands import Outcome, Trionat
from trionat.address import TCPAddress
from trionat.cli.user import user_app
from trionat.protocol.ticket import Ticket
from trionat.server.accounts.name_owners import KEPT_FOR
from trionat.server.state_folder import database_file, prepare_state
from trionat.store.base import User
from trionat.store.expiry import format_time, parse_expiry

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.store.base import Store

ON_A_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from trionat.cli.user import user_app
user_app()
"""
NO_LIMITS = dict.fromkeys(
    [
        "visit_ports",
        "sessions",
        "visitors",
        "bandwidth",
        "monthly_quota",
        "allow_visitors",
        "deny_visitors",
        "names",
    ]
)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_an_account_is_added_with_the_password_of_standard_input(trionat: Trionat) -> None:
    outcome = trionat("add", "alice", stdin="correct horse\nnot this line\n")
    assert outcome.code == 0
    assert outcome.out.startswith("alice can log in now: trionat connect … -u alice")
    assert outcome.err == ""
    assert "correct horse" not in outcome.out
    assert trionat.password_is("alice", "correct horse")
    user = trionat.user("alice")
    assert user is not None
    assert user.expires_at is None
    assert user.created_at is not None
    assert abs(user.created_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_line_of_windows_and_one_without_an_end_are_read(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="my secret\r\n")
    trionat("add", "bob", stdin="secret")
    assert trionat.password_is("alice", "my secret")
    assert trionat.password_is("bob", "secret")


@pytest.mark.parametrize(
    "stdin",
    [
        b"\xef\xbb\xbfs\xc3\xa9cret\r\n",
        "s\xe9cret\r\nmore\r\n".encode("utf-16"),
        b"\xfe\xff" + "s\xe9cret\nmore".encode("utf-16-be"),
        b"s\xc3\xa9cret\rmore",
    ],
)
def test_a_line_of_powershell_is_read(trionat: Trionat, stdin: bytes) -> None:
    assert trionat("add", "alice", stdin=stdin).code == 0
    assert trionat.password_is("alice", "sécret")


def test_half_a_character_of_utf_16_is_no_line_end(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="\u010aa\u0a00\nmore".encode("utf-16"))
    assert trionat.password_is("alice", "\u010aa\u0a00")


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [
        ("sec\u200bret\n", "the password has an invisible character U+200B at position 4"),
        ("secret\u00ad\n", "the password has an invisible character U+00AD at position 7"),
        ("sec\u00a0ret\n", "the password has an invisible character U+00A0 at position 4"),
        ("sec\tret\n", "the password has an invisible character U+0009 at position 4"),
        ("\x1b[Asecret\n", "the password has an invisible character U+001B at position 1"),
        ("a\ufeffb\n", "the password has an invisible character U+FEFF at position 2"),
        ("secret \r\n", "the password begins or ends with a blank: choose one without"),
        (" secret\n", "the password begins or ends with a blank: choose one without"),
        ("€" * 1000 + "\n", "a password is 1 to 1024 bytes of UTF-8"),
        (b"s\xe9cret\n", "the password is not valid UTF-8"),
    ],
)
def test_a_password_that_nobody_could_type_again_is_not_set(
    trionat: Trionat, stdin: str | bytes, reason: str
) -> None:
    assert trionat.fails(2, "add", "alice", stdin=stdin).startswith(f"standard input: {reason}")
    assert trionat.user("alice") is None
    trionat("add", "bob", stdin="secret\n")
    assert trionat.fails(2, "passwd", "bob", stdin=stdin).startswith(f"standard input: {reason}")
    assert trionat.password_is("bob", "secret")


def test_an_expiry_can_be_set_at_once(trionat: Trionat) -> None:
    outcome = trionat("add", "alice", "--expires", "2099-01-31", stdin="x\n")
    assert outcome.out.startswith("alice can log in now until 2099-02-01 00:00 UTC: ")
    user = trionat.user("alice")
    assert user is not None
    assert user.expires_at == datetime(2099, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("args", "stdin", "reason"),
    [
        (["add", "a b"], "x\n", "NAME: a user name is 1 to 64"),
        (["add", "a\x1b[2J"], "x\n", "NAME: a user name is 1 to 64"),
        (["add", ""], "x\n", "NAME: a user name is 1 to 64"),
        (
            ["add", "bob", "--expires", "soon"],
            "x\n",
            "--expires: 'soon' is not a valid time: write",
        ),
        (["add", "bob", "--expires", "2020-01-01"], "x\n", "--expires: 2020-01-01 is over already"),
        (["add", "bob", "--expires", "0d"], "x\n", "--expires: 0d is over already"),
        (["add", "bob"], "", "standard input: the password is empty"),
        (["add", "bob"], "\n", "standard input: the password is empty"),
        (["add", "bob"], "x" * 1025, "standard input: a password is 1 to 1024 bytes"),
        (["add", "bob"], "x" * 5000, "standard input: a password is 1 to 1024 bytes"),
        (["add", "alice"], "x\n", "there is a user 'alice' already"),
        (["remove", "bob"], "", "there is no user 'bob'"),
        (["remove", "\udcff"], "", "there is no user '\\udcff'"),
        (["passwd", "bob"], "x\n", "there is no user 'bob'"),
        (["passwd", "alice"], "\n", "standard input: the password is empty"),
        (["expire", "bob", "1d"], "", "there is no user 'bob'"),
        (["expire", "alice", "tomorrow"], "", "WHEN: 'tomorrow' is not a valid time: write"),
        (["admin", "bob", "on"], "", "there is no user 'bob'"),
        (["admin", "alice", "yes"], "", "on|off: 'yes' is neither on nor off"),
        (["disable", "bob"], "", "there is no user 'bob'"),
        (["enable", "bob"], "", "there is no user 'bob'"),
        (["ticket", "bob", "--public-addr", "h"], "", "there is no user 'bob'"),
        (["ticket", "alice"], "", "--public-addr: where clients reach the server is not known yet"),
        (
            ["ticket", "alice", "--public-addr", "h:x"],
            "",
            "flag --public-addr: Server.PublicAddr: ",
        ),
    ],
)
def test_wrong_input_changes_nothing(
    trionat: Trionat, args: list[str], stdin: str, reason: str
) -> None:
    trionat("add", "alice", stdin="secret\n")
    before = trionat.user("alice")
    assert trionat.fails(2, *args, stdin=stdin).startswith(reason)
    assert trionat.user("alice") == before
    assert trionat.user("bob") is None


@pytest.mark.parametrize(
    "args", [["list"], ["remove", "a"], ["passwd", "a"], ["expire", "a", "1d"], ["ticket", "a"]]
)
def test_a_mistyped_folder_is_told_and_not_made(trionat: Trionat, args: list[str]) -> None:
    assert trionat.fails(3, *args).startswith(f"{trionat.folder / 'trionat.db'}: there are no")
    assert not trionat.folder.exists()


def test_a_store_that_cannot_be_opened_is_told(trionat: Trionat) -> None:
    trionat.folder.mkdir()
    database_file(trionat.folder).write_bytes(b"nonsense" * 500)
    assert trionat.fails(3, "list").endswith("trionat.db: file is not a database")
    assert trionat.fails(3, "add", "alice", stdin="x\n").endswith("file is not a database")


def test_the_list(trionat: Trionat) -> None:
    for name, expires in (("zoe", "never"), ("alice", "2099-01-31T12:00")):
        trionat("add", name, "--expires", expires, stdin="x\n")
    trionat("expire", "zoe", "2020-12-31")
    lines = trionat("list").out.splitlines()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert [line.replace(today, "TODAY").split(" UTC  ")[1] for line in lines] == [
        "expires 2099-01-31 12:00 UTC",
        "expired 2021-01-01 00:00 UTC",
    ]
    assert lines[1].startswith("zoe    added ")
    listed = [json.loads(line) for line in trionat("list", "--json").out.splitlines()]
    created = [entry.pop("created_at") for entry in listed]
    assert all(datetime.fromisoformat(text).tzinfo == UTC for text in created)
    assert listed == [
        {
            "name": "alice",
            "admin": False,
            "disabled": False,
            "has_password": True,
            "expires_at": "2099-01-31T12:00:00+00:00",
            "expired": False,
            "limits": NO_LIMITS,
            "damage": None,
        },
        {
            "name": "zoe",
            "admin": False,
            "disabled": False,
            "has_password": True,
            "expires_at": "2021-01-01T00:00:00+00:00",
            "expired": True,
            "limits": NO_LIMITS,
            "damage": None,
        },
    ]


def test_an_administrator_is_made_and_unmade(trionat: Trionat) -> None:
    trionat("add", "alice", "--admin", stdin="x\n")
    trionat("add", "bob", stdin="x\n")
    assert [line.endswith("  administrator") for line in trionat("list").out.splitlines()] == [
        True,
        False,
    ]
    assert trionat("admin", "bob", "on").out == "bob is an administrator now.\n"
    assert trionat("admin", "alice", "off").out == "alice is no administrator now.\n"
    listed = [json.loads(line) for line in trionat("list", "--json").out.splitlines()]
    assert [(user["name"], user["admin"]) for user in listed] == [("alice", False), ("bob", True)]


def test_an_account_is_disabled_and_enabled(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    before = trionat.user("alice")
    assert trionat("disable", "alice").out.startswith("alice is disabled: neither password nor ")
    assert trionat("list").out.endswith("  disabled\n")
    assert json.loads(trionat("list", "--json").out)["disabled"] is True
    ticket = trionat("ticket", "alice", "--public-addr", "example.com")
    assert "It is of no use now: alice is disabled." in ticket.err
    assert trionat("enable", "alice").out == "alice can log in again.\n"
    assert trionat.user("alice") == before
    trionat("expire", "alice", "2020-01-31")
    assert trionat("enable", "alice").out == (
        "alice is enabled, but expired on 2020-02-01 00:00 UTC.\n"
    )


def test_an_account_without_a_password(trionat: Trionat) -> None:
    """It is asked for none, and none is right; its ticket is good. A password may come later."""
    outcome = trionat("add", "cam", "--no-password", "--expires", "30d", stdin="secret\n")
    assert outcome.out.startswith("cam has no password and can log in until ")
    assert outcome.out.endswith(" by a ticket: trionat user ticket cam\n")
    for password in ("", "secret", "A" * 43, "!"):
        assert not trionat.password_is("cam", password)
    user = trionat.user("cam")
    assert user is not None
    assert not user.has_password
    assert not trionat.password_is("cam", user.password)
    assert trionat("add", "dam", "--no-password").code == 0
    other = trionat.user("dam")
    assert other is not None
    assert other.password != user.password  # the Go program takes it for one
    assert "  no password\n" in trionat("list").out
    [listed, _] = [json.loads(line) for line in trionat("list", "--json").out.splitlines()]
    assert listed["has_password"] is False
    ticket = trionat("ticket", "cam", "--public-addr", "example.com").out.strip()
    assert trionat.accepts("cam", ticket)
    assert trionat("passwd", "cam", stdin="secret\n").code == 0
    assert trionat.password_is("cam", "secret")
    assert "no password" not in trionat("list").out.splitlines()[0]
    assert not trionat.accepts("cam", ticket)


def test_an_empty_list(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    trionat("remove", "alice")
    assert trionat("list", "--json") == Outcome(0, "", "")
    outcome = trionat("list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "trionat user add NAME" in outcome.err


def test_a_removed_account_is_gone_and_a_new_one_of_its_name_has_other_tickets(
    trionat: Trionat,
) -> None:
    trionat("add", "alice", stdin="x\n")
    old = trionat("ticket", "alice", "--public-addr", "example.com").out
    assert "void" in trionat("remove", "alice").out
    assert trionat.user("alice") is None
    trionat("add", "alice", stdin="x\n")
    assert not trionat.accepts("alice", old)


def test_a_new_password_makes_the_old_one_and_tickets_void(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="old\n")
    ticket = trionat("ticket", "alice", "--public-addr", "example.com").out
    outcome = trionat("passwd", "alice", stdin="new\n")
    assert "tickets handed out before are void" in outcome.out
    assert trionat.password_is("alice", "new")
    assert not trionat.password_is("alice", "old")
    user = trionat.user("alice")
    assert user is not None
    assert len(user.ticket_salt) == 16
    assert not trionat.accepts("alice", ticket)


def test_an_account_expires_and_comes_back(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    assert trionat("expire", "alice", "2099-01-31").out == (
        "alice can log in until 2099-02-01 00:00 UTC.\n"
    )
    assert trionat("expire", "alice", "2020-01-31").out.startswith(
        "alice expired on 2020-02-01 00:00 UTC: "
    )
    user = trionat.user("alice")
    assert user is not None
    assert user.is_expired(datetime.now(UTC))
    assert "of no use now" in trionat("ticket", "alice", "--public-addr", "h").err
    assert trionat("expire", "alice", "never").out == "alice can log in for ever.\n"
    user = trionat.user("alice")
    assert user is not None
    assert user.expires_at is None


def test_a_ticket_is_alone_on_standard_output_and_the_same_every_time(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    outcome = trionat("ticket", "alice", "--public-addr", "example.com:9000")
    assert outcome.code == 0
    assert outcome.out.count("\n") == 1
    assert "log in as alice" in outcome.err
    ticket = Ticket.decode(outcome.out)
    assert (ticket.host, ticket.port, ticket.username) == ("example.com", 9000, "alice")
    assert ticket.fingerprint == prepare_state(trionat.folder).fingerprint
    assert trionat.accepts("alice", outcome.out)
    assert trionat("ticket", "alice", "--public-addr", "example.com:9000") == outcome


def test_a_renewed_ticket_makes_the_old_one_void_and_keeps_the_password(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")
    old = trionat("ticket", "alice", "--public-addr", "example.com").out
    outcome = trionat("ticket", "alice", "--renew", "--public-addr", "example.com")
    assert "handed out before are void" in outcome.err
    assert trionat.accepts("alice", outcome.out)
    assert not trionat.accepts("alice", old)
    assert trionat.password_is("alice", "x")


def test_where_a_ticket_leads(trionat: Trionat, tmp_path: Path) -> None:
    """What is said now counts before what is configured, and that before what was served last; host and port each."""
    trionat("add", "alice", stdin="x\n")
    config = tmp_path / "server.yml"

    def leads(*args: str) -> tuple[str, int]:
        ticket = Ticket.decode(trionat("ticket", "alice", "--config", str(config), *args).out)
        return ticket.host, ticket.port

    config.write_text("Server:\n  ControllerAddr: 0.0.0.0:7000\n")
    assert leads("--public-addr", "flag.example") == ("flag.example", 7000)
    prepare_state(trionat.folder).remember_address(TCPAddress("last.example", 7001))
    assert leads() == ("last.example", 7001)
    config.write_text("Server:\n  PublicAddr: config.example\n")
    assert leads() == ("config.example", 7001)
    config.write_text("Server:\n  PublicAddr: config.example:7002\n")
    assert leads() == ("config.example", 7002)
    assert leads("--public-addr", "flag.example:7003") == ("flag.example", 7003)
    assert leads("--public-addr", "flag.example") == ("flag.example", 7001)


def test_with_a_certificate_of_the_keepers_own_the_ticket_holds_no_fingerprint(
    trionat: Trionat, tmp_path: Path
) -> None:
    trionat("add", "alice", stdin="x\n")
    config = tmp_path / "server.yml"
    config.write_text("Server:\n  Certificate: a.pem\n  CertificateKey: b.pem\n  PublicAddr: h\n")
    ticket = Ticket.decode(trionat("ticket", "alice", "--config", str(config)).out)
    assert ticket.fingerprint is None


SHOP, BLOG, WIKI = (f"{label}.example.org" for label in ("shop", "blog", "wiki"))


@pytest.fixture
def named(trionat: Trionat) -> datetime:
    """Have alice and bob use names, and somebody who is gone by now; return when that was."""
    now = datetime.now(UTC)

    async def use(store: Store) -> None:
        for name, used in (("alice", [SHOP]), ("a b's", [BLOG]), ("gone", [WIKI])):
            if name != "alice":
                await store.add_user(User(name=name, password="hash", ticket_salt=bytes(16)))
            found = await store.find_user(name)
            assert found is not None
            old = now - KEPT_FOR
            await store.reserve_names(name, found.account_id, [f"of-{used[0]}"], old, KEPT_FOR)
            await store.reserve_names(name, found.account_id, used, now, timedelta(days=60))
        await store.remove_user("gone")

    trionat("add", "alice", stdin="secret\n")
    trionat.ask(use)
    return now


def test_names_are_listed_with_their_users(trionat: Trionat, named: datetime) -> None:
    until = format_time(named + KEPT_FOR)
    assert trionat("names") == Outcome(
        0,
        f"{BLOG}  a b's, kept until {until}\n"
        f"{SHOP}  alice, kept until {until}\n"
        f"{WIKI}  nobody's: its account is gone, kept until {until}\n",
        "",
    )
    assert trionat("names", "alice").out == f"{SHOP}  alice, kept until {until}\n"
    assert trionat("names", "carol").out == "No name is in use, or was lately.\n"


def test_names_are_listed_for_scripts(trionat: Trionat, named: datetime) -> None:
    outcome = trionat("names", "--json")
    used, until = format_time(named), format_time(named + KEPT_FOR)
    assert [json.loads(line) for line in outcome.out.splitlines()] == [
        {"name": name, "user": user, "used": used, "kept_until": until}
        for name, user in ((BLOG, "a b's"), (SHOP, "alice"), (WIKI, ""))
    ]
    assert json.loads(trionat("names", "alice", "--json").out)["name"] == SHOP
    assert trionat("names", "carol", "--json") == Outcome(0, "", "")


@pytest.mark.usefixtures("named")
def test_a_name_that_may_be_in_use_is_given_free_with_a_word_about_that(trionat: Trionat) -> None:
    outcome = trionat("release-name", "Blog.Example.org")
    assert (outcome.code, outcome.out) == (0, f"{BLOG} is kept for nobody any more\n")
    assert outcome.err == (
        "If a client uses it now, nobody else gets it until that has left: "
        "trionat kick 'a b'\"'\"'s' sends it away.\n"
    )
    for name in (f"of-{SHOP}", WIKI):  # nobody uses these
        released = trionat("release-name", name)
        assert released == Outcome(0, f"{name} is kept for nobody any more\n", "")
    assert trionat("names").out.startswith(f"{SHOP}  alice")
    assert trionat.fails(2, "release-name", BLOG) == f"nobody has the name '{BLOG}'"
    assert "NAME" in trionat.fails(2, "release-name", "no name")


@pytest.mark.usefixtures("nothing_configured")
def test_the_configuration_names_the_folder_and_its_mistakes_are_told(tmp_path: Path) -> None:
    config = tmp_path / "server.yml"
    folder = tmp_path / "configured"
    config.write_text(f"Server:\n  StateDir: {folder}\n")
    runner = CliRunner()
    added = runner.invoke(user_app, ["add", "alice", "--config", str(config)], input="x\n")
    assert added.exit_code == 0
    assert Trionat(folder=folder).user("alice") is not None
    config.write_text("Server:\n  StatDir: x\n  PublicAdr: y\n")
    wrong = runner.invoke(user_app, ["list", "--config", str(config)])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        f"trionat: {config}:2: Server.StatDir: unknown key: did you mean StateDir?\n"
    )
    config.write_text(f"Server:\n  StateDir: {folder}\n  Nonsense: 1\n")
    listed = runner.invoke(user_app, ["list", "--config", str(config)])
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert listed.stdout.startswith("alice")
    config.write_text(f"Server:\n  StateDir: {folder}\nDatabase:\n  Hots: x\n")
    wrong = runner.invoke(user_app, ["list", "--config", str(config)])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert f"{config}:4: Database.Hots: unknown key: did you mean Host?" in wrong.stderr


def test_accounts_elsewhere_are_not_mistaken_for_ours(trionat: Trionat, tmp_path: Path) -> None:
    config = tmp_path / "server.yml"
    config.write_text(
        "Database:\n  Username: root\n  Password: x\n  Host: 127.0.0.1:1\n  DBName: nat\n"
    )
    reason = trionat.fails(3, "add", "alice", "--config", str(config), stdin="x\n")
    assert reason.startswith("database 127.0.0.1:1: Connection refused: is it running")
    assert not trionat.folder.exists()


def test_a_password_has_no_place_on_the_command_line(trionat: Trionat) -> None:
    assert trionat("add", "alice", "secret", stdin="x\n").code == 2
    assert trionat("add", "alice", "--password", "secret", stdin="x\n").code == 2
    assert not trionat.folder.exists()


@pytest.mark.parametrize("again", ["a secret", "another one", "short"])
def test_on_a_terminal_the_password_is_asked_twice_without_echo(
    trionat: Trionat, again: str
) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, "add", "alice", "--state-dir", str(trionat.folder)],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True,
    )  # fmt: skip
    os.close(slave)
    shown = b""

    def answer(prompt: bytes, text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 20
        while prompt not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(master, 1024)
        shown = shown[shown.index(prompt) + len(prompt) :]
        time.sleep(0.1)  # getpass throws away what was typed before it has turned the echo off
        os.write(master, text.encode() + b"\n")

    try:
        answer(b"Password: ", again if again == "short" else "a secret")
        answer(b"Repeat for confirmation: ", again)
        if again == "another one":
            answer(b"Password: ", "a secret")
            answer(b"Repeat for confirmation: ", "a secret")
        while True:
            try:
                shown += os.read(master, 1024) or b""
            except OSError:  # the other end is closed
                break
        assert process.wait(20) == (2 if again == "short" else 0)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"secret" not in shown
    if again == "short":
        assert b"the password is too short: choose 8 characters or more" in shown
    else:
        assert b"alice can log in now" in shown
        assert trionat.password_is("alice", "a secret")


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("never", None),
        ("2027-01-31", datetime(2027, 2, 1, tzinfo=UTC)),
        ("2028-02-28", datetime(2028, 2, 29, tzinfo=UTC)),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:30+02:00", datetime(2027, 1, 31, 10, 0, 30, tzinfo=UTC)),
        ("30d", datetime(2026, 12, 23, 12, tzinfo=UTC)),
        ("12h", datetime(2026, 11, 24, 0, tzinfo=UTC)),
    ],
)
def test_when(text: str, expires: datetime | None) -> None:
    assert parse_expiry(text, NOW) == expires


@pytest.mark.parametrize("text", ["", "soon", "Never", "30", "30m", "-1d", "1.5d", "d", "2027-02-30", "31.01.2027", "2027-01-31T25:00", "T12:00", "9999-12-31", "999999999d", "٣d"])  # fmt: skip
def test_no_time(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^'.*' is not a valid time: write 2027-01-31 \(through that day\)"
    ):
        parse_expiry(text, NOW)


def test_times_are_shown_in_utc() -> None:
    assert format_time(datetime(2027, 2, 1, tzinfo=UTC)) == "2027-02-01 00:00 UTC"
    assert format_time(None) == "never"


def test_the_audit_tells_what_an_account_is_made_with(trionat: Trionat) -> None:
    made: dict[str, tuple[list[str], dict[str, object]]] = {
        "ann": ([], {}),
        "cam": (["--no-password"], {"password": "none"}),
        "eve": (["--admin"], {"admin": True}),
    }
    for name, (options, _) in made.items():
        assert trionat("add", name, *options, stdin="a secret\n").code == 0
    written = (trionat.folder / "audit.log").read_text()
    entries = [json.loads(line) for line in written.splitlines()]
    assert {each["target"]: each["details"] for each in entries} == {
        name: {"expires_at": "never"} | details for name, (_, details) in made.items()
    }
    assert "a secret" not in written
