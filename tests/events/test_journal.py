"""What is on the disk of events, whatever happens to it."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import socket
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from trionat.server.events.event import Event, account_removed, server_up
from trionat.server.events.hub import Hub
from trionat.server.events.journal import Journal, events_folder, read_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def event(number: int, text: str = "x") -> Event:
    return Event(number, 1_800_000_000.0 + number, "ban.lifted", "here", {"network": text})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return events_folder(tmp_path)


@asynccontextmanager
async def running(journal: Journal) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        yield
        await journal.flush()
        nursery.cancel_scope.cancel()
    await journal.close()


def files(folder: Path, which: str = "*.jsonl") -> list[Path]:
    return list(folder.glob(which))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def numbers(journal: Journal) -> list[int]:
    return [each.number for each in journal]


async def fill(folder: Path, *them: int, most: int = 100) -> None:
    journal = Journal.open(folder, most=most)
    async with running(journal):
        for number in them:
            journal.put(event(number))
            await journal.flush()


async def test_what_was_written_is_there_after_a_restart(folder: Path) -> None:
    await fill(folder, 1, 2, 3)
    journal = Journal.open(folder)
    assert numbers(journal) == [1, 2, 3]
    assert journal.number == 3
    assert list(journal) == [event(1), event(2), event(3)]
    journal.file.close()


async def test_files_are_their_owners_alone(folder: Path) -> None:
    await fill(folder, 1)
    assert mode(folder) == 0o700
    for file in files(folder, "*"):
        assert mode(file) == 0o600


@pytest.mark.parametrize("cut", [1, 2, 30])
async def test_a_last_line_that_was_cut_off_is_no_event_and_the_next_one_takes_its_place(
    folder: Path, cut: int
) -> None:
    await fill(folder, 1, 2, 3)
    file = folder / "journal.jsonl"
    os.truncate(file, file.stat().st_size - cut)
    assert [each.number for each in read_events(folder.parent, 100)] == [1, 2]
    journal = Journal.open(folder)
    assert (numbers(journal), journal.number) == ([1, 2], 2)
    async with running(journal):
        journal.put(event(3, "again"))
    lines = file.read_bytes().split(b"\n")
    assert [json.loads(line)["data"]["network"] for line in lines[:-1]] == ["x", "x", "again"]


async def test_damaged_lines_are_passed_over(folder: Path) -> None:
    await fill(folder, 1, 2, 3)
    file = folder / "journal.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = b'{"number":true,"x":' + bytes(20)
    lines.insert(0, b"[1]")
    file.write_bytes(b"\n".join(lines))
    journal = Journal.open(folder)
    assert numbers(journal) == [1, 3]
    journal.file.close()


async def test_the_oldest_go_and_files_have_a_bound(folder: Path) -> None:
    await fill(folder, *range(1, 36), most=10)
    assert sorted(each.name for each in files(folder, "*")) == [
        "journal.jsonl",
        "journal.older.jsonl",
        "positions.json",
    ]
    kept = b"".join(each.read_bytes() for each in files(folder))
    assert 10 <= kept.count(b"\n") <= 20
    journal = Journal.open(folder, most=10)
    assert numbers(journal) == list(range(26, 36))
    assert journal.next_after(3) == journal.next_after(25)
    journal.file.close()


async def test_bytes_have_a_bound_as_well(folder: Path) -> None:
    journal = Journal.open(folder, most_bytes=10_000)
    async with running(journal):
        for number in range(1, 101):
            journal.put(event(number, "x" * 400))
            await journal.flush()
    assert len(numbers(journal)) < 25
    assert numbers(journal)[-1] == 100
    assert sum(each.stat().st_size for each in files(folder)) < 22_000


async def test_a_new_webhook_begins_now_and_a_known_one_where_it_was(folder: Path) -> None:
    await fill(folder, 1, 2, 3)
    journal = Journal.open(folder, ["a"])
    assert journal.positions == {"a": 3}
    async with running(journal):
        journal.put(event(4))
        journal.put(event(5))
        await journal.flush()
        journal.settle("a", 4)
    journal = Journal.open(folder, ["a", "b"])
    assert journal.positions == {"a": 4, "b": 5}
    kept = journal.next_after(4)
    assert kept is not None
    assert kept.event == event(5)
    journal.file.close()
    journal = Journal.open(folder, ["b"])
    assert journal.positions == {"b": 5}
    journal.file.close()


async def test_numbers_go_on_where_only_the_positions_are_left(folder: Path) -> None:
    journal = Journal.open(folder, ["a"])
    async with running(journal):
        journal.put(event(1))
        journal.put(event(2))
        journal.settle("a", 2)
    name = journal.delivery_of(2)
    (folder / "journal.jsonl").unlink()
    journal = Journal.open(folder, ["a"])
    assert (journal.number, journal.delivery_of(2)) == (2, name)
    journal.file.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"name":1}',
        b'{"runs":[],"positions":{"a":"x"}}',
        b'{"runs":[[1]],"positions":{}}',
        b"\0" * 100,
    ],
)
async def test_positions_that_are_damaged_are_told_and_begun_anew(
    folder: Path, content: bytes
) -> None:
    await fill(folder, 1, 2)
    (folder / "positions.json").write_bytes(content)
    journal = Journal.open(folder, ["a"])
    assert journal.positions == {"a": 2}
    journal.file.close()


async def test_a_disk_that_is_full_costs_nothing_that_can_be_told_now(folder: Path) -> None:
    journal = Journal.open(folder)
    async with running(journal):
        journal.put(event(1))
        await journal.flush()
        good, journal.file.descriptor = journal.file.descriptor, os.open("/dev/full", os.O_RDWR)
        journal.put(event(2))
        await journal.flush()
        os.close(journal.file.descriptor)
        journal.file.descriptor = good
        journal.put(event(3))
    assert numbers(journal) == [1, 2, 3]
    assert [each.number for each in read_events(folder.parent, 100)] == [1, 3]


async def test_a_number_that_is_given_again_after_a_kill_is_another_delivery(folder: Path) -> None:
    journal = Journal.open(folder)
    journal.put(event(1))
    await journal.flush()
    good, journal.file.descriptor = journal.file.descriptor, os.open("/dev/full", os.O_RDWR)
    journal.put(event(2, "told, and not written"))
    await journal.flush()
    os.close(journal.file.descriptor)
    os.close(good)
    told = [journal.delivery_of(number) for number in (1, 2)]
    after = Journal.open(folder)
    assert after.number == 1
    assert after.delivery_of(1) == told[0]
    assert after.delivery_of(2) != told[1]
    after.file.close()


async def test_names_of_runs_go_with_their_events(folder: Path) -> None:
    names: dict[int, str] = {}
    for first in range(1, 61, 2):
        journal = Journal.open(folder, most=10)
        async with running(journal):
            for number in (first, first + 1):
                journal.put(event(number))
        names |= {number: journal.delivery_of(number) for number in (first, first + 1)}
    journal = Journal.open(folder, most=10)
    assert len(journal.runs) == 6
    assert len(set(names.values())) == 60
    assert {
        number: journal.delivery_of(number) for number in range(51, 61)
    }.items() <= names.items()
    journal.file.close()
    for _ in range(3):  # runs without an event
        journal = Journal.open(folder, most=10)
        journal.file.close()
    assert len(journal.runs) == 6


async def tell(hub: Hub, journal: Journal, count: int) -> None:
    for _ in range(count):
        hub.publish(server_up(version="1", control="there"))
    await journal.flush()


async def test_a_journal_outlives_a_shortage_at_the_wrong_moment(folder: Path) -> None:
    journal = Journal.open(folder, most=4)
    hub = Hub(server="here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with hub.telling(journal), ExitStack() as restored:
        restored.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        await tell(hub, journal, 4)
        with socket.socket() as probe:
            free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        await tell(hub, journal, 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await tell(hub, journal, 1)
    await journal.close()
    assert [event.number for event in read_events(folder.parent, 100)][-1] == 6


async def test_a_journal_goes_on_where_its_file_could_not_be_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(folder, most=4)
    hub = Hub(server="here")
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if path.name == "journal.jsonl":
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    with hub.telling(journal):
        await tell(hub, journal, 4)
        monkeypatch.setattr(Path, "replace", fail)
        await tell(hub, journal, 1)
        monkeypatch.undo()
        await tell(hub, journal, 1)
    await journal.close()
    assert [each.number for each in read_events(folder.parent, 100)] == [1, 2, 3, 4, 6]


@pytest.mark.limit(60)
async def test_a_hundred_thousand_at_once_are_bounded_and_hold_nothing_up(folder: Path) -> None:
    """The longest time in which no other task ran, besides the burst itself, is told."""
    journal = Journal.open(folder)
    hub = Hub("here")
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()  # of the loop: other programs hold it up as well
            await trio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    with hub.telling(journal):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            nursery.start_soon(tick)
            await trio.sleep(0.05)
            longest, began = 0.0, time.perf_counter()
            for _ in range(100_000):
                hub.publish(account_removed(user="anna", by="trionat", what="user remove anna"))
            burst = time.perf_counter() - began
            await trio.sleep(0.002)  # the burst itself is not meant
            gc.disable()  # nor is what all tests together have made
            longest = 0.0
            try:
                await journal.flush()
                await trio.sleep(0.005)  # the other task sees how long it was held up
            finally:
                gc.enable()
            pause = longest
            nursery.cancel_scope.cancel()
    assert numbers(journal) == list(range(90_001, 100_001))
    print(f"burst {burst:.3f} s, each {burst * 10:.1f} us, longest pause {pause * 1000:.1f} ms")
    assert pause < 0.03
    await journal.close()
