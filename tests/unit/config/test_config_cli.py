from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from trionat.cli import app
from trionat.cli.config import config_app
from trionat.client.native.dialer import find_ticket
from trionat.config.client import ClientConfig
from trionat.config.sections import KEYS
from trionat.protocol.ticket import TOKEN_BYTES, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator


LONG = 300 * "n"
"""A name for which every system refuses to look, as it does for what is in a folder that is closed to us."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


@pytest.fixture(autouse=True)
def closed_files() -> Iterator[None]:
    """Files of these tests are their owner's alone, as those with secrets should be."""
    before = os.umask(0o077)
    yield
    os.umask(before)


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_show_reads_a_pipe_once() -> None:
    """As `trionat config show --config <(…)` does: nothing comes the second time."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("Client: {LocalTimeout: 3}",))
    writer.start()
    code, out, _ = run("show", "--config", "pipe")
    writer.join()
    assert (code, rows(out)["Client.LocalTimeout"]) == (0, ("3", "pipe:1"))


def test_a_ticket_at_which_nobody_may_look_is_told_in_one_line() -> None:
    result = CliRunner().invoke(app, ["connect", "--ticket-file", LONG, "8080"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"trionat: {LONG}: cannot read the ticket: File name too long\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Client:\n  Ticket: tn1_AAAA\n", "f.yml:2: Client.Ticket: the ticket is damaged: copy it again, whole"),
        ("Client:\n  Ticket: hello\n", "f.yml:2: Client.Ticket: this is not a valid ticket: a ticket starts with tn"),
        ("Client:\n  TicketFile: nope\n", "f.yml:2: Client.TicketFile: cannot read the ticket: No such file or directory"),
        ("Client:\n  TicketFile: f.yml\n", "f.yml:2: Client.TicketFile: this is not a valid ticket: a ticket starts with tn"),
        ("Client:\n  TicketFile: empty\n", "f.yml:2: Client.TicketFile: the file is empty: a ticket goes there"),
        ("Client:\n  CAFile: nope\n", "f.yml:2: Client.CAFile: nope: no certificate authorities: No such file or directory"),
        ("Server:\n  Domain: x.org\n  PagesDir: nope\n", "f.yml:3: Server.PagesDir: nope: there is no such folder"),
        (f"Server:\n  Domain: x.org\n  PagesDir: {LONG}\n", f"f.yml:3: Server.PagesDir: {LONG}: cannot be read: File name too long"),
        (
            "Database:\n  Username: u\n  Host: h\n  DBName: d\n  CAFile: nope\n",
            "f.yml:5: Database.CAFile: nope: no certificate authorities: No such file or directory",
        ),
    ],
)  # fmt: skip
def test_check_looks_into_what_a_file_names(text: str, told: str) -> None:
    Path("empty").write_text("\n")
    Path("f.yml").write_text(text)
    assert run("check", "f.yml") == (2, "", f"{told}\n")


CLUSTER = """\
Database: {Username: u, Host: h, DBName: d}
Cluster:
  Redis: rediss://h
  Node: n1
  NodeAddr: 10.0.0.11:8009
  KeyFile: key
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RedisPasswordFile: nope", "f.yml:7: Cluster.RedisPasswordFile: nope: cannot be read: No such file or directory"),
        ("RedisPasswordFile: empty", "f.yml:7: Cluster.RedisPasswordFile: empty: its first line is empty: write the password for Redis there"),
        ("CAFile: nope", "f.yml:7: Cluster.CAFile: nope: no certificate authorities: No such file or directory"),
    ],
)  # fmt: skip
def test_check_looks_into_what_a_cluster_needs(line: str, told: str) -> None:
    Path("empty").write_text("\n")
    Path("f.yml").write_text(f"{CLUSTER}  {line}\n")
    assert run("check", "f.yml") == (2, "", f"{told}\n")


def test_check_tells_that_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    Path("f.yml").write_text(CLUSTER)
    code, out, err = run("check", "f.yml")
    assert (code, out) == (2, "")
    assert err.startswith("f.yml:3: Cluster.Redis: the section Cluster needs the library coredis")
    assert err.endswith("run pip install '.[cluster]' in the folder of trionat's source\n")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_check_warns_of_a_password_that_everybody_can_read() -> None:
    Path("password").write_text("of Redis\n")
    Path("f.yml").write_text(f"{CLUSTER}  RedisPasswordFile: password\n")
    Path("password").chmod(0o644)
    code, _, err = run("check", "f.yml")
    assert code == 0
    assert "everybody on this machine can read this password: run chmod o-rwx password" in err
    Path("password").chmod(0o600)
    assert run("check", "f.yml")[2] == ""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_check_warns_of_a_ticket_that_everybody_can_read() -> None:
    ticket = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
    Path("ticket").write_text(ticket.encode())
    Path("ticket").chmod(0o644)
    Path("f.yml").write_text("Client: {TicketFile: ticket}")
    Path("f.yml").chmod(0o644)
    assert run("check", "f.yml")[2].splitlines() == [
        "warning: f.yml:1: Client.TicketFile: ticket: everybody on this machine can read this ticket: run chmod o-rwx ticket"
    ]
    Path("f.yml").write_text(f"Client: {{Ticket: {ticket.encode()}}}")
    assert run("check", "f.yml")[2].splitlines() == [
        "warning: f.yml:1: Client.Ticket: everybody on this machine can read it there: run chmod o-rwx f.yml"
    ]
    Path("f.yml").chmod(0o640)
    assert run("check", "f.yml")[2] == ""


def test_check_takes_a_ticket_that_is_one() -> None:
    ticket = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
    Path("f.yml").write_text(f"Client: {{Ticket: {ticket.encode()}}}")
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Client: Ticket\n", "")
    Path("ticket").write_text(f"{ticket.encode()}\n")
    Path("f.yml").write_text("Client: {TicketFile: ticket}")
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Client: TicketFile\n", "")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_ticket_file_of_powershell_is_one(encoding: str) -> None:
    ticket = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(TOKEN_BYTES))
    Path("ticket").write_bytes(f"{ticket.encode()}\r\n".encode(encoding))
    Path("f.yml").write_text("Client: {TicketFile: ticket}")
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Client: TicketFile\n", "")
    assert find_ticket(ClientConfig(ticket_file=Path("ticket"))) == ticket


def test_a_ticket_is_told_together_with_all_other_mistakes() -> None:
    Path("f.yml").write_text("Client:\n  Once: 7\n  Ticket: hello\n  Servicez: 80\n")
    told = [
        "f.yml:2: Client.Once: '7' is neither true nor false",
        "f.yml:4: Client.Servicez: unknown key: did you mean Services?",
        "f.yml:3: Client.Ticket: this is not a valid ticket: a ticket starts with tn",
    ]
    code, out, err = run("check", "f.yml")
    assert (code, out, err.splitlines()) == (2, "", told)
    result = CliRunner().invoke(app, ["connect", "--config", "f.yml", "8080"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"trionat: {line}" for line in told]


def test_a_ticket_file_that_is_no_text_is_told_and_not_shown() -> None:
    Path("ticket").write_bytes(b"tn1_\xff\xfe")
    Path("f.yml").write_text("Client: {TicketFile: ticket}")
    assert run("check", "f.yml") == (
        2,
        "",
        "f.yml:1: Client.TicketFile: cannot read the ticket: this is not UTF-8 text: save the file as UTF-8\n",
    )


def write_certificate(name: str, *, days: int = 3650, begins: int = -1) -> None:
    """Write `name.crt` and `name.key`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    Path(f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    Path(f"{name}.key").touch(mode=0o600)
    Path(f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )


def certified(certificate: str, key: str) -> str:
    return f"Server:\n  Certificate: {certificate}\n  CertificateKey: {key}\n"


@pytest.mark.parametrize(
    ("certificate", "key", "told"),
    [
        ("nope", "a.key", ["f.yml:2: Server.Certificate: nope: cannot be read: No such file or directory"]),
        (
            "nope",
            "nope",
            [
                "f.yml:2: Server.Certificate: nope: cannot be read: No such file or directory",
                "f.yml:3: Server.CertificateKey: nope: cannot be read: No such file or directory",
            ],
        ),
        ("a.key", "a.key", ["f.yml:2: Server.Certificate: a.key: there is no certificate in it (PEM)"]),
        ("a.crt", "b.key", ["f.yml:3: Server.CertificateKey: b.key: it is the key of another certificate than a.crt"]),
    ],
)  # fmt: skip
def test_check_looks_at_certificates(
    certificate: str, key: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificate("a")
    monkeypatch.setenv("SSL_CERT_FILE", "a.crt")  # what OpenSSL takes for the system's authorities
    write_certificate("b")
    Path("f.yml").write_text(certified(certificate, key))
    code, out, err = run("check", "f.yml")
    assert (code, out) == (2, "")
    assert err.splitlines() == told
    Path("f.yml").write_text(certified("a.crt", "a.key"))
    assert run("check", "f.yml") == (0, "f.yml: ok\n  Server: Certificate, CertificateKey\n", "")


def test_check_looks_at_what_is_no_key() -> None:
    write_certificate("a")
    Path("f.yml").write_text(certified("a.crt", "a.crt"))
    code, _, err = run("check", "f.yml")
    assert code == 2
    assert err.startswith(
        "f.yml:3: Server.CertificateKey: a.crt: no private key without a password"
    )


def test_check_tells_of_certificates_that_are_not_valid_now() -> None:
    write_certificate("old", days=-1, begins=-20)
    write_certificate("new", days=9, begins=8)
    for name, when in (("old", "expired on "), ("new", "begins on ")):
        Path("f.yml").write_text(certified(f"{name}.crt", f"{name}.key"))
        code, out, err = run("check", "f.yml")
        assert (code, out) == (0, "f.yml: ok\n  Server: Certificate, CertificateKey\n")
        assert err.startswith(f"warning: f.yml:2: Server.Certificate: {name}.crt: it {when}20")


def test_check_tells_of_certificates_that_clients_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket for such a server has no fingerprint, so clients ask the authorities of their system."""
    write_certificate("a")
    Path("f.yml").write_text(certified("a.crt", "a.key"))
    ok = "f.yml: ok\n  Server: Certificate, CertificateKey\n"
    unknown = (
        "warning: f.yml:2: Server.Certificate: a.crt: no authority of this system vouches for it (self-signed certificate): a"
        " client needs --fingerprint or --ca-file besides its ticket; without Certificate the ticket would be enough\n"
    )
    assert run("check", "f.yml") == (0, ok, unknown)
    monkeypatch.setenv("SSL_CERT_FILE", "a.crt")
    assert run("check", "f.yml") == (0, ok, "")
    Path("f.yml").write_text(certified("a.crt", "a.key") + "  PublicAddr: b.example\n")
    code, _, err = run("check", "f.yml")
    assert code == 0
    assert "a.crt: tickets lead to b.example, and it is not for that, so clients refuse it (" in err
    assert "not valid for 'b.example'" in err
    monkeypatch.delenv(
        "SSL_CERT_FILE"
    )  # also where no authority vouches for it, which OpenSSL tells first
    Path("f.yml").write_text(
        certified("a.crt", "a.key") + "  PublicAddr: 203.0.113.7\n  Domain: b.example\n"
    )
    code, _, err = run("check", "f.yml")
    assert code == 0
    assert "no authority of this system vouches for it" in err
    assert "tickets lead to 203.0.113.7, and it is not for that" in err
    assert "belongs into CertificatesDir" in err


def test_check_looks_for_the_folders_of_names() -> None:
    Path("f.yml").write_text(
        "Server:\n  Domain: tunnel.example.com\n  CertificatesDir: none\n  PagesDir: pages\n"
    )
    Path("pages").touch()
    code, _, err = run("check", "f.yml")
    assert (code, err.splitlines()) == (
        2,
        [
            "f.yml:3: Server.CertificatesDir: none: there is no such folder",
            "f.yml:4: Server.PagesDir: pages: there is no such folder",
        ],
    )
    Path("none").mkdir()
    Path("pages").unlink()
    Path("pages").mkdir()
    assert run("check", "f.yml")[0] == 0


def test_check_warns_of_what_is_risky_or_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("state").mkdir()
    write_certificate("a")
    monkeypatch.setenv("SSL_CERT_FILE", "a.crt")
    Path("f.yml").write_text(
        f"{certified('a.crt', 'a.key')}  StateDir: state\n  MaxServices: 690\n"
    )
    told = [
        "warning: f.yml:5: Server.MaxServices: 690 are more than a client can ask for: its message of 64 KiB carries about 689"
    ]
    assert run("check", "f.yml")[2].splitlines() == told
    Path("state/trionat.db").touch()
    Path("state").chmod(0o775)
    Path("state/trionat.db").chmod(0o602)
    Path("a.key").chmod(0o604)
    key = "warning: f.yml:3: Server.CertificateKey: a.key: everybody on this machine can use this key: run chmod o-rwx a.key"
    told = [
        key,
        *told,
        "warning: f.yml:4: Server.StateDir: state: others can change what is kept there: run chmod go-w state",
        "warning: f.yml:4: Server.StateDir: state/trionat.db: others can change what is kept there: run chmod go-w state/trionat.db",
    ]
    assert run("check", "f.yml") == (
        0,
        "f.yml: ok\n  Server: StateDir, Certificate, CertificateKey, MaxServices\n",
        "".join(f"{line}\n" for line in told),
    )
    Path("f.yml").write_text("Client: {StateDir: state}\n")
    Path("state/known_servers").touch()
    Path("state/known_servers").chmod(0o620)
    _, _, err = run("check", "f.yml")
    assert err.splitlines() == [
        f"warning: f.yml:1: Client.StateDir: {path}: others can change what is kept there: run chmod go-w {path}"
        for path in ("state", "state/known_servers")
    ]


def test_check_counts_services_that_no_message_could_ask_for() -> None:
    services = ", ".join(map(str, range(10_000, 10_750)))
    Path("f.yml").write_text(f"Client:\n  Services: [{services}]\n")
    code, _, err = run("check", "f.yml")
    assert code == 2
    assert err.startswith("f.yml:2: Client.Services: to ask for 750 services takes ")
    assert err.endswith(" bytes, and a message has 65536 at most: start several clients\n")


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
    ("role", "sections"),
    [
        ("server", {"Server", "Acme", "Events", "Database", "Cluster"}),
        ("client", {"Auth", "Client"}),
    ],
)
def test_show_of_one_role(role: str, sections: set[str]) -> None:
    code, out, _ = run("show", "--role", role)
    assert code == 0
    assert {key.split(".")[0] for key in rows(out)} == sections


def test_show_masks_secrets() -> None:
    Path("f.yml").write_text(
        "Auth: {Username: bob, Password: hunter2}\n"
        "Client: {Ticket: hunter2, LogFilename: naïve}\n"
        "Database: {Username: u, Password: hunter2, Host: h, DBName: d}\n"
    )
    code, out, _ = run("show", "--config", "f.yml")
    shown = rows(out)
    assert code == 0
    assert "hunter2" not in out
    for key in ("Auth.Password", "Client.Ticket", "Database.Password"):
        assert shown[key][0] == "********"
    assert shown["Auth.Username"][0] == "bob"
    assert shown["Client.LogFilename"][0] == "naïve"


def test_show_tells_problems_and_fails() -> None:
    assert run("show", env={"TRIONAT_CLIENT_ONCE": "x"}) == (
        2,
        "",
        "environment TRIONAT_CLIENT_ONCE: Client.Once: 'x' is neither true nor false\n",
    )
