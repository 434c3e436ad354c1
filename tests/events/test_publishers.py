"""Who publishes what, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests.events.listening import reading
from trionat.server.admission.bans import Bans
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from tests.events.listening import Reader


async def told(reader: Reader) -> list[tuple[str, dict[str, Any]]]:
    """Return what was published since the last call."""
    events = []
    with trio.move_on_after(0.001):
        events = await reader.take(1000)
    return [(event.type, dict(event.data)) for event in events]


async def test_a_ban_and_its_end_are_told_once_each(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    hub = Hub()
    with reading(hub) as reader:
        bans = Bans(2, 60.0, events=hub)
        nursery.start_soon(bans.tell_lifted)
        bans.fail("192.0.2.7")
        assert await told(reader) == []
        bans.fail("192.0.2.7")
        bans.fail("192.0.2.7")
        data = {"network": "192.0.2.7", "failures": 2, "seconds": 60.0}
        assert await told(reader) == [("ban", data)]
        await trio.sleep(59)
        assert await told(reader) == []
        await trio.sleep(3)
        lifted = {"network": "192.0.2.7", "reason": "its time is over"}
        assert await told(reader) == [("ban.lifted", lifted)]
        await trio.sleep(100)
        assert await told(reader) == []


async def test_a_ban_that_several_nodes_have_counted_for_is_told_where_the_last_login_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub = Hub()
    with reading(hub) as reader:
        bans = Bans(10, 60.0, events=hub)
        bans.ban("192.0.2.1", 60.0)  # nobody has failed here
        bans.fail("192.0.2.2")
        await trio.sleep(10)
        bans.ban("192.0.2.2", 60.0)  # nor lately
        assert await told(reader) == []
        bans.fail("192.0.2.3")
        bans.ban("192.0.2.3", 60.0)
        bans.ban("192.0.2.3", 60.0)
        assert [data["network"] for _, data in await told(reader)] == ["192.0.2.3"]
