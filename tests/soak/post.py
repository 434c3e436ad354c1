"""One client: a process, the next one after it, and where its visitors find it."""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.e2e import running
from tests.soak.watch import Ears

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.proxy import Proxy
    from tests.soak.book import Book

COMES_WITHIN: Final = 60.0
"""Seconds for whatever we wait for: the product promises 10 at most, a busy machine takes its time, and a process has to start."""


@attrs.define(eq=False, kw_only=True)
class Post:
    """A client under one identity; `words` are what `trionat connect` is told besides.

    Those of a `group` take each other's place. `lasting` says that its process is there from beginning to end, `mortal` that it is
    killed now and then, and that its port waits for it then. `proxy` is the way it takes to the server, where that can be cut; `inside` is what runs it. `port` is where visitors go, None while it has none; `uid` its session; `connections` how many
    it had so far; `queued` whether it waits for one. `code` is the exit code that its end is to have.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    book: Book
    identity: str
    group: str
    lasting: bool = False
    mortal: bool = False
    proxy: Proxy | None = None
    inside: tuple[str, ...] = ()
    code: int = 0
    port: int | None = None
    uid: int | None = None
    connections: int = 0
    queued: bool = False
    process: trio.Process | None = None
    _lives: int = 0
    _stopping: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def lives(self) -> bool:
        """Whether there is a process."""
        return self.process is not None

    @property
    def up(self) -> bool:
        """Whether it has a session."""
        return self.uid is not None

    async def live(self) -> None:
        """Run one process until it ends."""
        self._lives += 1
        self.code = 0
        folder = self.folder / f"{self.name}-{self._lives}"
        flags = ("--identity", self.identity)
        try:
            async with running.client_process(
                folder, *self.words, *flags, inside=self.inside
            ) as client:
                self.process = client.process.process
                ears = Ears(self.name, client.process.errors, self.book)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ears.listen)
                    await self._follow(client)
                    nursery.cancel_scope.cancel("it has ended")
                if (code := await client.wait()) != self.code:
                    self.book.fault("ended", f"{self.name} with {code} instead of {self.code}")
        except AssertionError as error:
            self.book.fault("in a log", f"{self.name}: {error}")
        self.process, self.uid, self.queued = None, None, False
        if not self.mortal:
            self.port = None
        self._change()

    async def _follow(self, client: running.Client) -> None:
        """Follow what it says until it ends."""
        while True:
            try:
                event = await client.process.next_event(within=math.inf)
            except pytest.fail.Exception:  # that was all
                return
            match event["event"]:
                case "connected":
                    client.connected = event
                    self.port, self.uid = client.port(), event["uid"]
                    self.connections += 1
                    self.queued = False
                case "queued":
                    self.queued = True
                case "disconnected":
                    self._lose_session(event["reason"])
                case "draining":  # the end of the session follows, and has to have its cause
                    pass
                case other:
                    self.book.fault("said", f"{self.name}: {other}")
            self._change()

    def _lose_session(self, reason: str) -> None:
        self.uid = None
        explained = self._stopping or self.port is None or self.book.find_spell(self.port)
        if not explained:
            self.book.fault("session lost", f"{self.name}, port {self.port}: {reason}")

    async def wait_until(self, condition: Callable[[], bool], what: str) -> bool:
        """Wait for a change that makes it true; note a fault, and return False, if it does not come."""
        with trio.move_on_after(COMES_WITHIN):
            while not condition():
                await self._changed.wait()
            return True
        self.book.fault("never came", f"{self.name}: {what} within {COMES_WITHIN:g} s")
        return False

    async def wait_settled(self) -> None:
        """Wait until it has a session, or a place in the queue."""
        await self.wait_until(lambda: self.up or self.queued, "a session or a place in the queue")

    async def wait_connected(self, after: int) -> None:
        """Wait for a session later than the first `after` ones."""
        await self.wait_until(lambda: self.connections > after, "a session")

    async def wait_end(self) -> None:
        """Wait until its process has ended."""
        await self.wait_until(lambda: not self.lives, "its end")

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does."""
        self._stopping = True
        if self.process is not None:
            self.signal(signal.SIGINT)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
