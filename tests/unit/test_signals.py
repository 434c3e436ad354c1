"""How tasks learn of changes."""

from __future__ import annotations

import trio
import trio.testing

from trionat.signals import AutoResetEvent


async def test_what_came_while_nobody_waited_is_remembered_once() -> None:
    event = AutoResetEvent()
    event.notify()
    event.notify()
    with trio.fail_after(1):
        await event.wait()
    with trio.move_on_after(0.05) as scope:
        await event.wait()
    assert scope.cancelled_caught
    event.notify()
    with trio.CancelScope() as scope:
        scope.cancel()
        await event.wait()
    assert scope.cancelled_caught
    with trio.fail_after(1):
        await event.wait()  # a wait that was cancelled forgets nothing


async def test_who_waits_is_woken() -> None:
    event, woken = AutoResetEvent(), list[str]()

    async def wait() -> None:
        await event.wait()
        woken.append("woken")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        event.notify()
    assert woken
