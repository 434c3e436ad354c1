"""The pages, followed word for word on a machine that has their names and ports; `tests/e2e/walk.py` says what is put in whose place."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.walk import Walk, serve_greeting
from tests.faults.machines import open_site
from tests.faults.programs import Program
from tests.mariadb import GO_TABLES, running
from tests.pages import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.machines import Site

pytestmark = [
    pytest.mark.timeout(240),  # of which it needs a tenth, where nothing else runs
    pytest.mark.skipif(sys.platform != "linux", reason="it makes network namespaces"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, {"host": "203.0.113.7", "elsewhere": "192.0.2.7"}) as site:
        for machine in site.machines.values():
            machine.name_hosts({"tunnel.example.com": (site["host"].address,)})
            machine.ask_names_at("127.0.0.1")  # where nobody answers, which is known at once
        yield site


@pytest.fixture
def walk(site: Site) -> Iterator[Walk]:
    with ExitStack() as stack:
        stack.callback(serve_greeting(site["host"], 8080, 6379, 22).stop)
        walk = Walk(site["host"])
        stack.callback(walk.kill)
        yield walk


@pytest.mark.slow
def test_readme(walk: Walk) -> None:
    def add_alice() -> None:
        walk.run("trionat user add alice")
        walk.machine.added["TRIONAT_CLIENT_FINGERPRINT"] = walk.fingerprint

    def connect_alice() -> None:
        walk.run("trionat user ticket alice")
        walk.connect()

    walk.follow(
        "README.md",
        before={
            "TRIONAT_AUTH_PASSWORD=": add_alice,
            "trionat connect TICKET 8080 --group": lambda: walk.run("trionat user ticket trionat"),
            "trionat drain": walk.end_client,  # it would have nowhere to go
            "trionat status": walk.serve,
            "trionat kick alice": connect_alice,
            "trionat tasks": lambda: walk.end_client(4),  # it was sent away
        },
    )


def test_accounts_and_traffic(walk: Walk) -> None:
    walk.serve()
    walk.run("trionat user add alice")
    walk.follow("docs/accounts-and-traffic.md")
    limits, admin, *_ = (block for block in blocks("docs/accounts-and-traffic.md") if block.shown)
    for block in (limits, admin):
        assert tuple(walk.outputs[block.typed[0]].splitlines()) == block.shown


def test_api(walk: Walk) -> None:
    walk.serve("--console-addr 8090")
    walk.follow(
        "docs/api.md",
        before={"trionat --server": lambda: walk.serve("--console-addr 0.0.0.0:8090")},
    )
    answers = [text for line, text in walk.outputs.items() if line.startswith("curl")]
    assert len(answers) == 5
    assert json.loads(answers[0]) == {"username": "trionat", "admin": True, "csrf": None}
    assert not [text for text in answers if '"status":' in text], answers  # a problem


def test_console_and_metrics(walk: Walk) -> None:
    walk.follow("docs/console.md", "docs/metrics.md")
    [metrics] = [text for line, text in walk.outputs.items() if "/metrics" in line]
    assert metrics.startswith("# HELP trionat_")


def test_what_a_client_does(walk: Walk) -> None:
    def inspect() -> None:
        client = walk.connect("trionat connect TICKET 8080 --inspect")
        found = client.wait_for(r"^inspector: (\S+[?#]token=(\S+))$")
        walk.machine.added |= {"URL": found[1], "TOKEN": found[2]}
        public = client.wait_for(r"^(\S+) -> ")[1]
        walk.run(f"curl --silent http://{public}/ http://{public}/")  # the second and third visitor

    walk.serve()
    walk.follow(
        "docs/configuration.md",
        "docs/screen.md",
        "docs/inspector.md",
        "docs/doctor.md",
        before={"TOKEN=": inspect},
    )
    har = json.loads((walk.machine.folder / "visitors.har").read_text(encoding="utf-8"))
    assert len(har["log"]["entries"]) == 3
    [replay] = [text for line, text in walk.outputs.items() if line.endswith("/replay")]
    assert '"status":' not in replay, replay
    # What the doctor says of a client is what the page shows, in its order; there two are wrong, and here nothing is.
    block = blocks("docs/doctor.md")[0]
    said = walk.outputs[block.typed[0]].splitlines()
    heads = [re.findall(r"^[a-z]+ +(\w+) +", line) for line in said]
    shown = [re.findall(r"^[a-z]+ +(\w+) +", line) for line in block.shown]
    assert [head for head in heads if head] == [head for head in shown if head]
    for check in ("version", "kernel", "tls"):
        [line] = [line for line in block.shown if line.startswith(f"ok       {check} ")]
        assert line in said


def test_backup(walk: Walk) -> None:
    walk.serve()
    walk.follow("docs/backup.md")


def test_events(walk: Walk) -> None:
    """All files of the page are one; nobody is at any of their addresses."""
    [first, *others] = [
        block.text for block in blocks("docs/events.md") if block.language == "yaml"
    ]
    entries = "".join(text.removeprefix("Events:\n") for text in others)
    (walk.machine.folder / "server.yml").write_text(first + entries)
    line = "trionat events test --config server.yml"
    walk.follow("docs/events.md", codes={line: 6})
    assert walk.outputs[line].count(" not taken: cannot reach ") == 3


NAT_ROWS = """
insert into userInfo_userinfo (user_id, username, password) values
    (1, '3210561027', 'one'), (2, 'alice', 'two'), (3, 'Bob', 'three'), (4, 'Bob', 'four');
insert into bars (id, bar, username) values (1, 123456789, '3210561027'), (2, 2000, 'Bob'), (3, 4000, 'Bob');
"""
NAT_SERVER = """
Server:
  Name: Server-NAT
  ControllerAddr: 0.0.0.0:8080
  TunnelAddr: 0.0.0.0:8008
  VisitPort: 60000-60003
  TaskQueueNum: 4
  TaskQueueBuff: 32
  MaxTCPConnNum: 4
  MaxConnNum: 256
  LogFilename: server.log
  StartAuth: true
  StartLog: true
Database:
  Username: nat
  Password: secret
  Host: 127.0.0.1:3309
  DBName: nat
"""
NAT_CLIENT = """
Client:
  ControllerAddr: 203.0.113.7:8080
  TunnelServerAddr: 203.0.113.7:8008
  LocalServerAddr: 127.0.0.1:8080
Auth:
  Username: "3210561027"
  Password: one
"""


@pytest.mark.slow
def test_moving_from_nat(site: Site) -> None:
    """The rows in the database are those that the page's outputs tell of, and so these are shown as they are on the page."""
    page = "docs/moving-from-nat.md"
    host, elsewhere = site["host"], site["elsewhere"]
    (host.folder / "server.yml").write_text(NAT_SERVER)
    (elsewhere.folder / "client.yml").write_text(NAT_CLIENT)
    with ExitStack() as stack:
        mariadb = stack.enter_context(running("127.0.0.1", 3309, host.inside))
        mariadb.sql(
            "create database nat character set utf8mb4; create user nat@'%' identified by 'secret'; grant all on nat.* to nat@'%'"
        )
        mariadb.sql(GO_TABLES + NAT_ROWS, "nat")
        stack.callback(serve_greeting(elsewhere, 8080).stop)
        walk = Walk(host, elsewhere)
        stack.callback(walk.kill)
        walk.follow(page, codes={"trionat db check": 6})  # there is something to mend
    month = datetime.now(UTC).strftime("%Y-%m")
    compared = [block for block in blocks(page) if block.section == "The server" and block.prompt]
    assert len(compared) == 5
    for block in compared[:4]:
        shown = [re.sub(r"\b20\d\d-\d\d\b", month, line) for line in block.shown]
        said = "".join(walk.outputs[line] for line in block.typed).splitlines()
        assert said == shown


@pytest.mark.slow
def test_operating(walk: Walk, site: Site) -> None:
    def connect_alice() -> None:
        walk.run("trionat user add alice; trionat user ticket alice")
        walk.connect()

    def come_back() -> None:
        walk.end_client(4)  # it was sent away
        walk.connect()
        walk.values[r"\b12$"] = str(status()["sessions"][0]["uid"])

    def visit() -> None:
        come_back()
        program = (
            *(
                "import socket, time",
                "end = socket.create_connection(('tunnel.example.com', 60000))",
            ),
            *("print('here', flush=True)", "end.recv(1)"),
        )
        visitor = Program(walk.machine, sys.executable, "-c", "; ".join(program))
        visitors.callback(visitor.stop)
        visitor.wait_for("here")
        walk.values["v4711$"] = "v{number}".format_map(status()["sessions"][0]["visitors"][0])

    def status() -> Any:
        return json.loads(walk.run("trionat status --json"))

    def guess() -> None:
        walk.serve("--ban-after 1")
        guesser = Walk(site["elsewhere"], fingerprint=walk.fingerprint)
        guesser.run(
            f"TRIONAT_AUTH_PASSWORD=wrong trionat connect -c tunnel.example.com:8007 -u alice 8080 --fingerprint {walk.fingerprint}",
            code=4,
        )

    walk.serve()
    with ExitStack() as visitors:
        walk.follow(
            "docs/operating.md",
            before={
                "trionat kick alice": connect_alice,
                "trionat kick 12": come_back,
                "trionat kick v4711": visit,
                "trionat unban": guess,
                "trionat drain": walk.end_client,
                "trionat upgrade": walk.serve,
            },
        )


def test_reload(walk: Walk) -> None:
    file = walk.machine.folder / "server.yml"
    file.write_text("Server: {VisitPort: 60000-60003, Workers: 1}\n")

    def change() -> None:
        file.write_text("Server: {VisitPort: 60000-60009, MaxVisitors: 100, Workers: 2}\n")

    walk.serve()
    walk.follow("docs/reload.md", before={"trionat reload": change})
    [block] = [block for block in blocks("docs/reload.md") if block.shown]
    assert tuple(walk.outputs["trionat reload"].splitlines()) == block.shown
