"""A worker's own side of what its parent lends it: a real worker in this process, and a test that is its parent."""

from __future__ import annotations

import os
import pickle
import resource
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from tests.unit.test_link import descriptors, pair
from tests.unit.test_workers import config
from trionat.address import TCPAddress
from trionat.events import Ready
from trionat.protocol.messages import ServiceRequest
from trionat.server.registry.claim import Claim, Wish
from trionat.server.registry.values import write_claim
from trionat.server.state_folder import prepare_state
from trionat.server.workers.remote import HANDED_BACK
from trionat.server.workers.values import (
    read_addresses,
    write_addresses,
)
from trionat.server.workers.worker import VISIT_PORT, VISITOR, Worker
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionat.server.workers.link import Link

KEY = ("user", "client")


@attrs.define(eq=False)
class Scene:
    """`heard` is what the worker says to its parent; `port` is the listening socket of its only visit port."""

    worker: Worker
    parent: Link
    port: socket.socket
    heard: list[dict[str, Any]]

    @property
    def number(self) -> int:
        found: int = self.port.getsockname()[1]
        return found

    def lend(self, fence: int) -> None:
        self.parent.lend(VISIT_PORT, self.port, f"{self.number} {fence}")

    async def wait_heard(self, what: str) -> dict[str, Any]:
        with trio.fail_after(5):
            while True:
                for message in self.heard:
                    if message["what"] == what:
                        return message
                await trio.sleep(0.01)


@asynccontextmanager
async def scene(folder: Path, *, in_cluster: bool = False) -> AsyncIterator[Scene]:
    """A worker that has a claim with the fence 5."""
    settings = config(folder, workers=2, start_auth=False)
    state = await trio.to_thread.run_sync(
        partial(prepare_state, folder, names=("localhost",), self_signed=True)
    )
    here, there = pair()
    with socket.create_server(("127.0.0.1", 0)) as port:
        number = port.getsockname()[1]
        somewhere = TCPAddress("127.0.0.1", 1)
        ready = Ready(
            name="test",
            control=somewhere,
            tunnel=somewhere,
            public=somewhere,
            visit_ports=(number,),
            sessions=4,
            authentication=False,
            legacy_clients=False,
            fingerprint="",
            state_dir=str(folder),
        )
        wish = Wish(key=KEY, services=(ServiceRequest(),), limits=Limits())
        claim = Claim(wish=wish, points=(number,), fence=5, holder="w1")
        start: dict[str, Any] = {
            "config": pickle.dumps((settings, ready)).hex(),
            "word": "w1",
            "in_cluster": in_cluster,
            "events": False,
            "step": 2,
            "uid": 1,
            "visitor": 1,
            "visitor_step": 3,
            "certificate": str(state.certificate_file),
            "key": str(state.key_file),
            "room": [3, 0],
            "claims": [write_claim(claim)],
        }
        worker = await Worker.make(there, start)
        scene = Scene(worker, here, port, [])
        here.hear = scene.heard.append
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.run)
            nursery.start_soon(there.run)
            nursery.start_soon(worker.run)
            await scene.wait_heard("ready")
            yield scene
            nursery.cancel_scope.cancel()


async def test_a_port_that_comes_after_its_claim_was_given_up(
    tmp_path: Path, nothing_left: None
) -> None:
    """It stayed open until the worker ended. One of a claim that is yet to come is kept."""
    async with scene(tmp_path / "state") as server:
        server.parent.post({"what": "evict", "key": KEY, "reason": "test", "vacant_only": False})
        assert (await server.wait_heard("release"))["fence"] == 5
        before = descriptors()
        server.lend(5)
        await trio.sleep(0.1)
        assert descriptors() == before
        server.lend(7)
        await trio.sleep(0.1)
        assert descriptors() == before + 1
        server.lend(8)  # the claim before never came
        await trio.sleep(0.1)
        assert descriptors() == before + 1


async def test_visitors_go_back_when_their_client_is_at_another_node(
    tmp_path: Path, nothing_left: None
) -> None:
    """Who waits, with all that it has said, and who comes at that very moment by a proxy. The next ones are the parent's."""
    async with scene(tmp_path / "state", in_cluster=True) as server, AsyncExitStack() as stack:
        back: list[tuple[bytes, socket.socket, str]] = []
        server.parent.take = lambda *handed: back.append(handed)
        server.lend(5)
        visitor = await trio.open_tcp_stream("127.0.0.1", server.number)
        await stack.enter_async_context(visitor)
        await visitor.send_all(b"hello")
        (lease,) = server.worker.context.leases
        with trio.fail_after(5):
            while not lease.queue.present:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        server.parent.post({"what": "moved", "key": KEY})
        assert (await server.wait_heard("release"))["fence"] == 5
        late, its = socket.socketpair()
        stack.callback(late.close)
        source, visited = (
            TCPAddress("192.0.2.1", 4711),
            TCPAddress("127.0.0.1", server.number),
        )
        server.parent.pass_on(VISITOR, its, write_addresses(source, visited))
        with trio.fail_after(5):
            while len(back) < 2:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        for purpose, sock, _ in back:
            assert purpose == HANDED_BACK
            stack.callback(sock.close)
        own = TCPAddress(*visitor.socket.getsockname())
        assert [read_addresses(about) for _, _, about in back] == [
            [own, visited],
            [source, visited],
        ]
        assert back[0][1].recv(100) == b"hello"
        assert list(server.worker.context.leases) == []
        await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.number))
        server.port.settimeout(5)
        accepted, _ = await trio.to_thread.run_sync(server.port.accept)
        accepted.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors")
async def test_a_port_that_was_lost_on_the_way(tmp_path: Path, nothing_left: None) -> None:
    """For want of a descriptor: nobody would accept there as long as the claim holds."""
    async with scene(tmp_path / "state") as server:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        await trio.testing.wait_all_tasks_blocked()
        highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - names are all it takes
        spare = [socket.socket() for _ in range(highest - descriptors() + 2)]
        highest = max(each.fileno() for each in spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        try:
            server.lend(5)
            with trio.fail_after(5):
                while not server.worker.context.refusals.counts:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in spare:
                each.close()
        asked = await server.wait_heard("lend")
        assert asked == {"what": "lend", "port": server.number, "fence": 5}
        server.lend(5)
        async with await trio.open_tcp_stream("127.0.0.1", server.number):
            (lease,) = server.worker.context.leases
            with trio.fail_after(5):
                while not lease.queue.present:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)
