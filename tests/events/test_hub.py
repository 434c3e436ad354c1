"""Who hears what is published."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tests.events.listening import reading
from trionat.config.events import EVENT_TYPES
from trionat.server.events.event import (
    KINDS,
    Event,
    account_expired,
    ban,
    ban_lifted,
    quota_reached,
    quota_warning,
    session_up,
)
from trionat.server.events.hub import AT_ONCE, INTERVAL, Hub
from trionat.server.events.template import sentence

if TYPE_CHECKING:
    from trionat.server.events.event import Happening

A_BAN = ban(network="192.0.2.7", failures=10, seconds=300.0)


def test_the_configuration_knows_the_same_types() -> None:
    assert tuple(sorted(KINDS)) == EVENT_TYPES


def test_each_has_the_fields_of_its_arguments() -> None:
    for type_, make in KINDS.items():
        names = list(inspect.signature(make).parameters)
        told, fields = make(**dict.fromkeys(names, 1))
        assert (told, list(fields)) == (type_, names)


async def test_where_nobody_listens_nothing_is_kept() -> None:
    hub = Hub("here")
    assert not hub.is_on
    hub.publish(A_BAN)
    assert hub.number == 0


async def test_readers_get_all_and_number_them() -> None:
    hub = Hub("here", now=lambda: 5.0)
    with reading(hub) as one, reading(hub) as other:
        hub.publish(A_BAN)
        hub.publish(ban_lifted(network="192.0.2.7", reason="its time is over"))
        for reader in (one, other):
            first, second = await reader.take(10)
            assert first == Event(1, 5.0, "ban", "here", A_BAN[1])
            assert (second.number, second.type) == (2, "ban.lifted")
    assert not hub.is_on


async def test_what_is_told_once_is() -> None:
    hub = Hub()
    with reading(hub) as reader:
        for used in (80, 90):
            hub.publish(quota_warning(user="ann", month="2026-11", used=used, quota=100))
        hub.publish(quota_warning(user="ann", month="2026-12", used=80, quota=100))
        hub.publish(quota_warning(user="ann", month="2026-12", used=160, quota=200))
        hub.publish(quota_reached(user="ann", month="2026-12", used=200, quota=200))
        for _ in range(2):
            hub.publish(account_expired(user="ann", expires_at="2026-11-01T00:00:00+00:00"))
        told = [(event.number, event.type) for event in await reader.take(10)]
    assert [number for number, _ in told] == [1, 2, 3, 4, 5]
    assert [type_ for _, type_ in told].count("account.expired") == 1


async def test_long_words_of_peers_are_cut() -> None:
    hub = Hub()
    with reading(hub) as reader:
        hub.publish(ban_lifted(network="192.0.2.7", reason="x" * 100_000))
        assert [len(event.to_json()) < 1000 for event in await reader.take(2)] == [True]


def test_an_event_survives_json() -> None:
    for data in ({}, {"a": [1, "b", None]}, {"client": "\ud800\x1b[2J\u202e"}):
        event = Event(7, 1_800_000_000.123, "ban", "hér", data)
        assert Event.from_json(event.to_json()) == event
        assert event.to_json().isascii()
    event = Event(7, 1_800_000_000.123, "ban", "here", {})
    assert event.values()["time"] == "2027-01-15T08:00:00.123Z"


def up(user: str, number: int) -> Happening:
    return session_up(uid=number, user=user, client="c", address="192.0.2.7:1", points=(60001,))


async def test_one_account_does_not_push_out_the_events_of_others() -> None:
    """A client that comes and goes all the while; what is too much is told as one event, a minute later."""
    clock = 0.0
    hub = Hub("here", clock=lambda: clock)
    with reading(hub) as reader:
        for number in range(AT_ONCE + 500):
            hub.publish(up("mallory", number))
            if number % 100 == 0:
                hub.publish(up("ann", number))
        told = await reader.take(10_000)
        assert sum(event.data["user"] == "mallory" for event in told) == AT_ONCE
        assert sum(event.data["user"] == "ann" for event in told) == (AT_ONCE + 500) // 100
        hub.tell_left_out()
        clock += INTERVAL
        hub.tell_left_out()
        hub.publish(up("mallory", 1))  # there is room again only for what it stands for
        (left_out,) = await reader.take(10)
        assert left_out.type == "events.left_out"
        assert left_out.data == {
            "user": "mallory",
            "count": 500,
            "types": {"session.up": 500},
            "seconds": INTERVAL,
        }
        assert "500 events of clients of mallory left out" in sentence(left_out)
        clock += 2 * INTERVAL
        hub.publish(up("mallory", 2))
        before, event = await reader.take(10)
        assert (before.type, before.data["count"]) == ("events.left_out", 1)
        assert (event.type, event.data["uid"]) == ("session.up", 2)
    numbers = [event.number for event in (*told, left_out, before, event)]
    assert numbers == list(range(1, len(numbers) + 1)), "a number without an event"


async def test_bans_have_a_bound_of_their_own() -> None:
    hub = Hub("here", clock=lambda: 0.0)
    with reading(hub) as reader:
        for number in range(AT_ONCE + 7):
            hub.publish(ban(network=f"2001:db8:{number:x}::/64", failures=10, seconds=300.0))
        hub.publish(up("ann", 1))
        hub.tell_left_out(at_once=True)
        *_, event, left_out = await reader.take(10_000)
    assert event.type == "session.up"
    assert (left_out.data["user"], left_out.data["types"]) == (None, {"ban": 7})


async def test_who_is_quiet_is_forgotten() -> None:
    clock = 0.0
    hub = Hub("here", clock=lambda: clock)
    with reading(hub):
        hub.publish(up("ann", 1))
        hub.tell_left_out()
        assert hub._allowances
        clock += INTERVAL
        hub.tell_left_out()
        assert not hub._allowances
