"""To which service a visitor's requests go, and what becomes of them when the service, its client or its restrictions change meanwhile."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all, receive_some
from trionat.address import TCPAddress
from trionat.config.server import JSON_LINES, ServerConfig
from trionat.networks import parse_network
from trionat.protocol.messages import Publish, PublishKind, ServiceRequest
from trionat.server.accounts.limits import UserLimits
from trionat.server.names.access_log import AccessLog
from trionat.server.names.dispatcher import Arrival, Dispatcher
from trionat.server.names.page import Pages
from trionat.server.tally import Tally
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits
from trionat.store.passwords import hash_password
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint
    from trionat.server.visitors.ports import VisitPoint
    from trionat.server.visitors.visitor import Visitor

NAME: Final = "shop.tunnel.test"
HOST: Final = "192.0.2.7"
ANN: Final = "Authorization: Basic " + base64.b64encode(b"ann:secret").decode()
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def request(*fields: str, path: str = "/", host: str = NAME) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


class Site:
    """A name, its client's queue, and visitors from `HOST`, of whom one may be there at once."""

    def __init__(self, tidy: Tidy, nursery: trio.Nursery, **said: object) -> None:
        self.tidy, self.nursery = tidy, nursery
        self.config = ServerConfig(domain="tunnel.test", max_visitors_per_address=1)
        self.pool = PortPool({})
        self.shares_names = False
        self.access_log: AccessLog | None = None
        self.tally: Tally | None = None
        self.open(**said)

    def open(self, **said: object) -> None:
        """A client comes that has the name."""
        [self.point] = self.pool.take([ServiceRequest(publish=published(**said))], ("user", "c"))  # type: ignore[misc]
        self.point.queue = self.queue = VisitorQueue(9, 9, UserLimits("user", Limits()))

    def leave(self) -> None:
        """Its client has gone for good."""
        self.queue.close("the client has left")
        self.pool.close(self.point)

    def trust(self) -> None:
        """Visitors come by a proxy of the operator's."""
        self.config = attrs.evolve(self.config, trusted_proxies=(parse_network(HOST),))

    async def visit(
        self,
        *fields: str,
        scheme: str = "https",
        point: VisitPoint | None = None,
        host: str = NAME,
    ) -> MemoryEndpoint:
        """Ask for the first time; return the visitor's end."""
        self.acceptor = VisitorAcceptor(self.config, tally=self.tally)
        dispatcher = Dispatcher(
            config=self.config,
            names=self.pool.names,
            acceptor=self.acceptor,
            pages=Pages(),
            shares_names=self.shares_names,
            access_log=self.access_log,
        )
        far, near = self.tidy.pair()
        arrival = Arrival(
            address=TCPAddress(HOST, 4711),
            visited=TCPAddress("127.0.0.1", 443),
            scheme=scheme,
            name=NAME,
            point=point,
        )
        self.nursery.start_soon(dispatcher.serve, near, arrival, lambda: None)
        await send_all(far, request(*fields, host=host))
        return far

    async def serve(self) -> tuple[Visitor, bytes]:
        """Wait for a visitor, as its service; return what it says first."""
        with trio.fail_after(5):
            visitor = await self.queue.next()
            assert visitor is not None
            return visitor, await receive_some(visitor.endpoint)

    async def check_nobody_is_left(self) -> None:
        """All visitors have gone, and none counts any more."""
        with trio.fail_after(5):
            while self.nursery.child_tasks:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        self.open()
        assert self.acceptor.refusal(self.point, TCPAddress(HOST, 1)) is None
        self.pool.close(self.point)


def published(**said: object) -> Publish:
    return attrs.evolve(Publish(kind=PublishKind.HTTP, name=NAME), **said)  # type: ignore[arg-type]


async def status(far: MemoryEndpoint) -> bytes:
    """Return the status of the next answer, and read on to the end of the connection."""
    with trio.fail_after(5):
        answer = await receive_all(far)
    far.close()
    return answer.split()[1]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> trio.CapacityLimiter:
    """Who has this keeps passwords from being checked."""
    limiter = trio.CapacityLimiter(1)
    monkeypatch.setattr("trionat.server.visitors.restrictions._THREADS", limiter)
    return limiter


async def test_its_client_leaves_while_a_password_is_checked(
    tidy: Tidy, nursery: trio.Nursery, checks: trio.CapacityLimiter
) -> None:
    hashed = "ann:" + await hash_password("secret")
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors, basic_auth=(hashed,))
        async with checks:
            far = await site.visit(ANN)
            await trio.testing.wait_all_tasks_blocked()
            site.leave()
        assert await status(far) == b"404"
        await site.check_nobody_is_left()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"basic_auth": ()}, b"200"),
        ({"basic_auth": ("ann:new",)}, b"401"),
        ({"deny": (HOST,)}, b"403"),
    ],
)
async def test_its_owner_says_otherwise_while_a_password_is_checked(
    tidy: Tidy, checks: trio.CapacityLimiter, said: dict[str, tuple[str, ...]], expected: bytes
) -> None:
    hashed = {word: "ann:" + await hash_password(word) for word in ("secret", "new")}
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors, basic_auth=(hashed["secret"],))
        async with checks:
            far = await site.visit(ANN, "Connection: close")
            await trio.testing.wait_all_tasks_blocked()
            by_now = {"basic_auth": (hashed["secret"],), **said}
            if said.get("basic_auth"):
                by_now["basic_auth"] = (hashed["new"],)
            site.point.take_publish(published(**by_now))
        if expected == b"200":
            visitor, _ = await site.serve()
            await send_all(visitor.endpoint, OK)
            site.queue.leave(visitor)
        assert await status(far) == expected
        site.leave()
        await site.check_nobody_is_left()


class Node:
    """Another one, which has every port; nobody comes to it."""

    def takes(self, point: int | str) -> bool:
        return True

    def forward(self, visitor: Visitor) -> None:
        raise AssertionError("what was read from it is lost there")


async def test_a_visit_port_that_has_gone_to_another_node_after_the_handshake(tidy: Tidy) -> None:
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors)
        site.leave()
        far = await site.visit(point=VisitPort(60001))
        site.acceptor.elsewhere = Node()
        assert await status(far) == b"503"
        site.acceptor.elsewhere = None
        await site.check_nobody_is_left()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("X-Forwarded-For: 198.51.100.9", "X-Forwarded-Proto: https"), b"200"),
        (("X-Forwarded-Proto: https",), b"403"),
        (("X-Forwarded-For: unknown", "X-Forwarded-Proto: https"), b"403"),
        (("X-Forwarded-For: 198.51.100.9:4711", "X-Forwarded-Proto: https"), b"403"),
        (("X-Forwarded-For: 198.51.100.9", "X-Forwarded-Proto: http"), b"308"),
        (("X-Forwarded-For: 198.51.100.9",), b"308"),
    ],
)
async def test_a_request_of_a_proxy_says_nothing_about_the_next_one(
    tidy: Tidy, fields: tuple[str, ...], expected: bytes
) -> None:
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors, allow=("198.51.100.0/24",))
        site.trust()
        known = ("X-Forwarded-For: 198.51.100.9", "X-Forwarded-Proto: https")
        far = await site.visit(*known, scheme="http")
        visitor, _ = await site.serve()
        await send_all(visitor.endpoint, OK)
        assert await receive_some(far) == OK
        await send_all(far, request(*fields, "Connection: close"))
        with trio.fail_after(5):
            is_same = bool(await receive_some(visitor.endpoint))
        assert is_same == (expected == b"200")
        if is_same:
            await send_all(visitor.endpoint, OK)
        assert await status(far) == expected
        visitor.endpoint.close()
        site.queue.leave(visitor)
        site.leave()
        await site.check_nobody_is_left()


@pytest.mark.parametrize(
    ("trusted", "shared", "stays"),
    [(True, True, False), (True, False, True), (False, True, True)],
)
async def test_a_proxy_keeps_no_connection_where_another_name_may_be_elsewhere(
    tidy: Tidy, trusted: bool, shared: bool, stays: bool
) -> None:
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors)
        site.shares_names = shared
        if trusted:
            site.trust()
        far = await site.visit()
        visitor, _ = await site.serve()
        await send_all(visitor.endpoint, OK)
        with trio.fail_after(5):
            answer = await receive_some(far)
            assert (b"Connection: close" not in answer) == stays, answer
            if stays:
                far.send_eof()
            assert await receive_some(visitor.endpoint) == b""
            visitor.endpoint.close()
            assert await receive_some(far) == b""
        far.close()
        site.queue.leave(visitor)
        site.leave()
        await site.check_nobody_is_left()


async def test_a_password_that_is_wanted_later_does_not_go_to_the_service(tidy: Tidy) -> None:
    hashed = "ann:" + await hash_password("secret")
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors)
        far = await site.visit()
        visitor, _ = await site.serve()
        await send_all(visitor.endpoint, OK)
        assert await receive_some(far) == OK
        site.point.take_publish(published(basic_auth=(hashed,)))
        assert site.point.restrictions is not None
        known = ANN.partition(": ")[2].encode()
        assert await site.point.restrictions.log_in(known, "198.51.100.1") is None
        await send_all(far, request(ANN, "Connection: close"))
        assert await receive_some(visitor.endpoint) == b"", "it is another visitor from now on"
        visitor.endpoint.close()
        site.queue.leave(visitor)
        visitor, said = await site.serve()
        assert b"uthorization" not in said, said
        await send_all(visitor.endpoint, OK)
        assert await status(far) == b"200"
        site.queue.leave(visitor)
        site.leave()
        await site.check_nobody_is_left()


async def test_requests_are_counted_by_what_is_published_and_not_by_what_visitors_say(
    tidy: Tidy,
) -> None:
    tally = Tally()
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors)
        site.tally = tally
        far = await site.visit("Connection: close")
        visitor, _ = await site.serve()
        await send_all(visitor.endpoint, OK)
        site.queue.leave(visitor)
        assert await status(far) == b"200"
        for number in range(3):
            far = await site.visit("Connection: close", host=f"made-up-{number}.tunnel.test")
            assert await status(far) == b"404"
        site.leave()
        await site.check_nobody_is_left()
    figures = tally.requests.figures
    assert figures.shown == {NAME: (0, 1, 0, 0, 0)}
    assert figures.others == (0, 0, 0, 3, 0)
    assert sum(tally.request_duration.figures.counts) == 1


@pytest.mark.parametrize(("is_read", "expected"), [(True, b"502"), (False, b"503")])
async def test_a_request_that_its_service_does_not_answer_counts_for_it(
    tidy: Tidy, tmp_path: Path, is_read: bool, expected: bytes
) -> None:
    log = AccessLog(tmp_path / "log", JSON_LINES)
    async with trio.open_nursery() as visitors:
        site = Site(tidy, visitors)
        site.access_log = log
        far = await site.visit()
        requests = site.point.requests
        assert requests is not None
        if is_read:
            visitor, _ = await site.serve()
            visitor.endpoint.close()
            site.queue.leave(visitor)
        else:
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)
        site.leave()
        assert await status(far) == expected
        assert requests.figures.statuses == {"5xx": 1}
        await site.check_nobody_is_left()
    with trio.move_on_after(0.01):
        await log.run()
    [line] = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (line["user"], line["status"]) == ("user", int(expected))
    assert is_read or line["seconds"] >= 0.05, "how long it has waited"


async def test_a_visitor_that_waits_for_tls_to_be_passed_through_is_passed_on_as_such(
    tidy: Tidy,
) -> None:
    acceptor = VisitorAcceptor(ServerConfig())
    [point] = PortPool({}).take(
        [ServiceRequest(publish=published(kind=PublishKind.TLS))], ("user", "c")
    )  # type: ignore[misc]
    point.queue = queue = VisitorQueue(9, 9, UserLimits("user", Limits()))
    far, near = tidy.pair()
    acceptor.take(point, near, TCPAddress(HOST, 4711), TCPAddress("127.0.0.1", 443))
    [visitor] = queue.take_new()
    assert visitor.with_tls
    near.close()
    far.close()
