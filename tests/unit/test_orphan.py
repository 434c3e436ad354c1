"""A process that is nobody's child here: where it comes from, and how it is told that it has gone."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it takes a shell of POSIX")


def test_its_parent_is_somebody_else(tmp_path: Path) -> None:
    from trionat.server.upgrade.orphan import Orphan  # noqa: PLC0415 - not on Windows

    told = tmp_path / "told"
    program = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text("
        "f'{os.getppid()} {os.getpid()} {os.environ[\"WORD\"]} {os.fstat(int(sys.argv[2])).st_ino} {sys.stdin.read()!r}\\n');"
        "time.sleep(60)"
    )
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        command = [sys.executable, "-c", program, str(told), str(descriptor)]
        orphan = Orphan.start(command, {**os.environ, "WORD": "a word"}, [descriptor])
        try:
            until = time.monotonic() + 20
            while not (told.exists() and told.read_text().endswith("\n")):
                assert time.monotonic() < until
                time.sleep(0.01)
            parent, itself, rest = told.read_text().split(None, 2)
            assert int(parent) != os.getpid()
            assert int(itself) == orphan.pid
            assert rest == f"a word {os.fstat(descriptor).st_ino} ''\n"
            assert not orphan.wait(0.05)
        finally:
            orphan.kill()
        assert orphan.wait(20)
        orphan.kill()  # it has gone
    finally:
        os.close(descriptor)


def test_a_program_that_is_not_there_has_gone() -> None:
    from trionat.server.upgrade.orphan import Orphan  # noqa: PLC0415 - as above

    assert Orphan.start(["/nowhere/trionat"], os.environ, []).wait(20)
