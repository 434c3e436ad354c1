"""The plugin of pytest, in a pytest of its own: its fixtures, and what it costs whoever does not use them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from trionat.testing import memory_pair, receive_all, receive_exactly

ROOT = Path(__file__).parents[2]
PLUGIN = "trionat.testing.plugin"

IS_FOUND = bool(entry_points(group="pytest11", name="trionat"))
"""Whether the installed trionat has it: one that was installed from an older source has not."""


def run_pytest(folder: Path, tests: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a project of their own, whose warnings are errors."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "test_own.py").write_text(tests)
    own = [] if IS_FOUND else ["-p", PLUGIN]
    environ = {name: value for name, value in os.environ.items() if "COV" not in name}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            "pytest.ini",
            *own,
            *flags,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=60,
    )


TESTS = """
import asyncio
import socket
import pytest
import trio
import trionat

@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1], listening

def visit(public, listening):
    with socket.create_connection((public.host, public.port), 10) as visitor:
        visitor.sendall(b"hello")
        visitor.shutdown(socket.SHUT_WR)
        listening.settimeout(10)
        while True:
            service, _ = listening.accept()
            with service:
                if said := service.recv(100):  # else the client has looked whether it is there
                    return said

def test_one(trionat_expose, port):
    number, listening = port
    exposed = trionat_expose(number)
    assert exposed.local.port == number
    assert visit(exposed.public, listening) == b"hello"

def test_several(trionat_expose, trionat_server, port):
    number, listening = port
    exposed = [trionat_expose(f"127.0.0.1:{number}") for _ in range(16)]
    assert {each.public.port for each in exposed} == set(trionat_server.visit_ports)
    assert trionat_server.state_dir is None
    for each in exposed:
        assert visit(each.public, listening) == b"hello"

def test_its_ports_are_free_again(trionat_expose, port):
    number, listening = port
    for _ in range(3):
        trionat_expose(number)

def test_no_service(trionat_expose):
    with pytest.raises(ValueError, match="is no"):
        trionat_expose("nothing at all")

@pytest.mark.trio
async def test_under_trio(trionat_expose, port):
    number, listening = port
    public = trionat_expose(number).public
    assert await trio.to_thread.run_sync(visit, public, listening) == b"hello"

def test_under_asyncio(trionat_expose, port):
    async def main():
        return trionat_expose(port[0]).public.host
    assert asyncio.run(main()) == "127.0.0.1"
"""


def test_the_fixtures(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, TESTS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 passed" in result.stdout


def test_where_it_is_not_asked_for_nothing_is_imported(tmp_path: Path) -> None:
    tests = (
        "import sys\n\ndef test_it():\n"
        "    found = {name for name in sys.modules if name.partition('.')[0] == 'trionat'}\n"
        f"    assert found == {{'trionat', 'trionat.version', 'trionat.testing', '{PLUGIN}'}}\n"
        "    assert not {'trio', 'asyncio', 'attrs', 'ssl', 'sqlite3'} & sys.modules.keys()\n"
    )
    others = [
        f"-pno:{each.name}"
        for each in entry_points(group="pytest11")
        if each.name != "trionat"  # what they import is theirs
    ]
    result = run_pytest(tmp_path, tests, *others)
    assert result.returncode == 0, result.stdout + result.stderr


def test_pytest_finds_it_by_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"trionat": PLUGIN}
    assert not any(each.startswith("pytest") for each in project["dependencies"])


# --- endpoints in memory: tests/unit/test_endpoint.py has all that they do ---


async def test_a_stream_in_memory() -> None:
    one, two = memory_pair(capacity=5)
    one.send(b"hello, world")
    assert await receive_exactly(two, 5) == b"hello"
    one.send(b" end")
    one.send_eof()
    assert await receive_all(two) == b" end"
    for each in (one, two):
        each.close()
        each.close()


async def test_what_is_not_as_it_is_said_is_told() -> None:
    one, two = memory_pair()
    one.send(b"hello")
    with pytest.raises(ValueError, match="there are 5 bytes, and not 2"):
        await receive_exactly(two, 2)
    with pytest.raises(ValueError, match="room for a TLS record"):
        two.recv_into(memoryview(bytearray(1)))
    one.close()
    with pytest.raises(EOFError, match="after 0 of 1 bytes"):
        await receive_exactly(two, 1)
    two.close()
