"""The access log: lines that cannot be forged, a file that may go away, and what is lost is counted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trionat.config.server import COMBINED, JSON_LINES
from trionat.errors import StartupError
from trionat.protocol.http.head import parse_request
from trionat.server.names import access_log as module
from trionat.server.names.access_log import Access, AccessLog, _combined, _json

MOMENT: Final = 1_796_000_000.25
VALUES: Final = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60
)
LINE: Final = re.compile(
    r'(\S+) - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "([^"\n]*)" (\d+) (\d+) "([^"\n]*)" "([^"\n]*)"\n'
)


def access(agent: str = "x", target: str = "/", host: str = "192.0.2.7") -> Access:
    request = parse_request(
        f"GET {target} HTTP/1.1\r\nHost: a.example\r\nUser-Agent: {agent}\r\n\r\n".encode("latin-1")
    )
    return Access(
        host=host,
        name="a.example",
        request=request,
        status=200,
        sent=5,
        seconds=0.1,
        user="ann",
    )


@given(VALUES)
def test_a_line_is_one_line_whatever_a_visitor_says(agent: str) -> None:
    said = access(agent)
    line = _json(said, MOMENT)
    assert line.count("\n") == 1
    assert line.isascii()
    assert json.loads(line)["agent"] == agent.strip(" \t")
    assert json.loads(line)["time"] == "2026-11-30T00:53:20.250Z"
    combined = _combined(said, MOMENT)
    assert combined.isascii()
    found = LINE.fullmatch(combined)
    assert found, combined


@given(VALUES)
def test_a_line_has_one_address_whatever_a_proxy_says(zone: str) -> None:
    said = access(host=f"fe80::1%{zone}")
    found = LINE.fullmatch(_combined(said, MOMENT))
    assert found
    assert not set(found[1]) & set('" ')
    assert json.loads(_json(said, MOMENT))["address"] == said.host


async def test_what_is_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LINES", 3)
    log = AccessLog(tmp_path / "log", JSON_LINES)
    log.check()
    for _ in range(5):
        log.note(access())
    assert log.dropped == 2
    with trio.move_on_after(0.5):
        await log.run()
    assert len((tmp_path / "log").read_text().splitlines()) == 3


async def test_what_was_noted_last_is_written(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", COMBINED)
    log.check()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            log.note(access())
            scope.cancel()
    assert LINE.fullmatch((tmp_path / "log").read_text())


async def test_a_file_that_was_renamed_is_opened_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = AccessLog(file, JSON_LINES)
    log.check()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.note(access("one"))
        await trio.sleep(0.4)
        file.rename(tmp_path / "log.1")
        log.note(access("two"))
        await trio.sleep(0.4)
        nursery.cancel_scope.cancel()
    assert json.loads((tmp_path / "log.1").read_text())["agent"] == "one"
    assert json.loads(file.read_text())["agent"] == "two"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="AccessLog"):
        AccessLog(tmp_path / "none" / "log", JSON_LINES).check()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartupError, match="AccessLog"):  # and it does not wait for a reader
        AccessLog(tmp_path / "pipe", JSON_LINES).check()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk to try")
async def test_a_full_disk_holds_nothing_up() -> None:
    log = AccessLog(Path("/dev/full"), JSON_LINES)
    log.check()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.note(access())
        await trio.sleep(0.4)
        assert log.dropped == 1
        log.note(access())
        await trio.sleep(0.4)
        assert log.dropped == 2
        nursery.cancel_scope.cancel()
