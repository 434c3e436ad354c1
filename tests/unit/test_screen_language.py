"""The screens speak Chinese where the locale says so, all of them and in the same columns."""

# ruff: noqa: RUF001 - it is Chinese
from __future__ import annotations

import ast
import errno
import os
import re
import sys
import time
import unicodedata
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

import attrs
import pytest
from rich.cells import cell_len

import trionat.cli
from trionat.cli.screen import chinese
from trionat.cli.screen.language import ENGLISH, language_of

if sys.platform == "win32":
    pytest.skip("terminals as POSIX has them", allow_module_level=True)

from tests.unit.test_screen import CLIENT, SERVER, texts
from trionat.cli.screen import client_page, server_page
from trionat.cli.screen.client_page import VisitorRow
from trionat.cli.screen.page import fitted

if TYPE_CHECKING:
    from trionat.cli.screen.language import Language

CHINESE = language_of({"LANG": "zh_CN.UTF-8"})

COMMANDS = Path(trionat.cli.__file__).parent
SPEAKING = [
    *sorted((COMMANDS / "screen").glob("*_page.py")),
    *sorted((COMMANDS / "screen").glob("*_screen.py")),
    COMMANDS / "screen" / "page.py",
    COMMANDS / "approvals.py",
]

COMPOSED = {
    "authentication failed: wrong ticket": ("authentication failed: ", "wrong ", "ticket"),
    "authentication failed: wrong name or password": ("wrong ", "name or password"),
    "authentication failed: this server wants a ticket, or a user and a password": (
        "this server wants a ticket, or a user and a password",
    ),
    "the local service {address} cannot be reached: {why}": ("cannot be reached: ",),
    "the local service {address} did not answer within {seconds} s": ("did not answer within ",),
    "nothing heard from the server for {seconds} s": ("nothing heard from ",),
    "visit port {port} is not one that this server offers ({ports})": (
        " is not one that this server offers",
    ),
    "Name or service not known": (),  # the C library says it, or one of its errors
    "Temporary failure in name resolution": (),
    "Connection refused": (),
    "Connection reset by peer": (),
    "Connection timed out": (),
    "Network is unreachable": (),
    "No route to host": (),
    "No such file or directory": (),
    "Permission denied": (),
}
"""Sentences that no literal of the code has as they are, with those that they are made of."""


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def said(file: Path) -> list[tuple[str, set[str]]]:
    """Return the texts that a module gives to a language, with the names of the values."""
    found: list[tuple[str, set[str]]] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(attr="language"):
                pass
            case ast.Name(id="say") if file.name != "approvals.py":  # there it prints
                pass
            case _:
                continue
        match node.args:
            case [ast.Constant(value=str(text))]:
                found.append((text, {each.arg or "" for each in node.keywords}))
            case [ast.Name(id="line")]:
                pass  # of the help, which is below
            case _:
                raise AssertionError(f"{file.name}:{node.lineno}: not a text but {node.args}")
    return found


def test_each_text_is_there_in_chinese_and_takes_the_same_values() -> None:
    all_said = [each for file in SPEAKING for each in said(file)]
    all_said += [(line, set()) for line in (*client_page.HELP, *server_page.HELP) if line]
    for text, values in all_said:
        assert text in chinese.TEXTS, text
        assert placeholders(text) == values, text
    assert set(chinese.TEXTS) == {text for text, _ in all_said}  # and none too many


@pytest.mark.parametrize("table", [chinese.TEXTS, chinese.REASONS], ids=["texts", "reasons"])
def test_placeholders_are_the_same_in_both_languages(table: dict[str, str]) -> None:
    for english, own in table.items():
        assert placeholders(english) == placeholders(own), english
        assert english.isascii()


def test_each_reason_is_one_that_the_code_has() -> None:
    literals = {
        node.value
        for file in COMMANDS.parent.rglob("*.py")
        if file.name != "chinese.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for reason in chinese.REASONS:
        parts = COMPOSED.get(reason)
        if parts is None:
            parts = tuple(text for text, _, _, _ in Formatter().parse(reason) if len(text) > 2)
        for part in parts:
            assert any(part in literal for literal in literals), f"{part!r} of {reason!r}"
    assert set(COMPOSED) <= set(chinese.REASONS)


def test_all_terminals_agree_on_the_width_of_the_chinese_texts() -> None:
    for english, own in {**chinese.TEXTS, **chinese.REASONS}.items():
        for character in own:
            width = unicodedata.east_asian_width(character)
            assert width in (("W", "F") if not character.isascii() else ("Na",)), english


def test_nothing_of_the_screens_is_left_in_english() -> None:
    """Addresses and names are those of the tests, in which no word is English."""
    hidden = attrs.evolve(
        CLIENT,
        language=CHINESE,
        state="",
        why=(),
        server="",
        question=None,
        note="",
        events=(),
        retry_at=time.monotonic() + 9,
        inspector_key=True,
        code_key=True,
        asks=True,
    )
    hidden = attrs.evolve(
        hidden,
        services=tuple(
            attrs.evolve(each, shown="1", local="2", down=each.down and "3")
            for each in hidden.services
        ),
        visitors=tuple(attrs.evolve(each, address="4", local="5") for each in hidden.visitors),
    )
    assert SERVER.snapshot is not None
    server = attrs.evolve(
        SERVER, language=CHINESE, command=None, why="", note="", events=(), stopping=True
    )
    sessions = tuple(attrs.evolve(each, user="6", client="7") for each in SERVER.snapshot.sessions)
    queue = tuple(attrs.evolve(each, user="8") for each in SERVER.snapshot.queue)
    server = attrs.evolve(
        server, snapshot=attrs.evolve(SERVER.snapshot, sessions=sessions, queue=queue)
    )
    pages = [
        client_page.client_page(attrs.evolve(view, help=helps), 200, 60)
        for view in (
            hidden,
            attrs.evolve(hidden, services=(), visitors=(), present=0, code="x" * 999),
        )
        for helps in (False, True)
    ]
    pages += [
        server_page.server_page(attrs.evolve(view, help=helps), 200, 60)
        for view in (server, attrs.evolve(server, ready=None, snapshot=None, began=-1e6))
        for helps in (False, True)
    ]
    words = {word for page in pages for word in re.findall("[A-Za-z]{2,}", "\n".join(texts(page)))}
    assert words <= {
        *("trionat", "http", "https", "token", "abc"),
        *("OSC", "Ctrl", "inspect", "qr", "approve", "plain", "quiet", "status", "visitors"),
        *("user", "ticket", "NAME", "MaxVisitors", "MiB", "GiB", "PiB"),
    }


@pytest.mark.parametrize("say", [ENGLISH, CHINESE], ids=lambda each: each.name)
def test_columns_stand_below_each_other_whatever_is_in_them(say: Language) -> None:
    assert SERVER.snapshot is not None
    names = ("ann", "王小明", "名字很长很长很长的用户", "x" * 40)
    first = SERVER.snapshot.sessions[0]
    sessions = tuple(attrs.evolve(first, user=name, address="地址") for name in names)
    snapshot = attrs.evolve(SERVER.snapshot, sessions=sessions)
    view = attrs.evolve(SERVER, language=say, snapshot=snapshot)
    page = texts(server_page.server_page(view, 100, 40))
    ends = [cell_len(line[: line.index("0:09") + 4]) for line in page if "0:09" in line]
    head = next(line for line in page if say("user") in line and say("rate") in line)
    ends.append(cell_len(head[: head.index(say("for"), 20) + len(say("for"))]))
    assert len(ends) == len(names) + 1
    assert len(set(ends)) == 1


@pytest.mark.parametrize("say", [ENGLISH, CHINESE], ids=lambda each: each.name)
@pytest.mark.parametrize("seconds", [9, 86399, 99 * 86400 + 7200])
def test_visitors_that_stay_for_long_stay_in_their_columns(say: Language, seconds: int) -> None:
    first = VisitorRow("192.0.2.1:1", "a", seconds, 999.0, 999 * 1024.0, 2**30, False)
    view = attrs.evolve(CLIENT, language=say, visitors=(first,), present=1, services=(), why=())
    page = texts(client_page.client_page(view, 80, 40))
    at = next(number for number, line in enumerate(page) if line.startswith("   192.0.2.1:1"))
    assert cell_len(page[at]) == cell_len(page[at - 1])
    assert "999 B/s 999 KiB/s 1.0 GiB" in " ".join(page[at].split())


@pytest.mark.parametrize("say", [ENGLISH, CHINESE], ids=lambda each: each.name)
def test_what_has_a_title_begins_below_the_one_before(say: Language) -> None:
    page = texts(server_page.server_page(attrs.evolve(SERVER, language=say), 100, 40))
    for title in ("clients", "console", "status", "queue", "refused", "banned", "sessions"):
        row = next(line for line in page if line.startswith(f" {say(title)} "))
        behind = row.removeprefix(f" {say(title)}").lstrip()
        assert cell_len(row[: -len(behind)]) == 11, row


@pytest.mark.parametrize("text", ["", "abc", "服务", "服务器在", "a服务器"])
@pytest.mark.parametrize("width", [1, 3, 4, 9])
@pytest.mark.parametrize("right", [False, True])
def test_a_text_is_fitted_into_cells(text: str, width: int, right: bool) -> None:
    shown = fitted(text, width, right=right)
    assert cell_len(shown) == width or right
    if cell_len(text) <= width or right:
        assert shown.strip() == text
    else:
        assert shown.endswith("…")


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "en"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN.utf8@pinyin"}, "zh"),
        ({"LANG": "zh_SG.UTF-8"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LANG": "zh_Hans_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),  # rather than English
        ({"LANG": "zh_CN.UTF-8", "TERM": "linux"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "TERM": "xterm-256color"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "", "LC_MESSAGES": ""}, "zh"),  # set to nothing is unset
        ({"LC_CTYPE": "zh_CN.UTF-8"}, "en"),  # of characters, not of words
    ],
    ids=str,
)
def test_the_locale_says_which_language(environ: dict[str, str], name: str) -> None:
    assert language_of(environ).name == name


def test_a_reason_is_said_with_all_its_parts() -> None:
    assert (
        CHINESE.reason(f"cannot reach tunnel.example.com:8007: {os.strerror(errno.ECONNREFUSED)}")
        == "无法连接 tunnel.example.com:8007：连接被拒绝"
    )
    assert (
        CHINESE.reason("cannot reach [::1]:8007: nobody knows")
        == "无法连接 [::1]:8007：nobody knows"
    )
    several = (
        "no server can be used: cannot reach a:1: Connection refused; b:2 did not answer within 5 s"
    )
    assert (
        CHINESE.reason(several)
        == "没有可用的服务器：无法连接 a:1：连接被拒绝；b:2 在 5 秒内没有应答"
    )
    assert (
        CHINESE.reason("a:1: connection lost: the peer cut it off") == "a:1：连接中断：被对方切断"
    )
    for unknown in ("what a newer server says", "first: second; third", "first; second: third"):
        assert CHINESE.reason(unknown) == unknown
    assert ENGLISH.reason(several) == several


@pytest.mark.parametrize(
    "text",
    [
        "{0.__class__} {why}",
        "{",
        "cannot reach {x}: {}",
        "WRONG SERVER at " + ": it shows " * 40,
        "no server can be used: " * 20,
        "cannot reach a: " * 30,
        "; " * 240,
        "a; b: " * 80,
        "a: " * 160,
        "no server can be used: " + "a: b; " * 75,
        "cannot reach a: " + "x" * 10**6,
    ],
    ids=range(11),
)
def test_a_reason_of_the_other_side_is_a_text_and_no_template(text: str) -> None:
    began = time.monotonic()
    shown = CHINESE.reason(text)
    assert time.monotonic() - began < 1
    assert shown.count("{") == text.count("{")
    assert text[-1] in shown
