"""The log: what the outputs look like, what they never show, and that nothing they do stops the program."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import pty
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trionat.log import bind_context, get_logger, log_to, record, unbind_context, writer
from trionat.log.tail import Tail, keep_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOG = get_logger("trionat.test")
TICKET = "tn1_QWxhZGRpbjpvcGVuIHNlc2FtZQ-_x"


def written_by(write: Callable[[], object], *, level: int | str = "INFO") -> str:
    terminal = io.StringIO()
    with log_to(terminal=terminal, filename=None, level=level):
        write()
    return terminal.getvalue()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the writing thread, for 5 s at most."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


# --- what it looks like ---


def test_a_line_for_people_has_time_level_event_and_keys() -> None:
    before = datetime.now().astimezone()
    line = written_by(lambda: LOG.info("visitor came", visitor="10.0.0.1:4000", text="a b", port=7))
    clock, rest = line.split(" ", 1)
    assert rest == "info    visitor came visitor=10.0.0.1:4000 text='a b' port=7\n"
    assert clock in {(before + timedelta(seconds=s)).strftime("%H:%M:%S") for s in range(3)}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((60000,), "60000"),
        ([1, 2], "1,2"),
        (frozenset({"b", "a"}), "a,b"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
    ],
)
def test_a_line_for_people_has_nothing_of_python(value: object, shown: str) -> None:
    event = record.Event(event="up", value=value, missing=None)
    assert str(event) == f"up value={shown}"


def test_a_line_for_machines_is_json_with_utc_milliseconds(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    before = datetime.now(UTC)
    with log_to(terminal=None, filename=file) as statistics:
        LOG.warning("visitor gone", visitor="10.0.0.1:4000", bytes=7, path=Path("/x"), name="Zoë")
    [line] = lines_of(file)
    stamp = line.pop("time")
    assert list(line) == ["level", "logger", "event", "visitor", "bytes", "path", "name"]
    assert line["level"] == "warning"
    assert line["logger"] == "trionat.test"
    assert (line["bytes"], line["path"], line["name"]) == (7, "/x", "Zoë")
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert stamp.endswith("Z")
    assert abs(datetime.fromisoformat(stamp) - before) < timedelta(seconds=5)
    assert (statistics.written, statistics.dropped, statistics.failed) == (1, 0, 0)


def test_no_key_takes_the_place_of_the_frame(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    with log_to(terminal=None, filename=file):
        LOG.info("odd", level="root", logger="else", time="never")
    [line] = lines_of(file)
    assert (line["level"], line["logger"], line["time"] == "never") == (
        "info",
        "trionat.test",
        False,
    )


def test_the_terminal_takes_json_on_request() -> None:
    terminal = io.StringIO()
    with log_to(terminal=terminal, filename=None, json_terminal=True):
        LOG.info("up")
    assert json.loads(terminal.getvalue())["event"] == "up"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, *, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    controller, device = pty.openpty()
    with open(device, "w") as terminal, log_to(terminal=terminal, filename=None):  # noqa: PTH123 (a descriptor)
        LOG.warning("up")
    seen = os.read(controller, 1000).decode()
    os.close(controller)
    assert ("\x1b[33mwarning\x1b[0m" in seen) is coloured
    assert ("\x1b" in seen) is coloured
    assert seen.endswith("up\r\n")


def test_levels_hold_for_ours_and_for_others() -> None:
    def write() -> None:
        LOG.debug("ours, debug")
        LOG.info("ours, info")
        logging.getLogger("other").info("other, info")
        logging.getLogger("other").warning("other, warning")

    assert [line[9:] for line in written_by(write).splitlines()] == [
        "info    ours, info",
        "warning other: other, warning",
    ]
    assert "ours, debug" in written_by(write, level="debug")
    assert written_by(write, level=logging.ERROR) == ""


def test_set_up_is_undone() -> None:
    root, ours = logging.getLogger(), logging.getLogger("trionat")
    before = root.level, ours.level, list(root.handlers)
    assert written_by(lambda: LOG.debug("x"), level="debug")
    assert (root.level, ours.level, root.handlers) == before
    with pytest.raises(ValueError, match="Unknown level"):
        written_by(lambda: None, level="loud")
    assert (root.level, ours.level, root.handlers) == before


# --- context ---


async def test_children_of_a_session_carry_it_and_so_do_other_libraries(tmp_path: Path) -> None:
    async def visitor(number: int) -> None:
        bind_context(visitor=number)
        LOG.info("ours")
        logging.getLogger("other").warning("of %s", "others")

    file = tmp_path / "x.log"
    with log_to(terminal=None, filename=file):
        async with trio.open_nursery() as nursery:
            bind_context(session=3)
            nursery.start_soon(visitor, 1)
            bind_context(session=4)
            nursery.start_soon(visitor, 2)
    seen = {(line["event"], line["session"], line["visitor"]) for line in lines_of(file)}
    assert seen == {("ours", 3, 1), ("ours", 4, 2), ("of others", 3, 1), ("of others", 4, 2)}


async def test_keys_can_be_taken_away(tmp_path: Path) -> None:
    bind_context(session=3, user="ann")
    unbind_context("session")
    with log_to(terminal=None, filename=tmp_path / "x.log"):
        LOG.info("x")
    [line] = lines_of(tmp_path / "x.log")
    assert (line.get("session"), line["user"]) == (None, "ann")


# --- exceptions ---


def fail(error: Exception) -> None:
    raise error


def failing_group() -> ExceptionGroup[ValueError]:
    try:
        fail(ValueError("peer says\n12:00:00 info    all is well\x1b[2J"))
    except ValueError as error:
        return ExceptionGroup("two at once", [error, ValueError(TICKET)])
    raise AssertionError


def test_groups_keep_their_traceback_in_both_outputs(
    tmp_path: Path, expected_errors: list[logging.LogRecord]
) -> None:
    terminal, file = io.StringIO(), tmp_path / "x.log"
    with log_to(terminal=terminal, filename=file):
        LOG.exception("internal error", exc_info=failing_group())  # noqa: LOG004 (as `isolated` does)
    assert len(expected_errors) == 1
    [line] = lines_of(file)
    for text in (terminal.getvalue(), line["exception"]):
        assert "two at once" in text
        assert "in fail" in text
        assert TICKET not in text
    first, *rest = terminal.getvalue().splitlines()
    assert first.endswith("error   internal error")
    assert all(part.startswith("  | ") for part in rest)  # no line of it passes for a record
    assert "\x1b" not in terminal.getvalue()


def test_the_exception_that_is_being_handled(expected_errors: list[logging.LogRecord]) -> None:
    def write() -> None:
        try:
            fail(KeyError("x"))
        except KeyError:
            LOG.exception("once")

    assert written_by(write).count("KeyError: 'x'") == 1
    assert len(expected_errors) == 1


# --- secrets and injection ---


async def test_secrets_never_come_out(tmp_path: Path) -> None:
    terminal, file = io.StringIO(), tmp_path / "x.log"
    bind_context(ticket=TICKET)
    with log_to(terminal=terminal, filename=file, level="DEBUG"):
        LOG.info(
            f"take {TICKET}",  # noqa: G004 (the slip that it is about)
            password="hunter2",
            new_Password="hunter2",
            tunnel_secret=b"hunter2",
            token="hunter2",
            text=f"connect {TICKET} 8080",
            nested={"argv": ["connect", TICKET]},
            left="over",
        )
        logging.getLogger("other").warning("url %s", TICKET)
        logging.getLogger("other").warning("url " + TICKET)  # noqa: G003 (the same)
    for text in (terminal.getvalue(), file.read_text("ascii")):
        assert "hunter2" not in text
        assert TICKET[4:12] not in text
        assert text.count("tn1_********") == 5
        assert "over" in text


def test_secrets_do_not_reach_the_handlers_of_a_library_user(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        LOG.info("take", ticket=TICKET, text=TICKET, nested=[TICKET])
    assert caplog.messages == ["take ticket=******** text=tn1_******** nested=tn1_********"]


def test_peers_cannot_forge_lines_or_drive_the_terminal() -> None:
    evil = "x\n12:00:00 error   hacked\x1b[2J\r\x9b\u202e\u2028"
    output = written_by(lambda: LOG.info(evil, name=evil, thing=[evil]))
    assert len(output.splitlines()) == 1
    assert output[:-1].isprintable()
    output = written_by(lambda: logging.getLogger(evil).warning(evil))
    assert len(output.splitlines()) == 1
    assert output[:-1].isprintable()


def test_long_texts_are_cut() -> None:
    output = written_by(lambda: LOG.info("x", name="y" * 1_000_000))
    assert len(output) < record.TEXT_CHARACTERS + 100


# --- as a library ---


async def test_without_set_up_records_go_to_logging_as_readable_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bind_context(session=3)
    with caplog.at_level("INFO"):
        LOG.info("visitor came", visitor="10.0.0.1:4000")
        LOG.debug("not this one")
    assert caplog.record_tuples == [
        ("trionat.test", logging.INFO, "visitor came visitor=10.0.0.1:4000 session=3")
    ]
    assert caplog.records[0].pathname == __file__


def test_values_are_not_rendered_when_the_level_is_off() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    assert written_by(lambda: LOG.debug("x", value=Costly())) == ""


# --- what goes wrong ---


class Slow(io.StringIO):
    def write(self, text: str) -> int:
        time.sleep(0.02)
        return super().write(text)


def test_drops_are_counted_and_told_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE_RECORDS", 10)
    terminal = Slow()
    with log_to(terminal=terminal, filename=None) as statistics:
        started = time.monotonic()
        for number in range(100):
            LOG.info("x", number=number)
        assert time.monotonic() - started < 0.5  # a hundred slow writes are two seconds
        while "were dropped" not in terminal.getvalue():
            assert time.monotonic() - started < 5
            time.sleep(0.01)
        LOG.info("after")
    lines = terminal.getvalue().splitlines()
    [told] = [line for line in lines if "were dropped" in line]
    assert 80 <= statistics.dropped <= 90
    assert told.endswith(f"number={statistics.dropped}")
    assert statistics.written + statistics.dropped == 102  # 100, `after` and the line that tells
    assert lines[-1].endswith("after")


def test_drops_are_told_at_the_end_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE_RECORDS", 1)  # there is never room by half
    terminal = Slow()
    with log_to(terminal=terminal, filename=None) as statistics:
        for _ in range(50):
            LOG.info("x")
    assert terminal.getvalue().splitlines()[-1].endswith(f"number={statistics.dropped}")


def test_a_full_disk_stops_nothing_and_is_told_once() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    terminal = io.StringIO()
    with log_to(terminal=terminal, filename=Path("/dev/full")) as statistics:
        for _ in range(100):
            LOG.info("x")
    output = terminal.getvalue()
    assert output.count("info    x") == 100
    assert output.count("log records cannot be written") == 1
    assert "to=/dev/full" in output
    assert os.strerror(errno.ENOSPC) in output
    assert statistics.failed == 100


def test_a_log_file_that_cannot_be_opened_is_taken_up_when_it_can(tmp_path: Path) -> None:
    terminal, folder = io.StringIO(), tmp_path / "later"
    with log_to(terminal=terminal, filename=folder / "x.log") as statistics:
        LOG.info("first")
        while not statistics.failed:
            time.sleep(0.01)
        folder.mkdir()
        LOG.info("second")
    assert [line["event"] for line in lines_of(folder / "x.log")] == ["second"]
    assert "log records cannot be written" in terminal.getvalue()


def test_a_closed_pipe_stops_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    file = tmp_path / "x.log"
    with (
        open(writer, "w") as terminal,  # noqa: PTH123 (a descriptor)
        log_to(terminal=terminal, filename=file) as statistics,
    ):
        for _ in range(10):
            LOG.info("x")
    events = [line["event"] for line in lines_of(file)]
    assert events.count("x") == 10
    assert events.count("log records cannot be written") == 1
    assert statistics.failed == 10


def test_what_cannot_be_rendered_costs_little(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    monkeypatch.setattr(
        logging.getLogger(), "handlers", []
    )  # those of pytest fail the test at once
    terminal, file = io.StringIO(), tmp_path / "x.log"
    with log_to(terminal=terminal, filename=file) as statistics:
        LOG.info("bad", value=Bad(), other=1)
        logging.getLogger("other").warning("%d", "no number")
    assert terminal.getvalue()[9:] == "info    bad value=<Bad> other=1\n"
    assert lines_of(file)[0]["value"] == "<Bad>"
    assert (statistics.written, statistics.failed) == (1, 1)


def test_the_file_rotates_and_keeps_five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 2000)
    with log_to(terminal=None, filename=tmp_path / "x.log") as statistics:
        for number in range(200):
            LOG.info("x", number=number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2", "x.log.3", "x.log.4", "x.log.5"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert lines_of(tmp_path / "x.log")[-1]["number"] == 199
    assert statistics.written == 200


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_new_file_is_open_to_nobody_whom_the_old_one_was_closed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 2000)
    (tmp_path / "x.log").touch(mode=0o600)
    with log_to(terminal=None, filename=tmp_path / "x.log"):
        for number in range(50):
            LOG.info("x", number=number)
    assert (tmp_path / "x.log.1").exists()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.fixture
def full_from() -> Iterator[Callable[[int], None]]:
    """Give what has every file end at so many bytes, as on a disk that is full; for the test only."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle_of_a_line_breaks_none(
    tmp_path: Path, full_from: Callable[[int], None]
) -> None:
    file = tmp_path / "x.log"
    log = writer.RotatingFile(file)

    def emit(*numbers: int) -> int:
        return len(log.emit([writer._own_record("x", number=number) for number in numbers]))

    assert emit(0) == 0
    line = file.stat().st_size
    full_from(4 * line + line // 2)
    assert emit(*range(1, 200)) == 195  # the fifth line is half written, and will be completed
    assert file.stat().st_size == 4 * line + line // 2
    assert emit(200) == 1
    full_from(-1)
    assert emit(201) == 0
    log.close()
    assert [line["number"] for line in lines_of(file)] == [0, 1, 2, 3, 4, 201]


def test_a_file_that_is_renamed_while_the_disk_is_full(
    tmp_path: Path, full_from: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes on as soon as there is room again, in a file of its own, whose first line is whole."""
    monkeypatch.setattr(writer, "_LOOK_INTERVAL", 0.0)
    file = tmp_path / "x.log"
    log = writer.RotatingFile(file)
    full_from(10)
    assert len(log.emit([writer._own_record("x", number=1)])) == 0  # half of it, the rest later
    assert len(log.emit([writer._own_record("x", number=2)])) == 1
    file.rename(tmp_path / "old.log")
    full_from(-1)
    assert len(log.emit([writer._own_record("x", number=3)])) == 0
    log.close()
    assert [line["number"] for line in lines_of(file)] == [3]


@pytest.mark.parametrize("how", ["renamed", "deleted"])
def test_a_file_that_logrotate_has_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The log goes on in a new file of the same name."""
    monkeypatch.setattr(writer, "_LOOK_INTERVAL", 0.0)
    file = tmp_path / "x.log"
    with log_to(terminal=None, filename=file) as statistics:
        LOG.info("before")
        wait_until(lambda: statistics.written == 1)
        if how == "renamed":
            file.rename(tmp_path / "x.log-20261128")
        else:
            file.unlink()
        LOG.info("after")
    assert [line["event"] for line in lines_of(file)] == ["after"]


def test_a_thread_whose_sleep_fails_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libfaketime makes `time.sleep` raise where the time of day is set back meanwhile."""

    def fail(_: float) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("time.sleep", fail)
    with log_to(terminal=None, filename=tmp_path / "x.log") as statistics:
        for _ in range(3):
            LOG.info("x")
            wait_until(lambda: statistics.written > 0)
    assert len(lines_of(tmp_path / "x.log")) == 3


def test_a_bug_in_the_thread_does_not_silence_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        place = "nowhere"

        def emit(self, records: object) -> list[Exception]:
            raise ZeroDivisionError

        def close(self) -> None: ...

    log = writer.Writer([writer.RotatingFile(tmp_path / "x.log"), Broken()], writer.LogStatistics())
    log.start()
    for _ in range(3):
        log.records.put(writer._own_record("x"))
    log.stop(5)
    assert not log._thread.is_alive()
    assert sum(line["event"] == "x" for line in lines_of(tmp_path / "x.log")) == 3


def test_what_python_would_show_otherwise() -> None:
    text = written_by(lambda: LOG.info("up", ports=(60000,), more=[1, 2], session=None))
    assert text.split(" ", 1)[1].split() == ["info", "up", "ports=60000", "more=1,2"]


def test_descriptors_and_thread_are_gone_afterwards(tmp_path: Path, nothing_left: None) -> None:
    with (tmp_path / "terminal").open("w") as terminal:
        with log_to(terminal=terminal, filename=tmp_path / "x.log"):
            LOG.info("x")
            assert "trionat-log" in {thread.name for thread in threading.enumerate()}
        assert "trionat-log" not in {thread.name for thread in threading.enumerate()}
        assert not terminal.closed
    assert (tmp_path / "terminal").read_text().endswith("info    x\n")


STUCK = """
    import sys, time, trio
    from trionat.log import get_logger, log_to
    LOG = get_logger("trionat.test")
    async def main():
        worst = 0
        for _ in range(3000):
            started = time.perf_counter()
            LOG.info("x" * 100)
            worst = max(worst, time.perf_counter() - started)
        return worst
    with log_to(terminal=sys.stderr, filename=None) as statistics:
        worst = trio.run(main)
        ending = time.monotonic()
    print(worst, time.monotonic() - ending, flush=True)
"""


def test_a_terminal_that_nobody_reads_stops_neither_loop_nor_exit() -> None:
    """A paused terminal or a pipe whose reader hangs: 300 kB do not fit, so the writing thread is stuck for good."""
    reader, writer = os.pipe()
    try:
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(STUCK)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=20,
            check=True,
        )
    finally:
        os.close(writer)
        os.close(reader)
    worst_call, flush = map(float, process.stdout.split())
    assert worst_call < 0.5
    assert 1.5 < flush < 4


def test_what_is_kept_in_memory_holds_no_exception_and_no_frame() -> None:
    class Payload:
        pass

    def fail() -> None:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        raise ValueError("half \ud800 a pair" + "x" * 100_000)

    payloads: list[weakref.ref[Payload]] = []
    tail = Tail()
    try:
        fail()
    except ValueError as error:
        values = {
            "msg": record.Event({"event": "a bug", "error": error}),
            "exc_info": (type(error), error, error.__traceback__),
        }
        tail.add(record.without_references(logging.makeLogRecord(values)))
        del values
    gc.collect()
    assert [each() for each in payloads] == [None]
    ((_, told),) = tail.read()
    assert told["exception"].startswith("...x")
    assert len(told["exception"]) < 20_000
    assert told["error"].startswith("half \ud800 a pair")
    assert len(told["error"]) == record.TEXT_CHARACTERS


def test_a_traceback_is_kept_in_words(expected_errors: list[logging.LogRecord]) -> None:
    with keep_tail() as tail:
        try:
            raise ValueError("a reason")
        except ValueError:
            LOG.exception("a bug")
        ((_, values),) = tail.read()
    assert len(expected_errors) == 1
    assert values["exception"].endswith("a reason")
    assert "test_a_traceback_is_kept_in_words" in values["exception"]
