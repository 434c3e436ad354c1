"""Text as editors, shells and mail programs leave it, in every place where people bring some."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from trionat.address import TCPAddress
from trionat.cli.password import read_password
from trionat.client.native.dialer import find_ticket
from trionat.client.native.known_servers import KnownServers
from trionat.config.load import load
from trionat.config.sections import ClientConfig
from trionat.errors import ConfigError
from trionat.fingerprint import format_fingerprint
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.text import decode_text, invisible_in, join_words, strip_around, strip_line_end

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
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


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfea", b"\xffa\xfe"])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_text(data)


def test_what_stands_around() -> None:
    assert strip_around(" \ufeff x y\r\n") == "x y"
    assert strip_line_end("\ufeff x \r\n") == " x "
    assert join_words("\ufeff a\r\n b \t") == "ab"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a\u200bb", "an invisible character U+200B"),
        ("a\u00ad", "an invisible character U+00AD"),
        ("a\ufeffb", "an invisible character U+FEFF"),
        ("a\tb", "a control character U+0009"),
        ("a\x7f", "a control character U+007F"),
        ("a b\u00e4\U0001f600", None),
    ],
)
def test_what_nobody_sees_is_named(text: str, name: str | None) -> None:
    assert invisible_in(text) == name


def test_a_ticket_file_is_read_however_it_was_written(tmp_path: Path) -> None:
    text = TICKET.encode()
    file = tmp_path / "ticket"
    for data in written(f" {text[:9]}\n  {text[9:]} \n"):
        file.write_bytes(data)
        assert find_ticket(ClientConfig(ticket_file=file)) == TICKET
    file.write_bytes(b"\xff\xfea")
    with pytest.raises(ConfigError, match="this is no ticket: it is not text in UTF-8 or UTF-16"):
        find_ticket(ClientConfig(ticket_file=file))


def test_a_ticket_with_an_invisible_character_is_refused_by_its_name() -> None:
    text = TICKET.encode()
    with pytest.raises(ValueError, match=r"^the ticket has an invisible character U\+200B: copy"):
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


def test_an_invisible_character_is_named_where_it_makes_a_value_wrong() -> None:
    environ = {"TRIONAT_CLIENT_LOCAL_SERVER_ADDR": "127.0.0.1:80\u200b80"}
    with pytest.raises(ConfigError, match=r"; it has an invisible character U\+200B$"):
        load("client", environ=environ)


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


def given(monkeypatch: pytest.MonkeyPatch, data: bytes, *, confirm: bool) -> str:
    """Read a password from standard input, which goes on afterwards."""
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        return read_password(confirm=confirm)


def test_a_password_is_read_however_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in written("sécret ü\n"):
        assert given(monkeypatch, data, confirm=True) == "sécret ü"


@pytest.mark.parametrize("stowaway", ["\u200b", "\u00ad", "\x1b", "\t"])
def test_a_new_password_that_nobody_can_type_is_refused(
    monkeypatch: pytest.MonkeyPatch, stowaway: str
) -> None:
    data = f"se{stowaway}cret\n".encode()
    with pytest.raises(ConfigError, match=f"U\\+{ord(stowaway):04X}: nobody could type it again"):
        given(monkeypatch, data, confirm=True)
    assert given(monkeypatch, data, confirm=False) == f"se{stowaway}cret"  # of an old account


def test_a_password_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the password is no text in UTF-8"):
        given(monkeypatch, b"\xff\n", confirm=False)
