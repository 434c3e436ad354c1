"""The trail of what people change."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.e2e.running import wait_until
from tests.events.listening import reading
from trionat.server.events import audit as audit_module
from trionat.server.events.audit import (
    CONSOLE,
    Actor,
    Audit,
    append_entries,
    audit_file,
    note_change,
    read_audit,
)
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest
    from trio.testing import MockClock

    from trionat.server.events.event import Event

ANN = Actor(by=CONSOLE, name="ann", address="192.0.2.7")


@asynccontextmanager
async def running(state: Path, hub: Hub | None = None) -> AsyncIterator[Audit]:
    audit = Audit(state, hub or Hub("here"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audit.run)
        await trio.sleep(0.05)
        yield audit
        nursery.cancel_scope.cancel()


async def test_a_change_is_a_line(tmp_path: Path) -> None:
    async with running(tmp_path) as audit:
        audit.note(ANN, "account.changed", "bob", {"what": "limits", "text": "\x1b\n" * 5})
    (line,) = audit_file(tmp_path).read_text().splitlines()
    values = json.loads(line)
    assert values["actor"] == {
        "by": "console",
        "name": "ann",
        "token": None,
        "address": "192.0.2.7",
    }
    assert (values["action"], values["target"]) == ("account.changed", "bob")
    assert audit_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert read_audit(tmp_path, 10) == [values]


def test_it_is_only_added_to_and_moves_on_when_it_is_long(tmp_path: Path) -> None:
    for number in range(40):
        append_entries(tmp_path, [{"n": number}], most=130, files=3)
    assert sorted(each.name for each in tmp_path.glob("audit.log*")) == [
        "audit.log",
        "audit.log.1",
        "audit.log.2",
        "audit.log.3",
    ]
    numbers = [each["n"] for each in read_audit(tmp_path, 100)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == 39
    assert 18 < len(numbers) < 30
    assert [each["n"] for each in read_audit(tmp_path, 3)] == [39, 38, 37]


def test_a_line_that_was_cut_off_stays_and_the_next_is_whole(tmp_path: Path) -> None:
    audit_file(tmp_path).write_bytes(b'{"number":7,"n":1}\n{"n":')
    append_entries(tmp_path, [{"n": 2}])
    assert audit_file(tmp_path).read_bytes() == b'{"number":7,"n":1}\n{"n":\n{"number":8,"n":2}\n'
    assert [each["n"] for each in read_audit(tmp_path, 10)] == [2, 1]


def test_numbers_stay_the_same_and_parts_of_it_follow_one_another(tmp_path: Path) -> None:
    """Through files that have moved on, and while more is written."""
    text = "x" * 100
    for first in range(0, 3000, 10):
        entries = [{"n": first + index, "text": text} for index in range(10)]
        append_entries(tmp_path, entries, most=200_000, files=3)
    with audit_file(tmp_path).open("ab") as file:
        file.write(b"\0" * 100_000 + b"\n[1]\n" + b'{"number":"1"}\n' * 1000)
    append_entries(tmp_path, [{"n": 3000}], most=200_000, files=3)
    assert len(list(tmp_path.glob("audit.log.*"))) == 2
    whole = read_audit(tmp_path, 10_000, files=3)
    assert [each["number"] for each in whole] == list(range(3001, 0, -1))
    assert [each["n"] for each in whole] == list(range(3000, -1, -1))
    found, before = list[int](), None
    while part := read_audit(tmp_path, 77, before=before, files=3):
        found += [each["number"] for each in part]
        before = found[-1]
        append_entries(tmp_path, [{"n": -1}], most=2_000_000, files=3)
    assert found == list(range(3001, 0, -1))
    for before in (1, 2, 3, 700, 1500, 1501, 2999, 3001):
        newest = [each["number"] for each in read_audit(tmp_path, 1, before=before, files=3)]
        assert newest == ([before - 1] if before > 1 else [])
    assert read_audit(tmp_path, 2, before=2**62)[0]["n"] == -1


def test_a_part_of_it_reads_no_more_than_that(tmp_path: Path) -> None:
    """It read 4 MiB for the newest entry, and all there is for a number beyond all."""
    lines = (b'{"number":%d,"text":"%s"}\n' % (number, b"x" * 200) for number in range(1, 18_001))
    audit_file(tmp_path).write_bytes(b"".join(lines))
    for before in (None, 2**62, 9000, 100, 1):
        tracemalloc.start()
        read_audit(tmp_path, 1, before=before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000, before


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; import sys; from trionat.server.events.audit import append_entries\n"
        "for n in range(100): append_entries(Path(sys.argv[1]), [{'n': n}], most=2000, files=50)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    entries = read_audit(tmp_path, 1000, files=50)
    assert sorted(each["n"] for each in entries) == sorted([*range(100)] * 3)
    assert [each["number"] for each in entries] == list(range(300, 0, -1))


async def test_what_is_too_much_is_counted_and_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_MOST_QUEUED", 10)
    async with running(tmp_path) as audit:
        for number in range(25):
            audit.note(ANN, "kick", str(number))
    lost, *entries = read_audit(tmp_path, 100)
    assert (lost["action"], lost["details"]) == ("audit.lost", {"entries": 15})
    assert [each["target"] for each in entries] == [str(number) for number in range(9, -1, -1)]


async def test_a_disk_that_takes_nothing_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_module, "_RETRY_AFTER", 0.05)
    folder = tmp_path / "gone"
    async with running(folder) as audit:
        audit.note(ANN, "kick", "bob")
        await wait_until(lambda: "cannot be written down" in caplog.text)
        await trio.sleep(0.2)
        assert caplog.text.count("cannot be written down") == 1
        folder.mkdir()
        await wait_until(lambda: len(read_audit(folder, 10)) == 1)
        audit.note(ANN, "kick", "carol")
    assert [each["target"] for each in read_audit(folder, 10)] == ["carol", "bob"]


async def test_changes_of_accounts_are_events_once_whoever_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(audit_module, "MOST_BYTES", 300)
    monkeypatch.setattr(append_entries, "__kwdefaults__", {"most": 300, "files": 10})
    note_change(tmp_path, "account.added", "before")
    hub = Hub("here")
    with reading(hub) as reader:
        async with running(tmp_path, hub) as audit:
            audit.note(ANN, "account.added", "bob", {"what": ""})
            await trio.sleep(0.2)
            for number in range(8):  # through a file that moves on
                note_change(tmp_path, "account.changed", f"u{number}", what="password")
                await trio.sleep(0.02)
            note_change(tmp_path, "kick", "user bob")
            note_change(tmp_path, "account.removed", "bob")
            told: list[Event] = []
            with trio.fail_after(5):
                while len(told) < 10:
                    told += await reader.take(10)
            await trio.sleep(0.2)
    assert [(event.type, event.data["user"]) for event in told] == [
        ("account.added", "bob"),
        *(("account.changed", f"u{number}") for number in range(8)),
        ("account.removed", "bob"),
    ]
    assert told[0].data["by"] == "ann (console)"
    assert told[1].data == {"user": "u0", "by": told[1].data["by"], "what": "password"}
    assert "command line" in told[1].data["by"]


def test_where_there_is_no_folder_nothing_is_written(tmp_path: Path) -> None:
    note_change(tmp_path / "none", "account.added", "bob")
    assert list(tmp_path.iterdir()) == []


async def test_who_does_much_does_not_fill_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An account made 219 tickets a second, and pushed out all that others had done in 22 minutes."""
    carol = Actor(by=CONSOLE, name="carol")
    hub = Hub("here")
    audit = Audit(tmp_path, hub)
    with reading(hub) as reader:
        for number in range(1000):
            audit.note(ANN, "make_ticket", "ann", is_bounded=True)
            audit.note(ANN, "account.changed", "ann", {"what": "tickets"}, is_bounded=True)
            audit.note(carol, "kick", f"user {number}")
        audit.note(Actor(by=CONSOLE, name="dora"), "make_ticket", "dora", is_bounded=True)
        told = await reader.take(10_000)
    assert [each.type for each in told] == ["account.changed"] * 15
    assert len(audit._entries) == 30 + 1000 + 1
    audit._entries.clear()
    audit._tell_left_out()
    assert not audit._entries
    await trio.sleep(60.5)
    audit._tell_left_out()
    (entry,) = audit._entries
    assert (entry.actor, entry.action) == (ANN, "audit.left_out")
    assert entry.details == {"make_ticket": 985, "account.changed": 985}
    await trio.sleep(40 * 60)
    audit._tell_left_out()
    assert audit._allowances == {}
