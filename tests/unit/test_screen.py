"""What the screens show in terminals of any size, and what a hostile peer can do to them."""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import attrs
import pytest
from rich.cells import cell_len
from rich.text import Text

from trionat.address import TCPAddress
from trionat.cli.screen.choice import can_show_screen
from trionat.cli.screen.client_page import ClientView, ServiceRow, VisitorRow, client_page
from trionat.cli.screen.language import ENGLISH, Language, language_of
from trionat.cli.screen.page import amount, lasting
from trionat.cli.screen.painter import Painter
from trionat.cli.screen.pane import LINES, Pane
from trionat.cli.screen.server_page import PublicView, server_page
from trionat.events import Ready
from trionat.server.admin.snapshot import (
    BannedView,
    QueuedView,
    ServerView,
    ServiceView,
    SessionView,
    Snapshot,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals as POSIX has them")

CHINESE = language_of({"LANG": "zh_CN.UTF-8"})
HOSTILE = "\x1b]52;c;cm0=\x07\x1b[2J\n\r[red]x[/red]\u202eevil" * 10

CLIENT = ClientView(
    state="connected",
    style="green",
    since=0.0,
    why=(HOSTILE,),
    services=(
        ServiceRow("http://192.0.2.1:60001", "127.0.0.1:8080"),
        ServiceRow(HOSTILE, HOSTILE, HOSTILE),
        *(ServiceRow(f"192.0.2.1:{port}", "127.0.0.1:22") for port in range(20)),
    ),
    server=HOSTILE,
    visitors=tuple(VisitorRow(HOSTILE, HOSTILE, 5.0, 1e9, 0.0, 10**12, True) for _ in range(40)),
    present=4000,
    question=Pane.__doc__,
    note=HOSTILE,
    inspector="http://127.0.0.1:4040/#token=abc",
    events=("12:00:00 warning " + "x" * 300,) * 100,
    retry_at=time.monotonic() + 5,
)

SERVER = PublicView(
    began=0.0,
    stopping=True,
    ready=Ready(
        name="s",
        control=TCPAddress("192.0.2.1", 1),
        tunnel=TCPAddress("192.0.2.1", 2),
        public=TCPAddress("192.0.2.1", 1),
        visit_ports=(3,),
        sessions=5,
        authentication=True,
        fingerprint="SHA256:x",
        state_dir="/x",
        first_user="trionat",
        first_password="abc",
        console="https://192.0.2.1:9/",
    ),
    command="trionat connect " + "t" * 500,
    why=HOSTILE,
    note=HOSTILE,
    events=CLIENT.events,
    snapshot=Snapshot(
        server=ServerView(
            name="s",
            version="1",
            since="",
            seconds=1.0,
            control="",
            tunnel="",
            ports_free=1,
            ports_held=1,
            session_limit=5,
            queue_places=1,
            rate=5e6,
            stopping=True,
        ),
        sessions=tuple(
            SessionView(
                uid=uid,
                user=HOSTILE,
                client=HOSTILE,
                dialect="native",
                address="192.0.2.9:1",
                since="",
                seconds=9.0,
                round_trip=None,
                services=(ServiceView(name="a", local="b", port=1, down=True),),
                visitors=(),
                tunnels_idle=1,
                tunnels_busy=0,
                received=0,
                sent=0,
                rate=0.0,
            )
            for uid in range(50)
        ),
        queue=(QueuedView(position=1, user=HOSTILE, client="", address="", since="", seconds=1.0),),
        reserved=(),
        refused={"MaxVisitors": 12, "BanAfter": 0},
        banned=(BannedView(network="192.0.2.0", remaining=1.0),) * 20,
    ),
)


def texts(lines: list[str]) -> list[str]:
    """Return what a terminal shows of lines that have only colours and links of ours in them."""
    return [Text.from_ansi(line).plain for line in lines]


@pytest.mark.parametrize("columns", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("lines", [1, 5, 16, 24, 60])
@pytest.mark.parametrize("helps", [False, True])
@pytest.mark.parametrize("language", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_a_page_fits_into_any_terminal(
    columns: int, lines: int, helps: bool, language: Language
) -> None:
    client = client_page(attrs.evolve(CLIENT, help=helps, language=language), columns, lines)
    server = server_page(attrs.evolve(SERVER, help=helps, language=language), columns, lines)
    for page in (client, server):
        assert len(page) <= lines
        assert all(cell_len(text) <= columns for text in texts(page))


@pytest.mark.parametrize("code", ["█▀█\n▀▀▀", "█" * 500])
def test_a_code_is_shown_where_there_is_room(code: str) -> None:
    page = "\n".join(
        texts(client_page(attrs.evolve(CLIENT, services=(), why=(), code=code), 80, 40))
    )
    assert ("█▀█\n▀▀▀" in page) == (len(code) < 80)
    assert ("make it larger" in page) == (len(code) > 80)


def test_a_hostile_peer_does_not_drive_the_terminal() -> None:
    for page in (client_page(CLIENT, 120, 60), server_page(SERVER, 120, 60)):
        text = "".join(page)
        assert "]52" not in text.replace("\\x1b]52", "")
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "[red]" in text  # and nothing of it is markup


def test_the_address_comes_first_and_can_be_clicked() -> None:
    lines = client_page(CLIENT, 80, 24)
    assert "http://192.0.2.1:60001" in texts(lines)[2]
    assert "\x1b]8;" in lines[2]
    assert ";http://192.0.2.1:60001\x1b\\" in lines[2]
    assert lines[2] == client_page(CLIENT, 80, 24)[2]  # not drawn anew each time


def test_a_server_tells_who_is_refused_and_banned() -> None:
    text = "\n".join(texts(server_page(SERVER, 100, 40)))
    assert "12 MaxVisitors" in text
    assert "BanAfter" not in text
    assert "20: 192.0.2.0" in text
    assert "(shown only this once)" in text


def test_the_rate_of_all_is_told_where_there_is_one() -> None:
    assert SERVER.snapshot is not None
    for rate, told in ((0.0, f"{len(SERVER.snapshot.sessions)} of 5"), (2048.0, "of 5, 2.0 KiB/s")):
        server = attrs.evolve(SERVER.snapshot.server, rate=rate, session_limit=5)
        view = attrs.evolve(SERVER, snapshot=attrs.evolve(SERVER.snapshot, server=server))
        [line] = [
            each for each in texts(server_page(view, 100, 40)) if each.startswith(" sessions ")
        ]
        assert line.rstrip(" │").endswith(told)


@pytest.mark.parametrize("language", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_command_for_a_ticket_is_there_whole(language: Language) -> None:
    command = f"trionat user ticket NAME --state-dir /{'x' * 200}"
    view = attrs.evolve(SERVER, command=None, ticket_command=command, language=language)
    lines = [line.strip(" │") for line in texts(server_page(view, 80, 40))]
    assert command in "".join(lines)


def test_a_pane_keeps_the_last_lines_and_spells_out_what_could_drive_a_terminal() -> None:
    pane = Pane()
    for number in range(2 * LINES):
        pane.write(f"line {number}\n\x1b[2Jx\n")
    assert pane.last(2) == (f"line {2 * LINES - 1}", "\\x1b[2Jx")
    assert len(pane.last(10**6)) == LINES
    assert pane.last(0) == ()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 KiB"), (20 * 1024, "20 KiB"), (1024**6, "1024.0 PiB")],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


def test_how_long_something_is() -> None:
    shown = [lasting(x, ENGLISH) for x in (0, 61, 3661, 90000)]
    assert shown == ["0:00", "1:01", "1:01:01", "1 d 01 h"]


def test_a_painter_writes_only_what_has_changed_and_gives_the_page_back() -> None:
    read, write = os.pipe()
    painter: Painter[list[str]] = Painter(write, lambda view, _columns, _lines: view)
    painter.show(["one", "two"])
    painter.resume()
    first = until(read, b"two")
    assert first.startswith(b"\x1b[?1049h")
    painter.show(["one", "three"])
    second = until(read, b"three")
    assert b"one" not in second
    assert painter.close("the end\n")
    assert until(read, b"the end\n").startswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
    os.close(read)
    os.close(write)


def test_nothing_is_erased_behind_a_line_that_is_full() -> None:
    read, write = os.pipe()
    painter: Painter[list[str]] = Painter(write, lambda view, _columns, _lines: view)
    painter.show(["x" * 80, "y" * 80])
    painter.resume()
    said = until(read, b"yyy")
    assert painter.close("the end\n")
    said += until(read, b"the end\n")
    for row in (b"x" * 80, b"y" * 80):  # the cursor of many a terminal is still on its last cell
        assert re.search(row + rb"(\x1b\[\d*m)*\x1b\[\d*[JK]", said) is None
        assert b"\x1b[K" + row in said  # what was there before may be longer
    os.close(read)
    os.close(write)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
def test_tmux_shows_the_last_column(tmp_path: Path) -> None:
    program = (
        "import time; from trionat.cli.screen.painter import Painter;"
        "painter = Painter(1, lambda view, columns, _: [columns * view, 'and a short one'][::1 if view == 'x' else -1]);"
        "painter.show('x'); painter.resume(); time.sleep(0.3); painter.show('y'); time.sleep(60)"
    )
    tmux = ["tmux", "-f", os.devnull, "-S", str(tmp_path / "tmux")]
    started = ["new-session", "-d", "-x", "40", "-y", "5", sys.executable, "-c", program]
    environ = {**os.environ, "TERM": "xterm"}
    subprocess.run([*tmux, *started], check=True, env=environ, timeout=20)
    try:
        shown, end = "", time.monotonic() + 20
        while "yy" not in shown and time.monotonic() < end:
            time.sleep(0.1)
            captured = subprocess.run(
                [*tmux, "capture-pane", "-p"],
                check=True,
                capture_output=True,
                text=True,
                timeout=20,
            )
            shown = captured.stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=True, timeout=20)
    assert shown.split("\n")[:2] == ["and a short one", "y" * 40]


def test_a_terminal_that_takes_nothing_holds_nobody_up() -> None:
    read, write = os.pipe()
    painter: Painter[list[str]] = Painter(write, lambda view, _columns, _lines: view)
    painter.resume()
    began = time.monotonic()
    for number in range(1000):
        painter.show([f"{number}" * 100_000])
    assert time.monotonic() - began < 1
    time.sleep(0.3)  # until its thread is in the middle of one
    assert not painter.close("")
    os.close(read)
    assert painter.has_ended(5)
    os.close(write)


def until(descriptor: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += os.read(descriptor, 4096)
    return data


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))


@pytest.mark.parametrize(
    ("environ", "encoding", "there_is"),
    [
        ({"TERM": "xterm"}, "utf-8", True),
        ({"TERM": "xterm"}, "latin-1", False),
        ({"TERM": "xterm", "LANG": "zh_CN.UTF-8"}, "utf-8", True),
        ({"TERM": "xterm", "LANG": "zh_CN.utf8@pinyin"}, "utf-8", True),
        ({"TERM": "xterm", "LANG": "zh_CN"}, "utf-8", True),
        ({"TERM": "xterm", "LANG": "zh_CN.GB18030"}, "utf-8", False),  # which is not there
        ({"TERM": "xterm", "LANG": "zh_TW.Big5", "LC_ALL": "C.UTF-8"}, "utf-8", True),
        ({"TERM": "xterm", "LANG": "zh_CN.unheard"}, "utf-8", False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", False),
        ({"TERM": "dumb"}, "utf-8", False),
        ({}, "utf-8", False),
    ],
)
@pytest.mark.usefixtures("terminal")
def test_there_is_a_screen_only_where_a_terminal_can_show_it(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], encoding: str, *, there_is: bool
) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "r+b", buffering=0) as device:
        stream = io.TextIOWrapper(io.BufferedWriter(device), encoding=encoding)
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        assert can_show_screen(environ) == there_is
    os.close(master)
