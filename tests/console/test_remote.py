"""`trionat --server URL`: the same commands as at a server's state folder, over the API of a real server process."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from typer.testing import CliRunner

from tests.e2e import services
from tests.e2e.running import START_TIMEOUT, standing_server
from tests.unit.commands import Outcome
from trionat.cli import app
from trionat.cli.remote import Remote
from trionat.cli.target import TARGET
from trionat.errors import ConfigError
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import Flush

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.limit(120)

LOCAL = "127.0.0.1"


@attrs.frozen
class Command:
    """A command line of trionat; `before` stands before the command, `behind` behind it."""

    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    def __call__(self, *args: str, stdin: str = "") -> Outcome:
        result = CliRunner().invoke(
            app, [*self.before, *args, *self.behind], input=stdin, catch_exceptions=False
        )
        TARGET.set(None)
        assert "Traceback" not in result.output
        return Outcome(result.exit_code, result.stdout, result.stderr)

    def fails(self, code: int, *args: str, stdin: str = "") -> str:
        """Check that it fails with that code, prints nothing, and says why in one line."""
        outcome = self(*args, stdin=stdin)
        assert (outcome.code, outcome.out) == (code, ""), outcome
        (line,) = outcome.err.splitlines()
        return line.removeprefix("trionat: ")


@attrs.frozen
class Both:
    """A server that is up, asked at its state folder and from afar; `url` is where its console is, `token_file` an administrator's."""

    here: Command
    afar: Command
    url: str
    token_file: Path
    ready: dict[str, Any]

    def with_token(self, text: str) -> Command:
        """Return how somebody else asks from afar."""
        file = self.token_file.with_name("other")
        write_secret(file, text)
        return Command(("--server", self.url, "--token-file", str(file)))


def write_secret(file: Path, text: str) -> None:
    file.write_text(f"{text}\n")
    file.chmod(0o600)


@contextmanager
def standing(folder: Path, console: str) -> Iterator[Both]:
    with standing_server(folder, "--console-addr", console) as (_, ready):
        here = Command(behind=("--state-dir", str(folder / "server")))
        file = folder / "token"
        write_secret(file, here("token", "add", "admin", "--scope", "manage").out.strip())
        url = ready["console"].rstrip("/")
        yield Both(here, Command(("--server", url, "--token-file", str(file))), url, file, ready)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with standing(tmp_path_factory.mktemp("plain"), "127.0.0.1:0") as both:
        yield both


@pytest.fixture(autouse=True)
def _no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no server.yml is found


def test_an_account_is_managed_as_at_the_server(both: Both) -> None:
    afar, here = both.afar, both.here
    added = afar("user", "add", "zoé", "--expires", "2099-01-31", "--admin", stdin="a secret\n")
    assert (added.code, added.err) == (0, "")
    assert added.out.startswith("zoé can log in now until 2099-02-01 00:00 UTC: ")
    assert afar.fails(2, "user", "add", "zoé", stdin="x\n") == "there is a user 'zoé' already"
    assert afar("user", "add", "cam", "--no-password").out.startswith("cam has no password and can")
    assert any(
        line.startswith("cam ") and line.endswith("  no password")
        for line in afar("user", "list").out.splitlines()
    )
    assert afar("user", "remove", "cam").code == 0
    assert afar.fails(2, "user", "passwd", "zoé", stdin="short\n") == (
        "password: has not 8 to 1024 characters"
    )
    for args in (
        ("user", "list"),
        ("user", "list", "--json"),
        ("user", "limit", "zoé", "--sessions", "2", "--visit-ports", "60000-60002", "--names", "shop"),
        ("user", "limit", "zoé"),
        ("user", "limit", "zoé", "--sessions", "none"),
        ("user", "expire", "zoé", "never"),
        ("user", "disable", "zoé"),
        ("user", "list"),
        ("user", "enable", "zoé"),
        ("user", "admin", "zoé", "off"),
        ("user", "passwd", "zoé"),
        ("user", "names"),
        ("token", "list", "--user", "zoé"),
        ("user", "list", "--json"),
    ):  # fmt: skip
        outcome = afar(*args, stdin="another one\n")
        assert outcome.code == 0, (args, outcome)
        assert outcome == here(*args, stdin="another one\n"), args
    assert afar("user", "remove", "zoé") == Outcome(
        0, "zoé is removed: the password, all tickets and all tokens are void.\n", ""
    )
    for command in (
        ("remove", "zoé"),
        ("disable", "zoé"),
        ("expire", "zoé", "1d"),
        ("limit", "zoé"),
        ("limit", "zoé", "--sessions", "1"),
        ("ticket", "zoé"),
        ("passwd", "zoé"),
        ("admin", "\udcff", "on"),
        ("admin", "a/b", "on"),
    ):
        afar.fails(2, "user", *command, stdin="x\n")


def test_what_the_server_refuses_is_told_in_one_line(both: Both) -> None:
    assert both.afar.fails(2, "user", "admin", "trionat", "off").startswith(
        "an administrator cannot"
    )
    assert both.afar.fails(2, "user", "passwd", "trionat", stdin="long enough\n").startswith("this is the account of the token")  # fmt: skip
    assert both.afar.fails(2, "user", "release-name", "shop.example.org") == "there is no name shop.example.org that is kept"  # fmt: skip


def test_a_ticket_is_the_same_as_at_the_server_and_narrowed_here(both: Both) -> None:
    both.here("user", "add", "ann", stdin="x\n")
    own, other = both.here("user", "ticket", "ann"), both.afar("user", "ticket", "ann")
    assert other == own
    narrowed = both.afar("user", "ticket", "ann", "--only-port", "60001", "--expires", "2099-01-31")
    assert narrowed.out.startswith("tn3_")
    assert "It is narrowed: only ports=60001; until 2099-02-01T00:00:00Z" in narrowed.err
    renewed = both.afar("user", "ticket", "ann", "--renew")
    assert renewed.out != own.out
    assert "handed out before are void" in renewed.err
    assert both.here("user", "ticket", "ann").out == renewed.out
    both.here("user", "remove", "ann")


def test_tokens_are_made_listed_and_revoked(both: Both) -> None:
    made = both.afar("token", "add", "ci", "--expires", "2099-01-31")
    assert made.err.startswith("Whoever has it can see all of the server, until 2099-02-01 00:00")
    text = made.out.split()[-1]
    assert made.out == f"{text}\n"
    assert both.afar.fails(2, "token", "add", "ci") == "'trionat' has a token 'ci' already"
    reader = both.with_token(text)
    assert reader("status").code == 0
    refused = reader.fails(4, "user", "disable", "trionat")
    assert refused.startswith(f"{both.url}: this token may not do that")
    listed = [json.loads(line) for line in both.afar("token", "list", "--json").out.splitlines()]
    assert {token["name"] for token in listed} >= {"admin", "ci"}
    assert both.afar("token", "revoke", "ci").out == "The token ci of trionat is void.\n"
    assert both.afar.fails(2, "token", "revoke", "ci") == "there is no token 'ci'"
    assert reader.fails(4, "status").endswith(": the token was revoked, or its account is gone")
    assert text not in str(both.here("token", "list"))


def test_the_status_is_the_one_at_the_server_and_an_ordinary_account_sees_its_own(
    both: Both,
) -> None:
    port = services.free_low_port()
    both.here("user", "add", "bob", stdin="x\n")
    ticket = both.here("user", "ticket", "bob").out.strip()
    client = subprocess.Popen(
        services.trionat_command("connect", ticket, str(port), "--json"),
        env=services.trionat_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert client.stdout is not None
        assert json.loads(client.stdout.readline())["event"] in ("connected", "service-down")
        time.sleep(1.1)  # what the API tells may be a second old
        seen, own = (json.loads(each("status", "--json").out) for each in (both.afar, both.here))
        assert seen.keys() == own.keys()
        assert [each["user"] for each in seen["sessions"]] == ["bob"]
        assert seen["sessions"][0].keys() == own["sessions"][0].keys()
        ages = re.compile(r"\b\d+[sm]\b|\d+ms|\d+(\.\d+)?[kB]\S*")
        shown, there = (
            ages.sub("", each("status", "--visitors").out) for each in (both.afar, both.here)
        )
        assert shown.split() == there.split()

        both.here("user", "add", "eve", stdin="x\n")
        eve = both.with_token(both.here("token", "add", "x", "--user", "eve").out.strip())
        hers = json.loads(eve("status", "--json").out)
        assert (hers["sessions"], hers["banned"], hers["cluster"]) == ([], [], None)
        uid = seen["sessions"][0]["uid"]
        eve = both.with_token(
            both.here("token", "add", "y", "--user", "eve", "--scope", "manage").out.strip()
        )
        assert eve.fails(2, "kick", str(uid)).startswith("USER|UID|VISITOR: there is no session")
        assert eve.fails(2, "kick", "bob").startswith("USER|UID|VISITOR: there is no client of a")
        refused = eve.fails(4, "drain")
        assert (
            "this is for administrators, and the account of this token, 'eve', is none" in refused
        )
        for each in (eve, both.afar, both.here):
            user = ("--user", "eve")
            told = each.fails(2, "token", "add", "m", "--scope", "metrics", *user)
            assert "scope: /metrics tells of all users, so it is for administrators, and 'eve' is none" in told  # fmt: skip
            assert told.count("scope") == 1

        assert both.afar.fails(2, "kick", "v99").startswith("USER|UID|VISITOR: there is no visitor")
        assert both.afar("kick", str(uid)) == Outcome(0, f"session {uid} is ended\n", "")
        assert client.wait(START_TIMEOUT) == 4
        assert both.afar.fails(2, "kick", str(uid)).startswith("USER|UID|VISITOR: there is no session")  # fmt: skip
        assert both.afar.fails(2, "kick", "bob").startswith("USER|UID|VISITOR: there is no client of a")  # fmt: skip
    finally:
        client.kill()
        client.communicate()
        both.here("user", "remove", "bob")
        both.here("user", "remove", "eve")


def test_traffic_is_that_at_the_server(both: Both) -> None:
    month, day = f"{datetime.now(UTC):%Y-%m}", f"{datetime.now(UTC):%Y-%m-%d}"
    afar, here = both.afar, both.here
    assert afar("traffic") == here("traffic") == Outcome(0, "", "There is no traffic yet.\n")
    assert afar("traffic", "--days").err == f"There is no traffic of a day in {month}.\n"
    here("user", "add", "ann", stdin="x\n")
    here("user", "limit", "ann", "--quota", "1G")
    file = database_file(Path(here.behind[1]))

    async def add() -> None:
        async with open_store(None, file) as store:
            flush = Flush(
                server="0" * 32,
                number=1,
                month=month,
                amounts={"ann": 1500, "gone": 2500, "zoé": 7},
            )
            await store.add_traffic(flush, day)

    trio.run(add)
    for args in (
        (),
        ("--json",),
        ("ann",),
        ("gone", "--json"),
        ("zoé",),
        ("--month", "2026-01", "--json"),
        ("--days",),
        ("--days", "--json"),
        ("ann", "--days"),
        ("--days", "--month", "2024-02"),
        ("trionat",),
    ):
        outcome = afar("traffic", *args)
        assert outcome.code == 0, outcome
        assert outcome == here("traffic", *args), args
    unknown = afar.fails(2, "traffic", "nobody")
    assert unknown == here.fails(2, "traffic", "nobody") == "there is no user 'nobody', and no traffic of one"  # fmt: skip
    ann = both.with_token(here("token", "add", "x", "--user", "ann").out.strip())
    (own,) = map(json.loads, ann("traffic", "--json").out.splitlines())
    assert (own["user"], own["bytes"], own["monthly_quota"]) == ("ann", 1500, 10**9)
    assert ann.fails(2, "traffic", "gone").startswith("there is no traffic of a user 'gone'")
    here("user", "remove", "ann")


def test_tasks_and_the_whereabouts_of_clients(both: Both) -> None:
    afar, here = both.afar, both.here
    # Those that come and go are not the same in both.
    shown, there = ({line for line in each("tasks").out.splitlines() if "name=" not in line and "visit port" in line} for each in (afar, here))  # fmt: skip
    assert shown == there
    assert shown
    no_node = afar.fails(3, "cluster", "where", "trionat")
    assert no_node == f"{both.url}: this server is no node of a cluster: trionat status shows its sessions"  # fmt: skip
    assert here.fails(3, "cluster", "where", "trionat").endswith(no_node.removeprefix(both.url))
    for command in ("init", "join", "status"):
        assert afar.fails(2, "cluster", command) == "--server: of these commands only cluster where goes with it"  # fmt: skip
    here("user", "add", "eve", stdin="x\n")
    eve = both.with_token(here("token", "add", "x", "--user", "eve").out.strip())
    for args in (("tasks",), ("cluster", "where", "eve")):
        assert "this is for administrators" in eve.fails(4, *args)
    here("user", "remove", "eve")


def test_without_tls_it_is_said_what_to_write(both: Both) -> None:
    url = both.url.replace("http://", "https://")
    wrong = Command(("--server", url, "--token-file", str(both.token_file)))
    assert wrong.fails(3, "status") == (
        f"{url}: what answers there does not speak TLS: if it is the console, write --server {both.url}"
    )


def test_a_server_is_drained_from_afar(tmp_path: Path) -> None:
    with standing(tmp_path, "127.0.0.1:0") as both:
        outcome = both.afar("drain", "--json")
        assert outcome.code == 0
        assert json.loads(outcome.out)["done"] is True
        assert outcome == both.here("drain", "--json")


def test_with_tls_only_the_right_certificate_is_told_anything(tmp_path: Path) -> None:
    with standing(tmp_path, "0.0.0.0:0") as both:
        assert both.url.startswith("https://")
        port = both.url.rpartition(":")[2]
        base = ("--server", f"https://127.0.0.1:{port}", "--token-file", str(both.token_file))
        unpinned = Command(base).fails(4, "status")
        assert "its certificate does not check out: self-signed certificate" in unpinned
        assert "--server-fingerprint" in unpinned
        wrong = Command((*base, "--server-fingerprint", "SHA256:" + "A" * 43)).fails(4, "status")
        assert wrong.startswith(f"WRONG SERVER at https://127.0.0.1:{port}: it shows ")
        plain = Command(
            ("--server", f"http://127.0.0.1:{port}", "--token-file", str(both.token_file))
        )
        assert plain.fails(3, "status") == (
            f"http://127.0.0.1:{port}: it has ended the connection without an answer: if it speaks TLS, write --server https://127.0.0.1:{port}"
        )
        right = Command((*base, "--server-fingerprint", both.ready["fingerprint"]))
        assert right("status").code == 0
        assert right("user", "list").out == both.here("user", "list").out


@pytest.mark.parametrize(
    ("before", "command", "reason"),
    [
        (["--server", "{url}"], "status", "--token-file: say where the token is"),
        (["--token-file", "{file}"], "status", "--token-file: of no use without --server"),
        (["--server-fingerprint", "x"], "status", "--server-fingerprint: of no use without --server"),
        (["--server", "{url}", "--token-file", "{file}"], "events list", "--server: events does not go with it"),
        (["--server", "{url}", "--token-file", "{file}"], "serve", "--server: serve does not go with it"),
        (["--server", "{url}", "--token-file", "{file}"], "status --state-dir x", "--state-dir: of no use with --server"),
        (["--server", "{url}", "--token-file", "{file}"], "status --config x", "--config: of no use with --server"),
        (["--server", "{url}/x", "--token-file", "{file}"], "status", "--server: "),
        (["--server", "ftp://x", "--token-file", "{file}"], "status", "--server: 'ftp://x' is not a valid URL"),
        (["--server", "http://192.0.2.7:80", "--token-file", "{file}"], "status", "--server: anybody on the way"),
        (["--server", "https://[x", "--token-file", "{file}"], "status", "--server: "),
        (["--server", "https://x:99999", "--token-file", "{file}"], "status", "--server: "),
        (["--server", "https://x", "--token-file", "{file}", "--server-fingerprint", "y"], "status", "--server-fingerprint: 'y' is not a valid"),
        (["--server", "{url}", "--token-file", "{file}", "--server-fingerprint", "SHA256:" + "A" * 43], "status", "--server-fingerprint: there is no certificate"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_told(
    both: Both, before: list[str], command: str, reason: str
) -> None:
    words = [word.format(url=both.url, file=both.token_file) for word in before]
    assert Command(tuple(words)).fails(2, *command.split()).startswith(reason)


def test_a_token_that_others_can_read_or_that_is_none_is_not_sent(
    both: Both, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    command = Command(("--server", both.url, "--token-file", str(file)))
    assert command.fails(3, "status").startswith(f"{file}: cannot read: No such file")
    write_secret(file, both.token_file.read_text().strip())
    file.chmod(0o644)
    told = command.fails(3, "status")
    assert "others can read or change this token (mode 0644): run chmod 600" in told
    for text in ("", "tn1_abc", "trn_" + "a" * 20):
        write_secret(file, text)
        line = command.fails(2, "status")
        assert "this is no token" in line
        assert "aaaa" not in line
    with pytest.raises(ConfigError):
        Remote.read(both.url, file, None)


@pytest.mark.parametrize(
    "said",
    [
        b"", b"nonsense\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{x", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n[1,2]",
    ],
)  # fmt: skip
def test_something_else_that_answers_is_told(both: Both, said: bytes) -> None:
    with socket.create_server((LOCAL, 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://{LOCAL}:{listener.getsockname()[1]}"
        line = Command(("--server", url, "--token-file", str(both.token_file))).fails(3, "status")
        thread.join()
    assert line.startswith(f"{url}: ")


def test_nobody_who_answers_is_told(both: Both) -> None:
    port = services.free_low_port()
    url = f"http://{LOCAL}:{port}"
    line = Command(("--server", url, "--token-file", str(both.token_file))).fails(3, "status")
    assert line == f"{url}: Connection refused: is the console up there?"


@pytest.mark.parametrize(
    ("said", "args"),
    [
        (b"[1]", ("status",)),
        (b'{"server": {}}', ("status",)),
        (b"{}", ("kick", "alice")),
        (b"null", ("drain",)),
        (b"{}", ("user", "list")),
        (b'{"items": 5, "next": null}', ("user", "list")),
        (b'{"items": [{"name": 1}], "next": null}', ("user", "list")),
        (b'{"items": [[]], "next": null}', ("token", "list")),
        (b'{"items": [], "next": 7}', ("token", "list")),
        (b'{"items": [], "next": "on and on"}', ("token", "list")),
    ],
)
def test_an_answer_of_another_shape_is_told(
    both: Both, said: bytes, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionat.cli.remote._MOST_PAGES", 5)
    ended = threading.Event()
    with socket.create_server((LOCAL, 0)) as listener:
        listener.settimeout(0.1)

        def answer() -> None:
            while not ended.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                with sock:
                    sock.recv(65536)
                    sock.sendall(
                        b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)
                    )

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://{LOCAL}:{listener.getsockname()[1]}"
        try:
            line = Command(("--server", url, "--token-file", str(both.token_file))).fails(3, *args)
        finally:
            ended.set()
            thread.join()
    assert line.startswith(f"{url}: ")
    assert "has no end" in line if b"on and on" in said else "another version" in line


def test_a_ban_is_lifted(both: Both) -> None:
    port = int(both.url.rpartition(":")[2])

    def guess() -> int:
        connection = http.client.HTTPConnection(LOCAL, port, timeout=10)
        with closing(connection):
            body = json.dumps({"username": "trionat", "password": "wrong"})
            connection.request("POST", "/api/v1/login", body, {"Content-Type": "application/json"})
            return connection.getresponse().status

    def ban() -> None:
        while guess() != 429:
            pass

    ban()
    assert [
        each["network"] for each in json.loads(both.here("status", "--json").out)["banned"]
    ] == [LOCAL]
    assert both.here("unban", LOCAL).out == f"{LOCAL} is not banned any more.\n"
    assert guess() == 401
    assert both.here.fails(2, "unban", LOCAL) == f"ADDRESS: {LOCAL} is not banned"
    assert both.here.fails(2, "unban", "2001:db8::7") == "ADDRESS: 2001:db8::/64 is not banned"
    assert both.here.fails(2, "unban", "x").startswith("ADDRESS: 'x' is not a valid network")
    assert both.afar.fails(2, "unban", "192.0.2.7") == "ADDRESS: 192.0.2.7 is not banned"
