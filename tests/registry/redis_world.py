"""Nodes of a cluster, on a real Redis, as processes that share one truth (`World` in `test_registry.py`)."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from tests.redis_server import RedisServer, running_redis
from trionat.address import TCPAddress
from trionat.config.cluster import ClusterConfig
from trionat.server.cluster.identity import Identity
from trionat.server.cluster.node import Node
from trionat.server.cluster.redis_link import require_library
from trionat.server.cluster.seal import Seal
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.transport.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SEAL = Seal(bytes(range(32)))


@cache
def identity() -> Identity:
    key, certificate = make_certificate()
    return Identity(key, certificate, bytes(32))


def config(server: RedisServer, name: str, port: int = 8009) -> ClusterConfig:
    return ClusterConfig(
        redis=server.url or "redis://h",
        node=name,
        node_addr=TCPAddress("127.0.0.1", port),
        key_file=Path("unused"),
        redis_password=server.password,
        ca_file=server.authority if server.encrypted else None,
    )


@attrs.define(eq=False)
class RedisWorld:
    """`nodes` are those that run, by name; `kill` ends one without a word, as a power cut does."""

    server: RedisServer
    nursery: trio.Nursery
    ports: Sequence[int]
    slots: int
    nodes: dict[str, tuple[Node, trio.CancelScope]] = attrs.field(factory=dict)

    def make(self, name: str) -> Node:
        return Node(
            config=config(self.server, name),
            seal=SEAL,
            identity=identity(),
            member=hashlib.sha256(name.encode()).hexdigest()[:32],
            pool=PortPool([VisitPort(number) for number in self.ports]),
            slots=self.slots,
        )

    async def start(self, name: str) -> Node:
        node, scope = self.make(name), trio.CancelScope()

        async def run() -> None:
            with scope:
                await node.run()

        self.nursery.start_soon(run)
        await node.wait_joined()
        self.nodes[name] = node, scope
        return node

    async def kill(self, word: str) -> None:
        _, scope = self.nodes.pop(word)
        scope.cancel()
        await trio.to_thread.run_sync(self.server.age, word)
        with trio.fail_after(5):
            while any(word in each.table.nodes for each, _ in self.nodes.values()):  # noqa: ASYNC110
                await trio.sleep(0.05)


@asynccontextmanager
async def redis_world(
    ports: Sequence[int], slots: int, *, password: str = "", encrypted: bool = False
) -> AsyncIterator[RedisWorld]:
    """Give a world on a Redis of its own, whose nodes need not wait for each other first."""
    require_library()
    running = running_redis(password, encrypted=encrypted)
    server = await trio.to_thread.run_sync(running.__enter__)
    try:
        await trio.to_thread.run_sync(server.empty)
        async with trio.open_nursery() as nursery:
            yield RedisWorld(server, nursery, ports, slots)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(running.__exit__, None, None, None)
