"""Every command line, configuration and JSON line of the pages is what trionat takes and says; `tests/e2e/test_pages.py` runs what can be run."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.pages import ELSEWHERE, ENGLISH, PAGES, ROOT, blocks, calls, inline_calls
from trionat.cli import app, connect, serve
from trionat.cli.command_line import LaterCommand
from trionat.config.load import Role, load
from trionat.protocol.ticket import Ticket
from trionat.server.events.event import KINDS

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(host="h", port=1, fingerprint=None, username="u", token=bytes(16)).encode()

NO_CALLS = (
    # words of the protocol
    *("trionat node link 1", "trionat plain tunnel", "trionat ticket 1"),
    # messages
    "trionat status, tasks and kick will not reach this server",
    "trionat was upgraded while it runs",
    # what is told to be wrong
    "trionat TICKET 8080",
)
"""How that begins which has the program's name in front and is no call of it."""

EVENTS = {
    name
    for path in (ROOT / "src/trionat/cli").glob("*.py")
    for name in re.findall(r'"event": "([a-z-]+)"', path.read_text(encoding="utf-8"))
}
"""What `--json` tells of."""

COMPLEMENTS: dict[str, dict[str, dict[str, object]]] = {
    "Cluster": {"Database": {"Host": "h", "Username": "u", "Password": "p", "DBName": "d"}},
    "Database": {"Database": {"Host": "h", "Username": "u", "Password": "p", "DBName": "d"}},
}
"""What a section needs besides, which a page does not say again."""

FILE_OF_A_CLIENT = {
    "TRIONAT_CLIENT_CONTROLLER_ADDR": "127.0.0.1:1",
    "TRIONAT_CLIENT_TUNNEL_SERVER_ADDR": "127.0.0.1:2",
    "TRIONAT_CLIENT_LOCAL_SERVER_ADDR": "127.0.0.1:3",
}
"""What the `client.yml` has, from which a client without a ticket knows its server."""


@cache
def root_command() -> Any:
    return typer.main.get_command(app)


@cache
def loaded(command: LaterCommand) -> Any:
    return command.load()


def problem(arguments: list[str], *, is_whole: bool) -> str | None:
    """Return why trionat would not take these arguments; `is_whole` says that they are all that it needs."""
    command: Any = root_command()
    context: Any = None
    rest = arguments
    try:
        while True:
            context = command.make_context(command.name, list(rest), parent=context)
            if not hasattr(command, "commands"):
                return None
            left = [*context._protected_args, *context.args]
            if not left:
                return None
            _, command, rest = command.resolve_command(context, left)
            if isinstance(command, LaterCommand):
                command = loaded(command)
    except typer.Exit:
        return None  # `--help`, `--version`
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        message = str(getattr(error, "message", "")) or repr(error)
        is_short = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        if not is_whole and (is_short or "requires an argument" in message):
            return None
        return f"{type(error).__name__}: {message}"


def with_values(arguments: list[str]) -> list[str]:
    """Put values in the place of words that stand for them."""
    values = {"COMMAND": "status", "NUMBER": "1", "SECONDS": "1", "SERVICE": "8080"}
    return [
        TICKET if re.fullmatch(r"TICKET|tn\d_\S*", word) else values.get(word, word)
        for word in arguments
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_typed_line_is_taken(page: str) -> None:
    found = [
        (str(block), line, problem(with_values(arguments), is_whole=True))
        for block in blocks(page)
        for line in block.typed
        for arguments in calls(line)
    ]
    assert [each for each in found if each[-1] is not None] == []


def spelt_out(call: str) -> list[str]:
    """Return the calls that one stands for: `a|b` and `a, b` are several, what is in brackets may be there, `…` is anything."""
    plain = re.sub(r"\.\.\.|[][]", "", call)
    first, *others = re.split(r"(?<=\S)\|(?=\S)|, (?=[a-z]+(?:,|$))", plain)
    start = first.rpartition(" ")[0]
    return [re.sub(r"\s*…$", "", each) for each in (first, *(f"{start} {each}" for each in others))]


@pytest.mark.parametrize("page", PAGES)
def test_every_call_in_prose_is_taken(page: str) -> None:
    found = [
        (call, problem(with_values(arguments), is_whole=False))
        for call in inline_calls(page)
        if not call.startswith(NO_CALLS)
        for each in spelt_out(call)
        for arguments in calls(each)
    ]
    assert [each for each in found if each[-1] is not None] == []


@pytest.mark.skipif(sys.platform != "linux", reason="they have Unix sockets and workers")
@pytest.mark.parametrize("page", PAGES)
def test_serve_and_connect_take_their_values(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read their configuration for real, and are stopped just before they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "run_until_signalled", lambda *_, **__: None)
    monkeypatch.setattr(connect, "run_until_signalled", lambda *_, **__: None)
    environ = {name: None for name in os.environ if name.startswith("TRIONAT_")}
    typed = [(str(block), line) for block in blocks(page) for line in block.typed]
    found = []
    for where, line in [*typed, *((page, call) for call in inline_calls(page))]:
        for arguments in map(with_values, calls(line)) if not line.startswith(NO_CALLS) else ():
            told = arguments[:1] in (["serve"], ["connect"]) and not {"[", "]", "…"} & set(line)
            if not told or "--config" in arguments or problem(arguments, is_whole=True):
                continue
            given = {**environ, "TRIONAT_STATE_DIR": str(tmp_path)}
            if arguments[0] == "connect" and TICKET not in arguments:
                given |= FILE_OF_A_CLIENT
            result = CliRunner().invoke(app, arguments, env=given)
            if result.exit_code:
                found.append((where, line, result.output))
    assert found == []


@pytest.mark.parametrize("page", ENGLISH)
def test_every_block_of_commands_is_run_or_says_why_not(page: str) -> None:
    """A page is followed by a test, all of it but for blocks below `<!-- not run: because -->`."""
    typed = [block for block in blocks(page) if block.typed]
    for block in typed:
        assert block.not_run is None or len(block.not_run) > 8, f"{block}: say why"
    test = ELSEWHERE.get(page, "tests/e2e/test_pages.py")
    name = page if test == "tests/e2e/test_pages.py" else page.rpartition("/")[2]
    if not all(block.not_run for block in typed):
        assert name in (ROOT / test).read_text(encoding="utf-8"), (
            f"{page} is not followed by {test}"
        )
    marks = (ROOT / page).read_text(encoding="utf-8").count("<!-- not run: ")
    assert marks == sum(block.not_run is not None for block in blocks(page)), (
        "a mark is at no block"
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_loads(page: str, tmp_path: Path) -> None:
    file = tmp_path / "trionat.yml"
    for block in blocks(page):
        if block.language not in ("yaml", "yml"):
            continue
        given = yaml.safe_load(block.text)
        role: Role = "client" if {"Client", "Auth"} & given.keys() else "server"
        for section in set(given) & set(COMPLEMENTS):
            for name, values in COMPLEMENTS[section].items():
                given[name] = {**values, **given.get(name, {})}
        file.write_text(yaml.safe_dump(given))
        environ = {"TRIONAT_SERVER_PUBLIC_ADDR": "h", "TRIONAT_CLIENT_TICKET": TICKET}
        assert load(role, file=file, environ=environ).warnings == (), str(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_json_line_is_of_a_known_kind(page: str) -> None:
    for block in blocks(page):
        for line in block.text.splitlines():
            if not re.match(r'\s*\{"', line):
                continue
            told = json.loads(re.sub(r",?\s*…(?=\s*[}\]])", "", line))
            if "event" in told:
                assert told["event"] in EVENTS, str(block)
            if "server" in told and "data" in told:
                assert told["type"] in KINDS, str(block)
