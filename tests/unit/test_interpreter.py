"""Garbage is looked for in pieces, and none of it stays for good."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio
import trio.testing

from trionat import interpreter
from trionat.interpreter import GarbageCollection, keep_pauses_short

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest
    from trio.testing import MockClock

LIVING = 300_000


@attrs.define(eq=False)
class Circle:
    """What only a collector finds."""

    me: Circle | None = None

    def __attrs_post_init__(self) -> None:
        self.me = self


@contextmanager
def timing() -> Generator[list[float]]:
    """Note for how much of this thread's own time each look at all generations goes on."""
    found: list[float] = []
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time()
        elif info["generation"] == 2:
            found.append(time.thread_time() - began)

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


async def test_what_lives_is_not_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread's own time, of the longest look beside one at everything: so a busy machine hardly matters. Left to Python, the longest is one at everything."""
    monkeypatch.setattr(interpreter, "_MORE_BLOCKS", 1 << 30)  # it does not become twice as large
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_pauses_short)
        await trio.testing.wait_all_tasks_blocked()
        living: list[object] = []
        with timing() as looks:
            for _ in range(30):
                living += [[{}] for _ in range(LIVING // 30)]
                await trio.sleep(interpreter.LOOK_INTERVAL / 4)
        gc.unfreeze()
        with timing() as whole:
            gc.collect()
        nursery.cancel_scope.cancel()
    assert looks, "nothing was looked at"
    assert max(looks) < whole[0] / 5, (looks, whole)


async def test_then_all_is_as_it_was() -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_pauses_short)
        await trio.testing.wait_all_tasks_blocked()
        assert gc.get_threshold()[:2] == before[0][:2]
        assert gc.get_threshold()[2] > 1_000_000
        assert sys.getswitchinterval() < 0.002
        assert gc.get_freeze_count() > 0
        nursery.cancel_scope.cancel()
    assert (gc.get_threshold(), sys.getswitchinterval()) == before
    assert gc.get_freeze_count() == 0


def put_aside() -> weakref.ref[Circle]:
    """Return one that was put aside while it was alive, and is garbage now."""
    circle = Circle()
    gc.freeze()
    return weakref.ref(circle)


def make_due() -> None:
    """So much has come that there is something to look at."""
    for _ in range(interpreter.YOUNG):
        gc.collect(1)


async def test_a_small_process_is_looked_at_once_a_minute(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_SHORT", 10.0)  # whatever else this process has
    async with trio.open_nursery() as nursery:
        nursery.start_soon(GarbageCollection().run)
        await trio.sleep(1)
        circle = put_aside()
        make_due()
        await trio.sleep(30)
        assert circle() is not None
        await trio.sleep(30)
        make_due()
        await trio.sleep(1)
        assert circle() is None
        nursery.cancel_scope.cancel()


async def test_a_large_one_when_it_has_become_twice_as_large(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_SHORT", 0.0)
    blocks = 1_000_000
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: blocks)
    monkeypatch.setattr(interpreter, "find_resident_memory", lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(GarbageCollection().run)
        await trio.sleep(1)
        circle = put_aside()
        blocks = 2_400_000
        make_due()
        await trio.sleep(600)
        assert circle() is not None
        blocks = 2_400_001
        make_due()
        await trio.sleep(1)
        assert circle() is None
        nursery.cancel_scope.cancel()


async def test_and_when_its_memory_has_which_is_not_in_blocks(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_SHORT", 0.0)
    resident = 100 << 20
    monkeypatch.setattr(interpreter, "find_resident_memory", lambda: resident)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(GarbageCollection().run)
        await trio.sleep(1)
        circle = put_aside()
        make_due()
        await trio.sleep(600)
        assert circle() is not None
        resident = 300 << 20
        make_due()
        await trio.sleep(1)
        assert circle() is None
        nursery.cancel_scope.cancel()


async def test_memory_that_was_not_told_once_is_no_growth(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no descriptor left to ask with: everything would be looked at again and again, just when there is most of it."""
    monkeypatch.setattr(interpreter, "_SHORT", 0.0)
    resident: int | None = None
    monkeypatch.setattr(interpreter, "find_resident_memory", lambda: resident)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(GarbageCollection().run)
        await trio.sleep(1)
        circle = put_aside()
        resident = 300 << 20
        make_due()
        await trio.sleep(1)
        assert circle() is not None
        resident = 700 << 20  # from what was told first
        make_due()
        await trio.sleep(1)
        assert circle() is None
        nursery.cancel_scope.cancel()
