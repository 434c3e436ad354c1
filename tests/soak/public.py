"""The public: so many visitors at a time, who come and go at random and look closely at what they get."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests.e2e import running, services
from tests.soak.book import Book, Cut
from tests.soak.talk import DIGEST, ECHO, SEND, CutError, Visitor, WrongBytesError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from tests.soak.post import Post

STUCK_AFTER: Final = 120.0
"""Seconds after which a conversation counts as stuck; the longest take 20 s where nothing holds them up."""

SMALL: Final = (1, 16 * 1024)
BULK: Final = (64 * 1024, 4 * 1024 * 1024)
"""Bytes, from and to; small ones are as likely as large ones, on a logarithmic scale."""

WEIGHTS: Final = {
    "request": 45,
    "idle": 35,
    "upload": 4,
    "download": 4,
    "stream": 3,
    "reset": 5,
    "silent": 4,
}
"""How many of a hundred visitors come for what."""


async def _connect_here(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream(services.HOST, port)


@attrs.frozen
class Door:
    """Where visitors come in. A server that is alone has one, without a name. `ends_resets` says that a reset on one side is an end on the other."""

    name: str = ""
    connect: Callable[[int], Awaitable[trio.SocketStream]] = _connect_here
    ends_resets: bool = False

    async def find(self, address: str) -> str:
        """Return the name of the door by which the visitor with this address has come in the end."""
        return self.name


@attrs.define(eq=False)
class Public:
    """Visits any of `posts` that has a port, by any of the `doors`, and writes down in `book` how it went.

    `leaving` lets everybody finish and nobody come. `patience` is for how many seconds somebody who is idle says nothing, at most.
    """

    posts: list[Post]
    book: Book
    rng: Random
    doors: tuple[Door, ...] = (Door(),)
    patience: float = 10.0
    leaving: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, visitors: int) -> None:
        """Keep up to so many of them there until they are to leave, and return when the last one has left."""
        async with trio.open_nursery() as nursery:
            for _ in range(visitors):
                nursery.start_soon(self._come_again_and_again)

    async def _come_again_and_again(self) -> None:
        while not self.leaving.is_set():
            with trio.move_on_after(self.rng.uniform(0, 2)):
                await self.leaving.wait()
                return
            if ports := self._ports():
                port, post = self.rng.choice(list(ports.items()))
                [kind] = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
                await self._visit(port, post, kind)

    def _ports(self) -> dict[int, Post]:
        return {post.port: post for post in self.posts if post.port is not None}

    async def _visit(self, port: int, post: Post, kind: str) -> None:
        began = trio.current_time()
        visitor: Visitor | None = None
        address = "nowhere"
        door = self.rng.choice(self.doors)
        with trio.CancelScope(deadline=began + STUCK_AFTER) as scope:
            try:
                async with await door.connect(port) as stream:
                    address = running.name_of(stream)
                    visitor = Visitor(stream, self.rng.randrange(2**31))
                    await self._converse(kind, visitor, may_end=post.mortal or door.ends_resets)
            except (CutError, OSError) as error:
                heard = visitor.heard if visitor is not None else 0
                how = str(error)
                found = await door.find(address)
                self.book.add_cut(
                    Cut(
                        kind=kind,
                        port=port,
                        address=address,
                        began=began,
                        heard=heard,
                        how=how,
                        door=found,
                        way=door.name,
                    )
                )
            except WrongBytesError as error:
                self.book.fault("wrong bytes", f"{kind} on port {port} from {address}: {error}")
            else:
                if kind in {"reset", "silent"}:
                    self.book.left[kind] += 1
                else:
                    place = (door.name, port) if door.name else port
                    self.book.add_served(kind, place, visitor.said + visitor.heard)
        if scope.cancelled_caught:
            self.book.fault("stuck", f"{kind} on port {port} from {address}")

    async def _converse(self, kind: str, visitor: Visitor, *, may_end: bool) -> None:
        converse: Callable[[Visitor, bool], Awaitable[None]] = getattr(self, f"_{kind}")
        await converse(visitor, may_end)

    async def _request(self, visitor: Visitor, may_end: bool) -> None:
        await self._chat(visitor, may_end, exchanges=self.rng.randrange(1, 5), pause=1.0)

    async def _idle(self, visitor: Visitor, may_end: bool) -> None:
        await self._chat(visitor, may_end, exchanges=self.rng.randrange(2, 4), pause=self.patience)

    async def _chat(self, visitor: Visitor, may_end: bool, *, exchanges: int, pause: float) -> None:
        sizes = [self._size(SMALL) for _ in range(exchanges)]
        await visitor.wish(ECHO, sum(sizes), may_end=may_end)
        for number, size in enumerate(sizes):
            if number:
                await visitor.wait(self.rng.uniform(0, pause))
            await visitor.exchange(size)
        await visitor.end()
        await visitor.finish()

    async def _stream(self, visitor: Visitor, may_end: bool) -> None:
        size = self._size(BULK)
        await visitor.wish(ECHO, size, may_end=may_end)
        await visitor.exchange(size)
        await visitor.end()
        await visitor.finish()

    async def _upload(self, visitor: Visitor, may_end: bool) -> None:
        size = self._size(BULK)
        await visitor.wish(DIGEST, size, may_end=may_end)
        await visitor.upload(size)
        await visitor.finish()

    async def _download(self, visitor: Visitor, may_end: bool) -> None:
        size = self._size(BULK)
        await visitor.wish(SEND, size, may_end=may_end)
        if self.rng.random() < 0.5:
            await visitor.end()
        await visitor.hear(size)
        await visitor.finish()

    async def _reset(self, visitor: Visitor, may_end: bool) -> None:
        """Go away in the middle of a stream, in either direction."""
        size = self._size(BULK)
        part = self.rng.randrange(size)
        if self.rng.random() < 0.5:
            await visitor.wish(ECHO, size, may_end=may_end)
            await visitor.exchange(part)
        else:
            await visitor.wish(SEND, size, may_end=may_end)
            await visitor.hear(part)
        visitor.leave()

    async def _silent(self, visitor: Visitor, _may_end: bool) -> None:
        """Say nothing at all, and leave."""
        await visitor.wait(self.rng.choice([0.0, 1.0]))

    def _size(self, limits: tuple[int, int]) -> int:
        least, most = limits
        return int(least * math.pow(most / least, self.rng.random()))
