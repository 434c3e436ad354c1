"""A claim whose services change while it holds."""

from __future__ import annotations

import pytest

from trionat.errors import RefusedError
from trionat.protocol.messages import Publish, PublishKind, ServiceRequest
from trionat.server.registry.claim import Claim, Wish
from trionat.server.registry.table import ClaimTable
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.base import Limits

ALICE, BOB = ("alice", "a"), ("bob", "b")


def at(port: int | None = None, name: str | None = None) -> ServiceRequest:
    publish = None if name is None else Publish(kind=PublishKind.HTTP, name=name)
    return ServiceRequest(visit_port=port, publish=publish)


def table() -> ClaimTable:
    return ClaimTable(2, PortPool([VisitPort(60001 + number) for number in range(3)]))


def claim(claims: ClaimTable, *services: ServiceRequest, key: tuple[str, str] = ALICE) -> Claim:
    found = claims.claim(Wish(key=key, services=services, limits=Limits()), "")
    assert found is not None
    return found


async def test_some_stay_some_come_and_the_rest_is_free_at_once() -> None:
    claims = table()
    before = claim(claims, at(60001), at(60002), at(name="shop.test"))
    services = (at(60002), at(60003), at(name="blog.test"))
    after = claims.amend(before, services, (60002, None, None))
    assert after is not None
    assert (after.points, after.fence) == ((60002, 60003, "blog.test"), before.fence)
    assert claims.is_current(after)
    assert claims.claim_of(60003) == after
    assert claims.claim_of(60001) is None
    other = claim(claims, at(60001), at(name="shop.test"), key=BOB)
    assert other.points == (60001, "shop.test")
    claims.release(after)
    assert claims.ports.free == 2
    assert list(claims.ports.names) == ["shop.test"]


@pytest.mark.parametrize("service", [at(60003), at(name="blog.test")])
async def test_what_somebody_else_has_changes_nothing(service: ServiceRequest) -> None:
    claims = table()
    before = claim(claims, at(60001))
    claim(claims, at(60003), at(name="blog.test"), key=BOB)
    with pytest.raises(RefusedError):
        claims.amend(before, (at(60001), service), (60001, None))
    assert claims.find(ALICE, before.fence) == before
    assert claims.ports.free == 1


async def test_too_few_ports_change_nothing() -> None:
    claims = table()
    before = claim(claims, at(60001))
    claim(claims, at(), key=BOB)
    assert claims.amend(before, (at(60001), at(), at()), (60001, None, None)) is None
    assert claims.find(ALICE, before.fence) == before
    assert claims.ports.free == 1
