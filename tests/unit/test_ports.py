"""The pool of visit ports."""

from __future__ import annotations

import random
import time

import pytest

from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode, ServiceRequest
from trionat.server.visitors.ports import PortPool, VisitPort

ALICE, BOB = ("alice", "a"), ("bob", "b")


def pool(count: int = 4) -> PortPool:
    return PortPool([VisitPort(60001 + number) for number in range(count)])


def wish(*ports: int | None, preferred: int | None = None) -> tuple[ServiceRequest, ...]:
    return tuple(ServiceRequest(visit_port=port, preferred_port=preferred) for port in ports)


def take(ports: PortPool, *wished: int | None, holder: tuple[str, str] = ALICE) -> list[int]:
    found = ports.take(wish(*wished), holder) or ()
    return [point.id for point in found if isinstance(point.id, int)]


def give_back(ports: PortPool, *numbers: int) -> None:
    ports.give_back([ports.ports[number] for number in numbers])


def test_free_for_the_longest_time_first() -> None:
    ports = pool(3)
    assert take(ports, None, None, None) == [60001, 60002, 60003]
    give_back(ports, 60002)
    give_back(ports, 60003)
    give_back(ports, 60001)
    assert take(ports, None, holder=BOB) == [60002]
    assert take(ports, None, holder=BOB) == [60003]


def test_its_own_again_then_nobodys_then_somebodys() -> None:
    ports = pool(4)
    assert take(ports, None) == [60001]
    assert take(ports, None, holder=BOB) == [60002]
    give_back(ports, 60001)
    give_back(ports, 60002)
    assert take(ports, None, None, holder=BOB) == [60002, 60003]
    give_back(ports, 60002, 60003)
    assert take(ports, None, None, None) == [60001, 60004, 60002]


def test_named_ports_come_before_preferences() -> None:
    ports = pool(3)
    services = (*wish(None, preferred=60002), *wish(60002), *wish(None, preferred=60001))
    taken = ports.take(services, ALICE)
    assert taken is not None
    assert [port.id for port in taken] == [60003, 60002, 60001]


def test_a_preference_that_is_taken_is_no_refusal() -> None:
    ports = pool(2)
    assert take(ports, 60001) == [60001]
    taken = ports.take(wish(None, preferred=60001), BOB)
    assert taken is not None
    assert taken[0].id == 60002


def test_a_port_that_is_taken_takes_nothing_with_it() -> None:
    ports = pool(3)
    take(ports, 60001)
    with pytest.raises(RefusedError, match="60001") as caught:
        take(ports, 60002, 60001)
    assert caught.value.code == RefusalCode.PORT_TAKEN
    assert ports.free == 2


def test_too_few_take_nothing() -> None:
    ports = pool(3)
    assert take(ports, None, None) == [60001, 60002]
    assert ports.take(wish(None, None), BOB) is None
    assert ports.free == 1
    give_back(ports, 60001)
    assert take(ports, None, None, holder=BOB) == [60003, 60001]


def test_holder_is_remembered_and_queue_forgotten() -> None:
    ports = pool(1)
    (port,) = ports.take(wish(None), ALICE) or ()
    assert port.last_holder == ALICE
    ports.give_back([port])
    assert port.queue is None
    assert ports.free == 1


def test_many_logins_at_a_server_with_many_ports() -> None:
    """As they were chosen by sorting all of them, but 200 logins do not take seconds."""
    chance = random.Random(7)
    numbers = range(40_000, 60_000)
    ports = PortPool([VisitPort(number) for number in numbers])
    began = time.perf_counter()
    for _ in range(200):
        ports.check(wish(None))
        assert ports.take(wish(None), ALICE) is not None
    assert time.perf_counter() - began < 0.5
    ports = pool(12)
    lent: list[VisitPort] = []
    for step in range(500):
        if lent and chance.random() < 0.5:
            ports.give_back([lent.pop(chance.randrange(len(lent)))])
            continue
        holder = ("user", str(chance.randrange(4)))
        allowed = None if chance.random() < 0.7 else range(60001, 60001 + chance.randrange(13))
        free = [port for port in ports._free.values() if allowed is None or port.number in allowed]
        expected = sorted(
            free, key=lambda port: (port.last_holder != holder, port.last_holder is not None)
        )
        if not expected:
            continue
        taken = ports.take(wish(None), holder, allowed)
        assert taken == (expected[0],), step
        lent += taken


class Elsewhere:
    """Ports that other nodes hold; counts how often it is asked."""

    def __init__(self, *held: int) -> None:
        self.held, self.asked = set(held), 0

    def __contains__(self, port: object) -> bool:
        self.asked += 1
        return port in self.held


def test_a_claim_does_not_look_at_all_ports() -> None:
    ports = pool(5000)
    elsewhere = ports.elsewhere = Elsewhere(*range(60001, 63001))
    for number in elsewhere.held:
        ports.remember(ports.ports[number], BOB)
    for expected in (63001, 63002, 63003):
        assert take(ports, None) == [expected]
    assert elsewhere.asked < 20


def test_ports_held_elsewhere_are_not_lent() -> None:
    ports = pool(3)
    ports.elsewhere = Elsewhere(60001, 60003)
    assert ports.take(wish(None, None), ALICE) is None
    with pytest.raises(RefusedError, match="visit port 60003 is in use"):
        ports.take(wish(60003), ALICE)
    with pytest.raises(RefusedError, match="the visit ports that this account may have"):
        ports.take(wish(None), ALICE, {60001})
    assert take(ports, None) == [60002]


def test_ports_come_and_go() -> None:
    ports = pool(2)
    assert take(ports, None, None) == [60001, 60002]
    give_back(ports, 60001)
    ports.remove([60001, 60002])
    assert (ports.free, list(ports.ports)) == (0, [])
    assert [ports.is_leaving(number) for number in (60001, 60002)] == [False, True]
    leaving = ports.find(60002)
    assert leaving is not None
    ports.add([60001, 60003])
    assert take(ports, None, None, holder=BOB) == [60001, 60003]
    ports.give_back([leaving])
    assert not ports.is_leaving(60002)
    assert ports.free == 0
    ports.add([60002])
    assert take(ports, None) == [60002]
