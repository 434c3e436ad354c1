from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from trionat.cli.config import config_app
from trionat.config.sections import KEYS
from trionat.protocol.ticket import TOKEN_BYTES, Ticket


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(config_app, arguments, env=env or {})
    return result.exit_code, result.stdout, result.stderr


def rows(text: str) -> dict[str, tuple[str, str]]:
    """The table of `show`: value and origin of every key. Columns are apart by two blanks or more."""
    split = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()
    ]
    return {key: (value, origin) for key, value, origin in split}


def test_check_says_what_a_file_defines() -> None:
    Path("f.yml").write_text("Client:\n  Name: x\n  Services: [80]\nAuth: {Password: x}\n")
    code, out, err = run("check", "f.yml", env={"TRIONAT_CLIENT_ONCE": "wrong"})
    assert (code, err) == (0, "")
    assert out == "f.yml: ok\n  Auth: Password\n  Client: Name, Services\n"


def test_check_tells_every_problem_on_stderr() -> None:
    Path("f.yml").write_text("Clint: {}\nServer:\n  Name: ''\n")
    code, out, err = run("check", "f.yml")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "f.yml:1: Clint: unknown section: did you mean Client?",
        "f.yml:3: Server.Name: '' is not text of 1 to 128 printable characters",
    ]
    assert run("check", "nope.yml") == (2, "", "nope.yml: there is no such file\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Client:\n  Ticket: tn1_AAAA\n", "f.yml:2: Client.Ticket: the ticket is damaged: copy it again, whole"),
        ("Client:\n  Ticket: hello\n", "f.yml:2: Client.Ticket: this is no ticket: a ticket starts with tn1_"),
        ("Client:\n  TicketFile: nope\n", "f.yml:2: Client.TicketFile: cannot read the ticket: [Errno 2] No such file or directory: 'nope'"),
        ("Client:\n  TicketFile: f.yml\n", "f.yml:2: Client.TicketFile: this is no ticket: a ticket starts with tn1_"),
        ("Client:\n  CAFile: nope\n", "f.yml:2: Client.CAFile: nope: no certificate authorities: [Errno 2] No such file or directory"),
        (
            "Database:\n  Username: u\n  Host: h\n  DBName: d\n  CAFile: nope\n",
            "f.yml:5: Database.CAFile: nope: no certificate authorities: [Errno 2] No such file or directory",
        ),
    ],
)  # fmt: skip
def test_check_looks_into_what_a_file_names(text: str, told: str) -> None:
    Path("f.yml").write_text(text)
    assert run("check", "f.yml") == (2, "", f"{told}\n")


def test_check_takes_a_ticket_that_is_one() -> None:
    ticket = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
    Path("f.yml").write_text(f"Client: {{Ticket: {ticket.encode()}}}")
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Client: Ticket\n", "")
    Path("ticket").write_text(f"{ticket.encode()}\n")
    Path("f.yml").write_text("Client: {TicketFile: ticket}")
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Client: TicketFile\n", "")


def test_show_has_every_key_with_its_origin_in_columns() -> None:
    Path("server.yml").write_text("Server:\n  VisitPort: [1-3, 9]\nClient: {Name: not-this}\n")
    Path("client.yml").write_text("Client:\n  Services: [80, 22:60001]\n")
    code, out, err = run("show", env={"TRIONAT_CLIENT_ONCE": "1"})
    assert (code, err) == (0, "")
    shown = rows(out)
    assert list(shown) == list(KEYS)
    assert shown["Server.VisitPort"] == ("1-3, 9", "server.yml:2")
    assert shown["Server.MaxTCPConnNum"] == ("4", "default")
    assert shown["Server.MaxConnNum"] == ("128", "default")
    assert shown["Client.Name"] == ("Client-NAT", "default")
    assert shown["Client.Services"] == ("127.0.0.1:80, 127.0.0.1:22:60001", "client.yml:2")
    assert shown["Client.Once"] == ("true", "environment TRIONAT_CLIENT_ONCE")
    assert shown["Server.StateDir"][0].endswith("trionat")
    starts = {line.rindex("  ") for line in out.splitlines()}
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("role", "sections"), [("server", {"Server", "Database"}), ("client", {"Auth", "Client"})]
)
def test_show_of_one_role(role: str, sections: set[str]) -> None:
    code, out, _ = run("show", "--role", role)
    assert code == 0
    assert {key.split(".")[0] for key in rows(out)} == sections


def test_show_masks_secrets_and_keeps_to_one_line_each() -> None:
    Path("f.yml").write_text(
        "Auth: {Username: bob, Password: hunter2}\n"
        'Client: {Ticket: hunter2, LogFilename: "a\\nb\\e[31m"}\n'
        "Database: {Username: u, Password: hunter2, Host: h, DBName: d}\n"
    )
    code, out, _ = run("show", "--config", "f.yml")
    shown = rows(out)
    assert code == 0
    assert "hunter2" not in out
    for key in ("Auth.Password", "Client.Ticket", "Database.Password"):
        assert shown[key][0] == "********"
    assert shown["Auth.Username"][0] == "bob"
    assert shown["Client.LogFilename"][0] == "'a\\nb\\x1b[31m'"


def test_show_tells_problems_and_fails() -> None:
    assert run("show", env={"TRIONAT_CLIENT_ONCE": "x"}) == (
        2,
        "",
        "environment TRIONAT_CLIENT_ONCE: Client.Once: 'x' is neither true nor false\n",
    )
