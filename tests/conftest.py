"""What every test gets: a deadline, no unexpected errors in the log, and on request a check that nothing is left behind."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from bench.program import free_port
from tests.mariadb import MariaDB, running
from trionat.transport.readiness import current_poller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

DEFAULT_LIMIT = 10.0
"""Seconds for an asynchronous test; `@pytest.mark.limit(seconds)` gives another."""
CLOCKS = {"autojump_clock", "mock_clock"}
"""The fixtures with which time is the test's own."""
SETTLE_TIMEOUT = 1.0
"""Seconds that `nothing_left` gives descriptors on their way out, such as those of an abandoned thread."""


def pytest_configure() -> None:
    """Claim this process's ports before any test counts descriptors."""
    free_port()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put asynchronous tests under a deadline inside of Trio.

    pytest-timeout cannot do it: its signal leaves Trio's loop marked as running, and every later test of the process fails.
    It stays as the last net, also for what has no deadline here: on a mock clock the time is not ours, and a test of
    hypothesis is no coroutine function and has deadlines of its own.
    """
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("limit")
            limit = float(marker.args[0]) if marker else DEFAULT_LIMIT
            if CLOCKS & set(item.fixturenames):
                if not CLOCKS & set(inspect.signature(item.obj).parameters):
                    raise pytest.UsageError(
                        f"{item.nodeid}: uses a clock that is no argument of it, where pytest-trio does not look: it would wait for real"
                    )
                limit = float("inf")
            item.obj = _bounded(item.obj, limit, tidy="nothing_left" in item.fixturenames)


def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over what lives as long as the process: tests collect often, a tenth of a second each otherwise."""
    collect()


def _bounded(
    test: Callable[..., Awaitable[None]], limit: float, *, tidy: bool
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        # Counted here and not in a fixture: pytest-trio runs fixtures as tasks, which come and go in any order.
        if sys.platform == "linux":
            current_poller()  # it lives as long as the run
        before = trio.lowlevel.current_statistics().tasks_living
        interrupted: BaseException | None = None
        with trio.CancelScope(deadline=trio.current_time() + limit) as scope:
            try:
                await test(*args, **kwargs)
            except BaseException as error:
                interrupted = error
                raise
        if scope.cancelled_caught:  # the cause shows where it hung
            raise trio.TooSlowError(f"the test took more than {limit} seconds") from interrupted
        if tidy:
            with trio.move_on_after(SETTLE_TIMEOUT):
                await trio.testing.wait_all_tasks_blocked()  # who was cancelled leaves
            left = trio.lowlevel.current_statistics().tasks_living - before
            if left > 0:
                pytest.fail(f"{left} Trio tasks are left behind")

    return bounded


def collect() -> None:
    """Collect garbage; put aside what is left if nothing is: at the beginning, and after a test in which `GarbageCollection` came to its end."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail the test if it leaves Trio tasks or file descriptors behind.

    Tasks are counted round the body of the test (what it starts in the `nursery` fixture it has to end itself),
    descriptors round the whole run of Trio, and on Linux only.
    """
    before = open_descriptors()
    yield
    deadline = time.monotonic() + SETTLE_TIMEOUT
    collect()
    while left := open_descriptors().items() - before.items():
        if time.monotonic() > deadline:
            pytest.fail(f"file descriptors are left behind: {sorted(left)}")
        time.sleep(0.01)


def open_descriptors() -> dict[int, str]:
    """Return what this process has open, by number; empty where the system cannot tell."""
    found: dict[int, str] = {}
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.exists() else []:  # noqa: PTH208 (names are all it takes)
        try:
            found[int(name)] = str((folder / name).readlink())
        except FileNotFoundError:  # the one that listed them
            continue
    return found


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Give a MariaDB server that the whole session shares; who stops it starts it again, and who fills it makes a database."""
    with running() as server:
        yield server


@pytest.fixture
def expected_errors() -> list[logging.LogRecord]:
    """Return the error records that trionat logs during the test, as they come; it is on the test to look at them."""
    return []


@pytest.fixture(autouse=True)
def _no_unexpected_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which trionat logs an error (our fault, by definition), unless it asks for `expected_errors`."""
    expected = "expected_errors" in request.fixturenames
    records: list[logging.LogRecord] = (
        request.getfixturevalue("expected_errors") if expected else []
    )
    collector = _Collector(records)
    logger = logging.getLogger("trionat")
    logger.addHandler(collector)
    yield
    logger.removeHandler(collector)
    if not expected and records:
        formatter = logging.Formatter("%(name)s: %(message)s")
        pytest.fail("errors in the log:\n" + "\n".join(map(formatter.format, records)))


class _Collector(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
