"""What is done to clients and their connections: each disturbance is one function, which returns when the client is well again.

All of it is written into the book before it is done, so that the book can explain who is cut off, and nobody else.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests.e2e import services
from trionat.server.admin.messages import (
    AskStatus,
    AskTasks,
    Kicked,
    KickVisitor,
    Request,
    decode_answer,
    encode_request,
)
from trionat.server.admin.socket import call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from random import Random
    from typing import Any

    from tests.faults.proxy import Passage
    from tests.soak.book import Book
    from tests.soak.post import Post

HICCUP: Final = 2.0
"""Seconds for which a client may be stopped without anybody being cut off."""
SLEEP: Final = 12.0
"""Seconds after which the server has given up a client that is stopped: its PeerTimeout of 8 s, and more than is needed. But its
visitors go on afterwards: they wait for ResumeWait, which is 30 s."""


def _end(passage: Passage, how: str) -> None:
    with suppress(OSError):  # it is ending already
        if how == "closed":
            passage.close()
        else:
            passage.reset()


@attrs.frozen
class Operator:
    """Whoever sits at the machine of the server, whose state folder is `state`."""

    state: Path
    book: Book

    async def kick(self, uid: int) -> None:
        """Run `trionat kick`."""
        command = ("kick", "--session", str(uid), "--state-dir", self.state)
        result = await services.run_trionat(*command, cwd=self.state)
        if result.returncode != 0:
            self.book.fault("kick", result.stderr.decode().strip())

    async def ask(self, request: Request) -> dict[str, Any]:
        """Ask as a command does, without one: a process takes its time."""
        return decode_answer(
            await trio.to_thread.run_sync(call, self.state, encode_request(request))
        )

    async def count_tasks(self) -> int:
        """Return how many tasks and nurseries the server has."""

        def count(branch: dict[str, Any]) -> int:
            return 1 + sum(map(count, branch["branches"]))

        return count(await self.ask(AskTasks()))


@attrs.define(eq=False, kw_only=True)
class Trouble:
    """Disturbs clients until `calm` is set, each of them with about `pause` seconds from one disturbance to the next.

    Clients are started by tasks in `nursery`.
    """

    operator: Operator
    book: Book
    rng: Random
    nursery: trio.Nursery
    pause: float
    calm: trio.Event = attrs.field(factory=trio.Event)

    async def make(self, actions: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Do one of these after another, at random, and return when it is to be calm and the last is over."""
        while True:
            with trio.move_on_after(self.rng.uniform(0.5, 1.5) * self.pause):
                await self.calm.wait()
                return
            await self.rng.choice(actions)()

    # -- connections -------------------------------------------------------------------------------------------------

    def cuts(self, post: Post) -> list[Callable[[], Awaitable[None]]]:
        """Return what can be done to a client that is reached through a proxy and never ends."""
        return [
            partial(self._cut_all, post),
            partial(self._cut_tunnel, post),
            partial(self._cut_tunnel, post),
            partial(self._silence, post),
            partial(self._hiccup, post),
        ]

    async def _cut_all(self, post: Post) -> None:
        assert post.port is not None
        assert post.proxy is not None
        before = post.connections
        how = self.rng.choice(["closed", "reset"])
        with self.book.spell(f"all connections {how}", post.port, most=0):
            for passage in list(post.proxy.passages):
                _end(passage, how)
            await post.wait_connected(before)

    async def _cut_tunnel(self, post: Post) -> None:
        """One connection, and not the oldest, which is the control connection: the session stays, and nobody is cut off."""
        assert post.proxy is not None
        self.book.disturbances["one tunnel reset"] += 1
        if len(post.proxy.passages) > 1:
            _end(self.rng.choice(post.proxy.passages[1:]), "reset")
        await trio.lowlevel.checkpoint()

    async def _silence(self, post: Post) -> None:
        assert post.port is not None
        assert post.proxy is not None
        before = post.connections
        silent = list(post.proxy.passages)
        with self.book.spell("connections silent", post.port, most=0):
            for passage in silent:
                passage.freeze()
            await post.wait_connected(before)
            for passage in silent:
                _end(passage, "reset")

    # -- processes ---------------------------------------------------------------------------------------------------

    async def _hiccup(self, post: Post) -> None:
        """Nobody may be cut off, so this is no spell."""
        self.book.disturbances["client stopped for 2 s"] += 1
        await self._stop(post, HICCUP)

    async def sleep(self, post: Post) -> None:
        """Stop a client until it has lost its session; its visitors wait for it."""
        if not post.up or post.port is None:  # which is in the book already
            return
        before = post.connections
        with self.book.spell(f"client stopped for {SLEEP:g} s", post.port, most=0):
            await self._stop(post, SLEEP)
            await post.wait_connected(before)

    async def _stop(self, post: Post, seconds: float) -> None:
        post.signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            post.signal(signal.SIGCONT)

    async def kill(self, post: Post) -> None:
        """SIGKILL a client, and start it again: its port has waited for it, and so have visitors."""
        if not post.up or post.port is None:
            return
        before = post.connections
        with self.book.spell("client killed", post.port):
            post.code = -signal.SIGKILL
            post.signal(signal.SIGKILL)
            await post.wait_end()
            await trio.sleep(self.rng.uniform(0, 2))
            self.nursery.start_soon(post.live)
            await post.wait_connected(before)

    async def evict(self, one: Post, other: Post) -> None:
        """Start whichever of two clients of one identity does not run: it takes the other's place, which ends."""
        old, new = (one, other) if one.lives else (other, one)
        if not old.up or old.port is None or new.lives:
            return
        before = new.connections
        with self.book.spell("client evicted", old.port):
            old.code = 5
            self.nursery.start_soon(new.live)
            await new.wait_connected(before)
            await old.wait_end()

    async def kick(self, posts: list[Post]) -> None:
        """Kick a session out of several clients, one of which waits for a slot: that one gets it, and who was kicked queues up anew."""
        up = [post for post in posts if post.up]
        waiting = [post for post in posts if post.queued]
        if not up or not waiting:
            return
        kicked, queued = self.rng.choice(up), waiting[0]
        port, before = kicked.port, queued.connections
        assert port is not None
        assert kicked.uid is not None
        with self.book.spell("session kicked", port):
            kicked.code = 4
            await self.operator.kick(kicked.uid)
            await kicked.wait_end()
            await queued.wait_connected(before)
            if queued.port != port:
                self.book.fault("queue", f"{queued.name} has port {queued.port}, not {port}")
        self.nursery.start_soon(kicked.live)
        await kicked.wait_until(lambda: kicked.queued, "a place in the queue")

    # -- visitors ----------------------------------------------------------------------------------------------------

    async def kick_visitor(self) -> None:
        """Kick any visitor that is served."""
        status = await self.operator.ask(AskStatus())
        served = [
            visitor
            for session in status["sessions"]
            for visitor in session["visitors"]
            if not visitor["waiting"]
        ]
        if not served:
            return
        visitor = self.rng.choice(served)
        with self.book.spell("visitor kicked", visitor["address"], most=1) as spell:
            answer = await self.operator.ask(KickVisitor(visitor["number"]))
        if not Kicked.of(answer).anybody:  # it had left before
            spell.most = 0
