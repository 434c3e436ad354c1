"""Text as editors, shells and mail programs leave it, in every place where people bring some."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.cli.password import read_new_password, read_password
from trionat.client.native.dialer import find_ticket
from trionat.client.native.known_servers import KnownServers
from trionat.config.client import ClientConfig
from trionat.config.load import load
from trionat.errors import ConfigError, Problem, StartupError
from trionat.fingerprint import format_fingerprint
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.text import (
    NotTextError,
    decode_text,
    invisible_in,
    is_ticket_like,
    join_words,
    mask_secrets,
    quoted,
    strip_around,
    strip_line_end,
    tidy,
)

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
TEXT_OF_A_TICKET = "tn1_QWxhZGRpbjpvcGVuIHNlc2FtZQ-_x"
FINGERPRINT = bytes(range(32))


def written(text: str) -> list[bytes]:
    """Return the text as programs write it: plain, with CR, with a byte order mark, as PowerShell's `>` does."""
    return [
        text.encode(),
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(),
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode("utf-16"),
        b"\xfe\xff" + text.replace("\n", "\r\n").encode("utf-16-be"),
    ]


def test_every_way_of_writing_is_read_alike() -> None:
    assert {decode_text(data) for data in written("ä\nb\n")} == {"ä\nb\n"}


def test_what_stands_around() -> None:
    assert strip_around(" \ufeff x y\r\n") == "x y"
    assert strip_line_end("\ufeff x \r\n") == " x "
    assert join_words("\ufeff a\r\n b \t") == "ab"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a\r\nb\rc\n\xff", 4),
        ("a\nb\n".encode("utf-16-le"), 1),
        (b"\xff\xfea\x00\n\x00b", 2),
        ("a\nb".encode("utf-32"), 1),
        (b"a\nb\x00", 2),
    ],
)
def test_what_is_no_text_is_told_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(NotTextError, match="save the file as UTF-8") as caught:
        decode_text(data)
    assert caught.value.line == line


@given_any(st.binary())
def test_any_bytes_are_text_or_are_told(data: bytes) -> None:
    try:
        text = decode_text(data)
    except NotTextError as exc:
        assert 1 <= exc.line <= data.count(b"\n") + data.count(b"\r") + 1  # noqa: PT017
    else:
        assert not set(text) & {"\r", "\0"}


@pytest.mark.parametrize("around", ["", " ", "\r\n", "\ufeff", "\u00a0\t", "\ufeff \r\ufeff"])
def test_what_sticks_to_a_value_is_taken_off(around: str) -> None:
    assert tidy(f"{around}8080{around}") == "8080"
    assert tidy(around) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("808\u200b0", "U+200B at position 4"),
        (" \u200b8080", "U+200B at position 2"),
        ("80\u00ad80", "U+00AD at position 3"),
        ("80\u00a080", "U+00A0 at position 3"),
        ("80\ufeff80", "U+FEFF at position 3"),
        ("80\n80", "U+000A at position 3"),
        ("\u202eabc", "U+202E at position 1"),
        ("a\u3164", "U+3164 at position 2"),
        ("❤\ufe0f", "U+FE0F at position 2"),
        ("\U000e0041", "U+E0041 at position 1"),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="has an invisible character") as caught:
        tidy(text)
    assert str(caught.value) == f"has an invisible character {told}: type it again"


@pytest.mark.parametrize(
    "text", ["a b", "größe", "日本語", "\U0001f511", "e\u0301", "\udcff", "\ue000"]
)
def test_what_can_be_seen_is_left(text: str) -> None:
    assert tidy(text) == text
    assert invisible_in(text) is None


def test_a_password_keeps_its_blanks() -> None:
    assert strip_line_end("\ufeff a \r\n") == " a "


def test_no_message_shows_a_ticket() -> None:
    for text in (
        mask_secrets(f"'{TEXT_OF_A_TICKET}' and tn2_abc"),
        str(Problem(TEXT_OF_A_TICKET, TEXT_OF_A_TICKET, TEXT_OF_A_TICKET)),
        str(ConfigError(Problem("x", f"{TEXT_OF_A_TICKET!r} is wrong"))),
        str(StartupError(f"{TEXT_OF_A_TICKET}: not there")),
    ):
        assert "QWxh" not in text
        assert "tn1_********" in text
    assert (
        mask_secrets("tn2_abc a ticket starts with tn1_")
        == "tn2_******** a ticket starts with tn1_"
    )


def test_no_message_shows_the_password_of_a_url() -> None:
    assert mask_secrets("'https://u:secret@h:1' is a URL") == "'https://u:********@h:1' is a URL"
    assert mask_secrets("'mysql://u:pa/ss@h:1' is a URL") == "'mysql://u:********@h:1' is a URL"
    assert mask_secrets("'http://u:a:secretb@h' is") == "'http://u:********@h' is"
    assert mask_secrets("'http://u:a@b c:d@h' is") == "'http://u:********@h' is"
    assert mask_secrets("'http://:secret@h' is") == "'http://:********@h' is"
    assert mask_secrets("f:2: 'u:pa/s:s@h' is\nu:x@h") == "f:2: 'u:********@h' is\nu:********@h"
    for text in ("flag -c: h:1 is taken, ask bob@example.com", "http://h:1: nobody", "@:a", ":@"):
        assert mask_secrets(text) == text


def test_a_message_shows_how_a_service_is_written() -> None:
    for text in (
        "'https:8080@shop': a name has http, as in http:8080@shop",
        "write tls:8443@db.example.org",
        "(http:127.0.0.1:8080@shop), `http:[::1]:80@shop`: http:/run/app.sock@shop, http:unix:./a@b",
        "http:8080:60001@shop",
    ):
        assert mask_secrets(text) == text
    for text in ("http:ann:secret@shop", "'http:secret@shop'", "ann:8080@shop", "http:80@a:b@c"):
        assert "********" in mask_secrets(text), text
    for text in ("http:" + "1" * 200_000, "http:" + "a" * 200_000 + ":@", "tls:" * 100_000 + "@"):
        started = time.perf_counter()
        mask_secrets(text + "@ x")
        assert time.perf_counter() - started < 1


def test_no_message_shows_a_part_of_a_ticket() -> None:
    """Pasted with line breaks or blanks in it, or in other case; words behind a ticket stay."""
    for cut in (6, 20, 30):
        for between in (" ", "\n", "\r\n  ", "\t"):
            text = f"{TICKET.encode()[:cut]}{between}{TICKET.encode()[cut:]}"
            assert mask_secrets(f"{text} is not valid") == "tn1_******** is not valid"
            assert mask_secrets(f"{text!r} is not valid") == "'tn1_********' is not valid"
    assert mask_secrets(TICKET.encode().upper()) == "TN1_********"
    assert is_ticket_like(TICKET.encode().upper())


@pytest.mark.parametrize(
    "key", ["Server.VisitPort", "Server.AllowVisitors", "Server.ControllerAddr", "Client.Services"]
)
def test_a_long_value_is_not_shown(key: str) -> None:
    """It may be the rest of a ticket, which looks like nothing."""
    rest = attrs.evolve(TICKET, fingerprint=FINGERPRINT).encode()[6:]
    with pytest.raises(ConfigError, match=f"a value of {len(rest)} characters ") as caught:
        load("server", flags={key: [rest] if key != "Server.ControllerAddr" else rest}, environ={})
    assert rest[:12] not in str(caught.value)
    assert quoted("a" * 40) == repr("a" * 40)
    assert quoted("a" * 41) == "a value of 41 characters"


def test_masking_takes_no_longer_than_the_text() -> None:
    started = time.perf_counter()
    for text in (
        "tn1" * 100_000,
        "tn1_" * 100_000,
        ":a" * 100_000 + "@",
        "@" + ":a" * 100_000,
        "//" * 100_000 + ":@",
        "//a" * 100_000 + "@",
        "tn" + "1" * 200_000,
        "tn1_a" + " \\n" * 100_000 + "b",
        "tn1_a" + " aaaaaaB" * 50_000,
        "tn1_a" + " " + "a" * 200_000 + "!",
    ):
        mask_secrets(text)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT_OF_A_TICKET, True),
        (f" \ufeff{TEXT_OF_A_TICKET}\r\n", True),
        ("tn2_x", True),
        ("tn1_x\u200by", True),
        (f"'{TEXT_OF_A_TICKET}'", True),
        (f"<{TEXT_OF_A_TICKET[:9]}", True),
    ]
    + [(text, False) for text in ("8080", "tn1:80", "/run/tn1_x", "unix:tn1_x", "tn_x", "")],
)
def test_a_ticket_is_known_by_its_look(text: str, expected: bool) -> None:
    assert is_ticket_like(text) is expected


def test_a_ticket_file_is_read_however_it_was_written(tmp_path: Path) -> None:
    text = TICKET.encode()
    file = tmp_path / "ticket"
    for data in written(f" {text[:9]}\n  {text[9:]} \n"):
        file.write_bytes(data)
        assert find_ticket(ClientConfig(ticket_file=file)) == TICKET
    file.write_bytes(b"\xff\xfea")
    with pytest.raises(
        ConfigError, match="ticket:1: cannot read the ticket: this is not UTF-8 text"
    ):
        find_ticket(ClientConfig(ticket_file=file))


def test_a_ticket_with_an_invisible_character_is_refused_by_its_name() -> None:
    text = TICKET.encode()
    with pytest.raises(
        ValueError, match=r"^the ticket has an invisible character U\+200B at position 10: copy"
    ):
        Ticket.decode(f"{text[:9]}\u200b{text[9:]}")


def test_environment_values_are_tidied() -> None:
    environ = {
        "TRIONAT_TICKET": f"\ufeff{TICKET.encode()}\r\n",
        "TRIONAT_SERVER_VISIT_PORT": "60000\r",
        "TRIONAT_AUTH_PASSWORD": " a b \r\n",
        "TRIONAT_AUTH_USERNAME": " \r\n",
    }
    loaded = load("client", environ=environ)
    assert find_ticket(loaded.client) == TICKET
    assert loaded.server.visit_port == (60000,)
    assert loaded.auth.password == " a b "
    assert loaded.auth.username is None


def test_a_configuration_file_is_read_however_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "server.yml"
    for data in written("Server:\n  Name: ä\n"):
        file.write_bytes(data)
        loaded = load("server", file=file, environ={})
        assert (loaded.server.name, loaded.origins["Server.Name"]) == ("ä", f"{file}:2")


def test_known_servers_are_read_however_they_were_written(tmp_path: Path) -> None:
    known = KnownServers.of(tmp_path)
    for data in written(f"# mine\nh:1 {format_fingerprint(FINGERPRINT)}\n"):
        known.path.write_bytes(data)
        assert known.lookup(TCPAddress("h", 1)) == FINGERPRINT


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes, *, new: bool) -> str:
    """Read a password from standard input, which goes on afterwards."""
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        return read_new_password() if new else read_password(otherwise="other ways")


def test_a_password_is_read_however_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in written("sécret ü\n"):
        assert typed(monkeypatch, data, new=True) == "sécret ü"


@pytest.mark.parametrize("stowaway", ["\u200b", "\u00ad", "\x1b", "\t", "\u00a0"])
def test_a_new_password_that_nobody_can_type_is_refused(
    monkeypatch: pytest.MonkeyPatch, stowaway: str
) -> None:
    data = f"se{stowaway}cret\n".encode()
    with pytest.raises(ConfigError, match=f"U\\+{ord(stowaway):04X} at position 3: choose one"):
        typed(monkeypatch, data, new=True)
    assert typed(monkeypatch, data, new=False) == f"se{stowaway}cret"  # of an old account


def test_a_new_password_has_no_blanks_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the password begins or ends with a blank"):
        typed(monkeypatch, b"secret \n", new=True)
    assert typed(monkeypatch, b" secret \n", new=False) == " secret "


def test_a_password_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the password is not valid UTF-8"):
        typed(monkeypatch, b"\xff\n", new=False)
