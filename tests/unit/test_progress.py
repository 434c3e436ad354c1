"""What is told of something that takes long."""

from __future__ import annotations

import os
import pty
import sys
import time

import pytest

from trionat.cli.progress import Progress, progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals as POSIX has them")


@pytest.mark.parametrize(("seconds", "told"), [(0.0, False), (1.3, True)])
def test_it_is_told_at_a_terminal_when_it_takes_more_than_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, *, told: bool
) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress("looking"):
            time.sleep(seconds)
        print("end", file=stderr, flush=True)
        said = b""
        while b"end" not in said:
            said += os.read(master, 1000)
    os.close(master)
    assert (b"looking ... 1 s" in said) == told
    assert (b"\r\x1b[Kend" in said) == told  # and it is gone again


@pytest.mark.parametrize(
    ("unit", "done", "of", "line"),
    [
        ("", 3, 4, "looking ... 2 s"),
        ("rows", 0, 0, "looking ... 2 s"),
        ("rows", 0, 9, "looking ... 2 s, 0 of 9 rows"),
        ("rows", 12_345, 0, "looking ... 2 s, 12,345 rows"),
        ("rows", 12_345, 1_000_000, "looking ... 2 s, 12,345 of 1,000,000 rows"),
    ],
)
def test_how_much_is_done(unit: str, done: int, of: int, line: str) -> None:
    state = Progress("looking", unit=unit)
    state.count(done, of)
    assert state.text(2.4) == line


def test_nothing_is_told_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("looking"):
        time.sleep(1.1)
    assert capsys.readouterr().err == ""
