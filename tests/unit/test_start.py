"""What a command imports: its start and its memory at rest hang on that, and both creep up where nobody looks (`python -m bench.start`)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trionat
from trionat.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.cli.command_line import LaterCommand

ROOT = Path(__file__).parents[2]

PROGRAM = """
import atexit, sys
from pathlib import Path
file = Path(sys.argv.pop(1))
atexit.register(lambda: file.write_text(" ".join(sys.modules)))
from trionat.cli import main
main()
"""

FOREIGN = {
    *("annotated_doc", "argon2", "_argon2_cffi_bindings", "attr", "attrs", "_cffi_backend"),
    *("idna", "outcome", "platformdirs", "shellingham", "sniffio", "sortedcontainers"),
    *("trio", "typer"),
    *("colorama", "cffi", "exceptiongroup", "typing_extensions"),  # elsewhere, or in other versions
}
"""What others wrote and is needed wherever bytes are relayed."""

HEAVY = {
    *("asyncio", "concurrent.futures", "email", "http", "importlib.metadata", "multiprocessing"),
    *("xml", "unittest"),
}
"""Of the standard library."""

ROOMS = {
    *("accounts", "admin", "admission", "app", "change", "connection_log", "control"),
    *("control_certificate", "events", "handshakes", "listeners", "proxies", "refusals"),
    *("registry", "reload", "serving_process", "sessions", "single"),
    *("state_folder", "tally", "upgrade", "visitors"),
}
"""Of the server, those that it needs with all extras off."""


def modules(file: Path, *, unlike: set[str]) -> set[str]:
    """Return what a program has imported."""
    return set(file.read_text().split()) - unlike


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What any Python has imported here: what measures coverage, for one."""
    file = tmp_path_factory.mktemp("plain") / "modules"
    program = PROGRAM.replace("from trionat.cli import main\nmain()", "")
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, timeout=60)
    return modules(file, unlike=set())


@contextmanager
def running(file: Path, *command: str) -> Iterator[str]:
    """Give the first line of a command that stays; leaving ends it, and then `file` says what it has imported."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(file), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline()
        finally:
            process.terminate()
            process.wait(30)


def foreign(found: set[str]) -> set[str]:
    top = {name.partition(".")[0] for name in found}
    return {name for name in top if name not in sys.stdlib_module_names} - {
        "trionat",
        "__mp_main__",
    }


def below(package: str, found: set[str]) -> set[str]:
    """Return which parts of a package were imported."""
    return {
        name.split(".")[package.count(".") + 1]
        for name in found
        if name[: len(package) + 1] == f"{package}."
    }


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, plain: set[str]) -> dict[str, set[str]]:
    """What a server and a client have imported, with all extras off."""
    folder = tmp_path_factory.mktemp("start")
    state = ("--state-dir", str(folder / "state"))
    serve = ("serve", "--json", "-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", "0", *state)
    with (
        running(folder / "first", *serve) as up,  # which makes a certificate
        running(
            folder / "connect", "connect", "--json", json.loads(up)["ticket"], "9", *state
        ) as line,
    ):
        assert json.loads(line)["event"] == "connected"
    with running(folder / "serve", *serve) as line:
        assert json.loads(line)["event"] == "ready"
    return {name: modules(folder / name, unlike=plain) for name in ("first", "serve", "connect")}


@pytest.mark.parametrize(
    ("name", "command"), [("first", "serve"), ("serve", "serve"), ("connect", "connect")]
)
def test_what_stays_has_imported_nothing_for_others(
    imported: dict[str, set[str]], name: str, command: str
) -> None:
    found = imported[name]
    assert foreign(found) <= FOREIGN
    assert not HEAVY & found
    commands = {command.module for command in COMMANDS} & below("trionat.cli", found)
    assert commands == {command}
    # A file; a console; files that are watched.
    assert not {"trionat.config.yaml_text", "trionat.log.tail", "trionat.cli.file_watch"} & found


def test_a_server_needs_no_client_and_no_extra(imported: dict[str, set[str]]) -> None:
    found = imported["serve"]
    assert "client" not in below("trionat", found)
    assert below("trionat.server", found) <= ROOMS
    assert below("trionat.server.events", found) == {"event", "hub"}
    assert below("trionat.server.upgrade", found) == {"succession", "upgrade"}
    assert not {name for name in found if name.startswith("trionat.") and "legacy" in name} - {
        "trionat.protocol.legacy"  # by which a client of NAT is known, who is sent away
    }
    assert "trionat.store.mysql" not in found


def test_a_client_needs_no_server_and_no_extra(imported: dict[str, set[str]]) -> None:
    found = imported["connect"]
    assert "server" not in below("trionat", found)
    assert not {"inspector", "legacy"} & below("trionat.client", found)
    assert not {"argon2", "sqlite3"} & found


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_a_short_answer_needs_next_to_nothing(tmp_path: Path, plain: set[str], flag: str) -> None:
    file = tmp_path / "modules"
    command = [sys.executable, "-c", PROGRAM, str(file), flag]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found = modules(file, unlike=plain)
    assert below("trionat", found) <= {"cli", "log", "system", "text", "version"}
    assert below("trionat.cli", found) == {"command_line", "output", "target"}
    assert "trio" not in found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
def test_the_help_says_of_each_command_what_it_says_of_itself(command: LaterCommand) -> None:
    own = command.load()
    assert own.name == command.module == command.name
    for width in (20, 40, 1000):
        assert command.get_short_help_str(width) == own.get_short_help_str(width)


def test_the_library_has_all_its_names() -> None:
    names = set(trionat._HOMES)
    for name in names:
        assert getattr(trionat, name) is not None
    assert {*names, "__version__"} <= set(dir(trionat))
    tree = ast.parse(Path(trionat.__file__).read_text())
    shown = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trionat.")
        for alias in node.names
    }
    assert shown - {None} == names
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trionat.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "src/trionat/version.py"
    assert trionat.__version__ == version("trionat")
