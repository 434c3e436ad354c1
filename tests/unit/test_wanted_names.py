"""Which names may have a certificate, and what it costs to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from trionat.protocol.messages import Publish, PublishKind, ServiceRequest
from trionat.server.names.wanted import WantedNames
from trionat.server.visitors.ports import PortPool, VirtualHost, VisitPort

if TYPE_CHECKING:
    from collections.abc import Iterator

DOMAIN = "tunnel.test"


def hold(pool: PortPool, name: str, kind: PublishKind = PublishKind.HTTP) -> None:
    service = ServiceRequest(publish=Publish(kind=kind, name=name))
    points = pool.take([service], ("alice", "laptop"))
    assert points is not None
    pool.note_held(point.id for point in points)


async def test_those_of_services_for_which_we_end_tls_each_with_its_user() -> None:
    pool = PortPool([VisitPort(60001)])
    wanted = WantedNames(pool, DOMAIN)
    assert dict(wanted) == {}
    hold(pool, f"shop.{DOMAIN}")
    hold(pool, f"through.{DOMAIN}", PublishKind.TLS)
    claiming = Publish(kind=PublishKind.HTTP, name=f"claiming.{DOMAIN}")
    pool.take([ServiceRequest(publish=claiming)], ("bob", "laptop"))
    assert dict(wanted) == {f"shop.{DOMAIN}": "alice"}
    assert DOMAIN not in wanted
    (port,) = (
        pool.take([ServiceRequest(publish=Publish(kind=PublishKind.HTTPS))], ("bob", "x")) or ()
    )
    assert dict(wanted) == {f"shop.{DOMAIN}": "alice", DOMAIN: ""}
    pool.give_back([port, pool.names[f"shop.{DOMAIN}"]])
    assert dict(wanted) == {}
    assert len(WantedNames(pool, None)) == 0


class Unwalked(dict[str, VirtualHost]):
    """Names of a pool that are looked up, and not gone through."""

    def _refuse(self) -> NoReturn:
        raise AssertionError("all names are gone through")

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def items(self) -> NoReturn:
        self._refuse()

    def values(self) -> NoReturn:
        self._refuse()


async def test_whether_one_is_wanted_is_looked_up() -> None:
    pool = PortPool([VisitPort(60001)])
    hold(pool, f"shop.{DOMAIN}")
    pool.names = Unwalked(pool.names)
    wanted = WantedNames(pool, DOMAIN)
    assert f"shop.{DOMAIN}" in wanted
    assert f"other.{DOMAIN}" not in wanted
    assert DOMAIN not in wanted
