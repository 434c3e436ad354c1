"""What a login leaves behind of names that it wanted, in a real store: they are its user's if it gets them, and as before if it does not."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import RefusedError
from trionat.protocol.messages import Publish, PublishKind, RefusalCode, ServiceRequest
from trionat.server.accounts.name_owners import NameOwners
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission
from trionat.server.admission.queued_client import QueuedClient
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.base import Limits
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionat.store.sqlite import SQLiteStore

DOMAIN = "tunnel.example.com"
SHOP, BLOG = f"shop.{DOMAIN}", f"blog.{DOMAIN}"
PORT = 60001
IDS = {"alice": 1, "bob": 2}


class Client(QueuedClient):
    """One that waits for as long as it takes."""

    async def send_position(self) -> None:
        await trio.lowlevel.checkpoint()

    async def listen(self) -> None:
        await trio.sleep_forever()


def client(
    user: str, *names: str | None, port: int | None = None, identity: str = "client"
) -> Client:
    """Return a client that wants these names, one of the server's choice for None, and a port."""
    services = tuple(
        ServiceRequest(publish=Publish(kind=PublishKind.HTTP, name=name)) for name in names
    )
    if port is not None:
        services += (ServiceRequest(visit_port=port or None),)
    return Client(
        key=(user, identity),
        account_id=IDS[user],
        client_name="",
        address=TCPAddress("192.0.2.7", 1),
        services=services,
        limits=Limits(),
    )


@attrs.define
class Server:
    admission: Admission
    store: SQLiteStore

    async def admit(self, client: Client) -> tuple[int | str, ...]:
        """Let a client in that stays, and return what it has."""
        lease = await self.admission.admit(client)
        lease.occupy(1, lambda _: None)
        return lease.point_ids

    async def refuse(self, client: Client) -> RefusalCode:
        with pytest.raises(RefusedError) as caught:
            await self.admission.admit(client)
        return RefusalCode(caught.value.code)

    def leave(self, user: str) -> None:
        lease = self.admission.leases.by_key[user, "client"]
        lease.give_up("it leaves")
        lease.vacate()

    async def names(self) -> list[str]:
        return [owned.name for owned in await self.store.list_names()]


@asynccontextmanager
async def running(folder: Path, ports: int = 1, slots: int = 10) -> AsyncIterator[Server]:
    async with open_sqlite_store(folder / "users.db") as store, trio.open_nursery() as nursery:
        numbers = tuple(range(PORT, PORT + ports))
        config = ServerConfig(domain=DOMAIN, visit_port=numbers, max_tcp_conn_num=slots)
        pool = PortPool([VisitPort(number) for number in numbers])
        leases = Leases(config, pool, owners=NameOwners(store))
        admission = Admission(config, leases)
        nursery.start_soon(admission.run)
        yield Server(admission, store)
        nursery.cancel_scope.cancel()


async def test_names_are_their_users_who_get_them(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        assert await server.admit(client("alice", "shop", "blog")) == (SHOP, BLOG)
        assert await server.names() == [BLOG, SHOP]


async def test_a_name_is_not_kept_for_who_did_not_get_it(tmp_path: Path) -> None:
    """It was given free while a client uses it: then it is in use, and nobody's."""
    async with running(tmp_path) as server:
        await server.admit(client("alice", "shop"))
        await server.store.release_name(SHOP)
        assert await server.refuse(client("bob", "shop", "blog")) == RefusalCode.NAME_TAKEN
        assert await server.names() == []


async def test_names_are_not_kept_for_who_did_not_get_a_port_beside_them(tmp_path: Path) -> None:
    async with running(tmp_path, ports=2) as server:
        await server.admit(client("alice", port=PORT))
        now = datetime.now(UTC)
        before = now - timedelta(hours=2)
        await server.store.reserve_names("bob", IDS["bob"], [SHOP], before, timedelta(days=30))
        wanted = client("bob", "shop", "blog", port=PORT)
        assert await server.refuse(wanted) == RefusalCode.PORT_TAKEN
        # What it had before it has still.
        assert await server.names() == [SHOP]


async def test_a_name_is_not_kept_for_who_has_left_the_queue(tmp_path: Path) -> None:
    async with running(tmp_path) as server, trio.open_nursery() as nursery:
        await server.admit(client("alice", port=PORT))
        nursery.start_soon(server.admit, client("bob", "shop", port=0))
        with trio.fail_after(5):
            while await server.names() != [SHOP]:  # noqa: ASYNC110 - the store tells nobody
                await trio.sleep(0.01)
        await trio.sleep(0.1)  # it is about to have it, as soon as there is a port
        assert await server.names() == [SHOP]
        nursery.cancel_scope.cancel()
    async with open_sqlite_store(tmp_path / "users.db") as store:
        assert await store.list_names() == []


async def test_a_name_is_not_kept_for_who_has_left_while_the_store_was_asked(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ports=2, slots=2) as server, trio.open_nursery() as nursery:
        await server.admit(client("alice", port=PORT))
        await server.admit(client("bob", port=PORT + 1))
        scope = trio.CancelScope()

        async def want() -> None:
            with scope:
                await server.admit(client("alice", "shop", port=PORT, identity="another"))

        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        with sqlite3.connect(server.store.path, isolation_level=None) as other:
            other.execute("begin immediate")
            server.leave("bob")
            await trio.sleep(0.1)  # it is its turn now, and its name is asked for
            scope.cancel()
            await trio.sleep(0.1)
            other.execute("rollback")
        other.close()
        with trio.fail_after(5):
            while (calls := server.store._limiter.statistics()).borrowed_tokens:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert calls.tasks_waiting == 0
        await trio.testing.wait_all_tasks_blocked()
        assert await server.names() == []


async def test_of_the_names_of_the_server_s_choice_the_one_is_kept_that_is_had(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        [first] = await server.admit(client("bob", None))
        await server.store.release_name(str(first))
        server.leave("bob")
        [same] = await server.admit(client("alice", str(first)))
        assert same == first
        await server.store.release_name(str(first))
        [second] = await server.admit(client("bob", None))
        assert second != first
        assert await server.names() == [second]
