"""A worker's own side of what its parent lends it: a real worker in this process, and a test that is its parent."""

from __future__ import annotations

import os
import pickle
import resource
import socket
from contextlib import AsyncExitStack, asynccontextmanager, closing
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
from trionat.server.registry.values import write_claim, write_wish
from trionat.server.state_folder import prepare_state
from trionat.server.upgrade.wire import Wire
from trionat.server.workers.purpose import HANDED_BACK, INHERIT, VISIT_PORT, VISITOR
from trionat.server.workers.values import (
    read_addresses,
    write_addresses,
)
from trionat.server.workers.worker import Worker
from trionat.store.base import Limits
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionat.config.server import ServerConfig
    from trionat.server.workers.link import Link

KEY = ("user", "client")


@attrs.define(eq=False)
class Scene:
    """`heard` is what the worker says to its parent; `port` is the listening socket of its only visit port."""

    worker: Worker
    parent: Link
    port: socket.socket
    heard: list[dict[str, Any]]
    configuration: tuple[ServerConfig, Ready]
    files: dict[str, str]

    @property
    def number(self) -> int:
        found: int = self.port.getsockname()[1]
        return found

    def lend(self, fence: int) -> None:
        self.parent.lend(VISIT_PORT, self.port, f"{self.number} {fence}")

    def change_ports(self, *numbers: int) -> None:
        """Tell it that these are the visit ports from now on."""
        config, ready = self.configuration
        ready = attrs.evolve(ready, visit_ports=numbers)
        written = pickle.dumps((config, ready)).hex()
        self.parent.post({"what": "change", "config": written, **self.files})

    async def wait_heard(self, what: str) -> dict[str, Any]:
        with trio.fail_after(5):
            while True:
                for message in self.heard:
                    if message["what"] == what:
                        return message
                await trio.sleep(0.01)


@asynccontextmanager
async def scene(
    folder: Path, *, in_cluster: bool = False, held: bool = False
) -> AsyncIterator[Scene]:
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
        files = {"certificate": str(state.certificate_file), "key": str(state.key_file)}
        wish = Wish(key=KEY, services=(ServiceRequest(),), limits=Limits())
        claim = Claim(wish=wish, points=(number,), fence=5, holder="w1")
        start: dict[str, Any] = {
            "config": pickle.dumps((settings, ready)).hex(),
            "word": "w1",
            "in_cluster": in_cluster,
            "events": False,
            "held": held,
            "step": 2,
            "uid": 1,
            "visitor": 1,
            "visitor_step": 3,
            **files,
            "room": [3, 0],
            "claims": [write_claim(claim)],
        }
        worker = await Worker.make(there, start)
        scene = Scene(worker, here, port, [], (settings, ready), files)
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


async def test_a_port_that_is_taken_away(tmp_path: Path, nothing_left: None) -> None:
    """Its socket is closed before its claim is given back, and one that comes late as well."""
    async with scene(tmp_path / "state") as server:
        before = descriptors()
        server.lend(5)
        await wait_count(before + 1)
        server.change_ports()
        assert (await server.wait_heard("release"))["fence"] == 5
        assert descriptors() == before
        assert list(server.worker.context.leases) == []
        server.lend(5)
        await trio.sleep(0.1)
        assert descriptors() == before
        late, its = socket.socketpair()
        with late:  # a visitor that was on its way by a proxy
            visited = TCPAddress("127.0.0.1", server.number)
            addresses = write_addresses(TCPAddress("192.0.2.1", 4711), visited)
            server.parent.pass_on(VISITOR, its, addresses)
            late.settimeout(5)
            assert await trio.to_thread.run_sync(late.recv, 1) == b""


async def test_a_port_whose_socket_comes_before_it_is_told(
    tmp_path: Path, nothing_left: None
) -> None:
    """Messages and descriptors go ways of their own."""
    async with scene(tmp_path / "state") as server:
        with socket.create_server(("127.0.0.1", 0)) as another:
            number, before = another.getsockname()[1], descriptors()
            server.parent.lend(VISIT_PORT, another, f"{number} 9")
            await wait_count(before + 1)
            server.change_ports(server.number, number)
            wish = Wish(key=("user", "other"), services=(ServiceRequest(),), limits=Limits())
            claim = Claim(wish=wish, points=(number,), fence=9, holder="w1")
            server.parent.post({"what": "room", "slots": 2, "ports": 1})

            async def grant(_: dict[str, Any]) -> dict[str, Any]:
                return {"claim": write_claim(claim)}

            server.parent.reply = grant
            await trio.testing.wait_all_tasks_blocked()
            assert await server.worker.registry.claim(wish) == claim
            async with await trio.open_tcp_stream("127.0.0.1", number) as visitor:
                with trio.fail_after(5):  # nobody has a lease of it, and it is closed
                    assert await visitor.receive_some() == b""


async def test_a_claim_that_comes_with_the_end_of_its_port(
    tmp_path: Path, nothing_left: None
) -> None:
    """It was granted before, and is given back at once: the client waits on."""
    async with scene(tmp_path / "state") as server, trio.open_nursery() as nursery:
        wish = Wish(key=("user", "other"), services=(ServiceRequest(),), limits=Limits())
        claim = Claim(wish=wish, points=(1234,), fence=9, holder="w1")
        server.change_ports(server.number, 1234)
        server.parent.post({"what": "room", "slots": 2, "ports": 1})
        asked = trio.Event()

        async def hang(_: dict[str, Any]) -> dict[str, Any]:
            asked.set()
            await trio.sleep_forever()

        server.parent.reply = hang
        await trio.testing.wait_all_tasks_blocked()
        outcome: list[Claim | None] = []

        async def ask() -> None:
            outcome.append(await server.worker.registry.claim(wish))

        nursery.start_soon(ask)
        await asked.wait()
        server.parent.post({"answer": 1, "claim": write_claim(claim)})
        server.change_ports(server.number)
        released = await server.wait_heard("release")
        assert (released["key"], released["fence"]) == (list(claim.key), 9)
        await trio.testing.wait_all_tasks_blocked()
        assert outcome == [None]


async def test_a_worker_accepts_nobody_before_its_server_serves(
    tmp_path: Path, nothing_left: None
) -> None:
    """Another server still does, at the same sockets."""
    async with scene(tmp_path / "state", held=True) as server:
        server.lend(5)
        async with await trio.open_tcp_stream("127.0.0.1", server.number):
            (lease,) = server.worker.context.leases
            await trio.sleep(0.2)
            assert not lease.queue.present
            server.parent.post({"what": "open"})
            with trio.fail_after(5):
                while not lease.queue.present:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)


async def test_what_was_inherited_is_let_go_of_when_the_parent_is_gone(
    tmp_path: Path, nothing_left: None
) -> None:
    """It is still another server's, which goes on with it."""
    theirs, ours = open_tcp_pair()
    with theirs, ours:
        async with scene(tmp_path / "state", held=True) as server:
            number = server.number
            wish = Wish(key=("user", "other"), services=(ServiceRequest(),), limits=Limits())
            claim = Claim(wish=wish, points=(number,), fence=9, holder="w1")

            async def grant(_: dict[str, Any]) -> dict[str, Any]:
                return {"claim": write_claim(claim)}

            server.parent.reply = grant
            server.parent.post({"what": "room", "slots": 2, "ports": 1})
            visitor = {
                "number": 7,
                "address": ["192.0.2.1", 4711],
                "visited": ["127.0.0.1", number],
                "service": 0,
                "name": None,
                "arrived": 1.0,
                "since": 1.0,
                "tries": 0,
                "session": None,
                "left": False,
                "open": True,
                "stream": {
                    **dict.fromkeys(("taken", "given", "acknowledged", "told", "confirmed"), 1),
                    **dict.fromkeys(("took_end", "gave_end", "over", "finished"), False),
                    "attempt": 1,
                    "since": 1.0,
                    "failure": None,
                    "buffer": {"size": 1000, "start": 1, "held": 0, "used_up": False},
                },
            }
            lease = {"wish": write_wish(wish), "points": [number], "token": "t", "vacant": 0.0}
            estate = {"leases": [{**lease, "visitors": [visitor]}]}
            here, there = socket.socketpair()
            with closing(Wire(here)) as wire:
                server.parent.pass_on(INHERIT, there)
                give = partial(wire.send, "estate", estate, descriptors=[ours.fileno()], within=5)
                await trio.to_thread.run_sync(give)
                taken = await trio.to_thread.run_sync(partial(wire.receive, within=5))
            assert (taken.word, taken.values) == ("taken", {"clients": 1, "visitors": 1})
        theirs.setblocking(True)
        theirs.sendall(b"still")
        ours.setblocking(True)
        assert ours.recv(10) == b"still"
        ours.close()
        assert theirs.recv(10) == b"", "an end, and no reset"


async def wait_count(count: int) -> None:
    """Until this process has so many descriptors."""
    with trio.fail_after(5):
        while descriptors() != count:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)


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
