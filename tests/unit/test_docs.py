"""The README and the documentation say what the program does; `test_config_docs.py` holds the tables of keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import typer
from typer.testing import CliRunner

from tests import pages
from tests.pages import ROOT
from trionat.address import TCPAddress
from trionat.cli import app
from trionat.cli.command_line import LaterCommand
from trionat.cli.connect import show_json
from trionat.cli.running import ExitCode
from trionat.cli.serve import _as_json, banner
from trionat.config.sections import KEYS
from trionat.events import (
    Connected,
    Disconnected,
    Draining,
    Inspecting,
    PublicService,
    Queued,
    Ready,
    ServiceDown,
    ServiceUp,
)
from trionat.protocol import legacy, messages, tunnel_frames
from trionat.protocol.dialect import LEGACY_FIRST_IDS
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.version import VERSION

if TYPE_CHECKING:
    from trionat.events import ClientEvent

PAGES = [ROOT / page for page in pages.PAGES]
README, REFERENCE, PROTOCOL, TROUBLES = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/reference.md", "docs/protocol.md", "docs/troubleshooting.md")
)


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables under a heading, without their marks."""
    section = page.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return [[cell.strip(" `") for cell in row] for row in cells if "---" not in row[0]]


# --- what the pages point at ---


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def command_words() -> set[str]:
    """Return every flag that a command of ours takes."""

    def walk(command: Any) -> set[str]:
        if isinstance(command, LaterCommand):
            command = command.load()
        own = {word for parameter in command.params for word in parameter.opts if word[:1] == "-"}
        return own.union(*map(walk, getattr(command, "commands", {}).values()))

    return walk(typer.main.get_command(app)) | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for other in (
        "`(?:nox|git|pipx|uv) [^`]+`",
        "^(?:.* )?(?:docker|uvx) .*$",
        "^- \\[ ?\\].*$",
        "mysqldump [^`\n]+",
        "pip install --upgrade",
        "`--\\w+` for (?:pip|pipx|uv)\\b",
    ):
        text = re.sub(other, "", text, flags=re.MULTILINE)  # their flags are not ours
    mentioned = set(re.findall(r"(?<![\w`|-])`?(--[a-z][a-z-]+)", text))
    assert mentioned - command_words() - {"--kebab-case"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_exist(page: Path) -> None:
    known = {name for key in KEYS.values() for name in key.environment} | {"TRIONAT_LOG_LEVEL"}
    mentioned = set(re.findall(r"TRIONAT_[A-Z_]+", page.read_text(encoding="utf-8")))
    assert mentioned - known - {"TRIONAT_"} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_versions_are_this_one(page: Path) -> None:
    """A line that shows another version shows this one as well, as where one takes the place of the other."""
    shown = re.compile(r"\btrionat(?: |==)v?(\d+\.\d+\.\d+)")
    stale = [
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if not set(shown.findall(line)) <= {VERSION} and VERSION not in line
    ]
    assert stale == []


# --- README.md ---


def test_the_readme_program_runs(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    home = str(tmp_path)
    environ = {**os.environ, "HOME": home, "XDG_STATE_HOME": home, "LOCALAPPDATA": home}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+\n", result.stdout)
    assert not list(tmp_path.iterdir())  # whoever tries it may run a server of his own


READY = Ready(
    name="Server-NAT",
    control=TCPAddress("0.0.0.0", 8007),
    tunnel=TCPAddress("0.0.0.0", 8008),
    public=TCPAddress("tunnel.example.com", 8007),
    visit_ports=(60000, 60001, 60002, 60003),
    sessions=4,
    authentication=True,
    fingerprint="SHA256:oACaSA5gpvROyHHcZZ/wn+AaGiMiITqBwIUZbU5PATg",
    state_dir="/home/you/.local/state/trionat",
    ticket="tn1_AR9H-XVDa5Jz…p8Zu",
    first_user="trionat",
    first_password="01nxb-maz9h-jrw5v-d7hnp",
)


def test_the_readme_shows_the_banner_as_it_is() -> None:
    assert banner(READY).strip() in README


def test_the_readme_has_all_exit_codes() -> None:
    assert [row[0] for row in rows(README, "## For scripts")[1:]] == [str(int(c)) for c in ExitCode]


# --- docs/reference.md ---


def test_exit_codes() -> None:
    written = [(row[0], row[1]) for row in rows(REFERENCE, "## Exit codes")[1:]]
    assert written == [(str(int(code)), code.name) for code in ExitCode]


def test_fields_of_ready() -> None:
    cells = " ".join(row[0] for row in rows(REFERENCE, "### `serve --json`")[1:])
    written = set(re.findall(r"\w+", cells))
    here = TCPAddress("127.0.0.1", 7000)
    behind = attrs.evolve(READY, proxy_control=here, proxy_visit=here, node="n1", node_addr=here)
    assert {"event", *written} >= set(_as_json(behind, None)) >= {"proxy_control", "node"}
    assert set(_as_json(READY, None)) >= {"event", "control", "tunnel", "visit_ports", "ticket"}


@pytest.mark.parametrize(
    "event",
    [
        Connected(
            uid=1,
            services=(
                PublicService(
                    name="web",
                    local=TCPAddress("127.0.0.1", 8080),
                    public=TCPAddress("example.com", 60000),
                ),
            ),
            server=READY.public,
            tunnel=READY.public,
            username="alice",
            encrypted=True,
        ),
        Queued(1),
        Disconnected(reason="gone", retry_in=None),
        Draining(30),
        Inspecting("http://127.0.0.1:4040/#token=abc"),
        ServiceDown(name="web", local=TCPAddress("127.0.0.1", 8080), reason="refused"),
        ServiceUp(name="web", local=TCPAddress("127.0.0.1", 8080)),
    ],
    ids=lambda event: type(event).__name__.lower(),
)
def test_fields_of_events(event: ClientEvent, capsys: pytest.CaptureFixture[str]) -> None:
    show_json(event)
    line = capsys.readouterr().out
    fields = set(re.findall(r'"(\w+)":', line)) - {"event"}
    table = "\n".join(map(" ".join, rows(REFERENCE, "### `connect --json`")))
    assert re.search(rf"^{json.loads(line)['event']} ", table, re.MULTILINE)
    assert not {field for field in fields if not re.search(rf"\b{field}\b", table)}


# --- docs/protocol.md ---


def test_ids_of_frames() -> None:
    kinds: dict[int, str] = {
        kind.id: kind.__name__.upper() for kind in typing.get_args(messages.Message)
    }
    on_tunnels = typing.get_args(tunnel_frames.TunnelFrame)
    kinds |= {kind.ID: kind.__name__.upper() for kind in on_tunnels} | {
        tunnel_frames.DATA_ID: "DATA"
    }
    written = {int(row[0]): row[1] for row in rows(PROTOCOL, "## Frames") if row[0].isdigit()}
    assert written == kinds
    assert not LEGACY_FIRST_IDS & set(written)


@pytest.mark.parametrize(("title", "codes"), [("REFUSED", RefusalCode), ("CLOSE", CloseCode)])
def test_codes(title: str, codes: type[RefusalCode | CloseCode]) -> None:
    table = PROTOCOL.split(f"\n| {title} |", 1)[1].split("\n\n", 1)[0]
    assert [code for code in codes if f"`{code.value}`" not in table] == []


@pytest.mark.parametrize("reason", tunnel_frames.AbortReason)
def test_reasons(reason: tunnel_frames.AbortReason) -> None:
    assert f"{reason.value} {reason.name}" in PROTOCOL


@pytest.mark.parametrize("kind", [messages.Hello, messages.Expose, messages.Welcome])
def test_fields_of_messages(kind: type[Any]) -> None:
    written = " ".join(row[0] for row in rows(PROTOCOL, "## Control connections"))
    for field in attrs.fields(kind):
        assert re.search(rf"\b{field.name}\b", written), field.name


# --- docs/legacy-protocol.md ---


def test_legacy_messages() -> None:
    page = (ROOT / "docs/legacy-protocol.md").read_text(encoding="utf-8")
    told = {
        int(row[0]): row[3].strip("`") for row in rows(page, "## What travels") if row[0].isdigit()
    }
    words = {
        kind.id: kind.TEXT or "empty"
        for kind in typing.get_args(legacy.LegacyMessage)
        if hasattr(kind, "TEXT")
    }
    assert told.keys() == {
        *words,
        legacy.Credentials.id,
        legacy.UserInformation.id,
    }
    assert told.items() >= words.items()


# --- docs/architecture.md ---


def test_every_module_has_its_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = text.split("## Rooms", 1)[1].split("```")[1]
    entries = re.findall(r"^  (\w+)/ +(.+(?:\n {4,}.+)*)", rooms, flags=re.MULTILINE)
    told = {room: set(re.findall(r"\w+", words)) for room, words in entries}
    source = ROOT / "src/trionat"
    missing = [
        str(path.relative_to(source))
        for room in ("backup", "server", "client", "relay", "transport", "store", "protocol")
        for path in (source / room).rglob("*.py")
        if not {*path.relative_to(source / room).with_suffix("").parts} - {"__init__"}
        <= told.get(room, set())
    ]
    assert missing == []


# --- docs/troubleshooting.md ---


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        ("serve -m 9", {}),
        ("serve --config server.yml", {}),
        ("serve --config database.yml", {}),
        ("db check", {}),
        ("serve", {"TRIONAT_LOG_LEVEL": "loud"}),
        ("connect tn1_AAAA 8080", {}),
        ("connect tn4_AAAA 8080", {}),
        ("connect 8080", {}),
        ("connect tn1_AAAA", {}),
        ("status", {}),
    ],
)
def test_messages(
    words: str, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "server.yml" in words:
        Path("server.yml").write_text("Server:\n  ControlerAddr: 0.0.0.0:8007\n")
    Path("database.yml").write_text("Database: {Username: a, Host: '127.0.0.1:1', DBName: c}\n")
    clean = {name: None for name in os.environ if name.startswith("TRIONAT_")}
    result = CliRunner().invoke(
        app, words.split(), env={**clean, **environ, "TRIONAT_STATE_DIR": str(tmp_path)}
    )
    message = result.stderr.strip().replace("127.0.0.1:1:", "127.0.0.1:3306:")
    message = message.replace(str(tmp_path), "/home/you/.local/state/trionat")
    fence = "``" if "`" in message else "`"
    assert f"| {fence}{message}{fence} ({result.exit_code}) |" in TROUBLES
