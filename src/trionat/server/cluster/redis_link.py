"""The connection to Redis. One task owns the client library's client; everybody else asks that task.

The library (coredis) is fenced in, since some of its ways to fail cannot be told apart from outside: a blocking command that is cancelled
costs a connection for ever, a connection that is lost repeats writes, a frozen Redis is noticed by nothing. So no command blocks, none is
repeated, none is cancelled alone, and each has a deadline: the first thing that goes wrong, whatever it is, ends the whole client, and a new one is
made. One life of a client is a generation.

News come on a connection of their own, which may fall silent unnoticed. So we publish to ourselves, and miss that.
"""

from __future__ import annotations

import importlib
import logging
import random
import warnings
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs
import trio

from trionat.errors import RegistryAwayError, StartupError, TrionatError
from trionat.libraries import install_hint
from trionat.log import get_logger
from trionat.server.cluster.primary import (
    DEADLINE,
    find_primary,
    is_ours,
    look,
    open_client,
    words_of,
)
from trionat.server.cluster.scripts import ALL, CHANNEL, KEYS, PREFIX
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import coredis

    from trionat.config.cluster import ClusterConfig
    from trionat.server.cluster.scripts import Script

    Client: TypeAlias = coredis.Redis[bytes]

log = get_logger(__name__)

_ECHO: Final = 1.0
"""Seconds between two messages to ourselves; as long as `DEADLINE` without one, and the connection is given up."""

_MOST_WAITING: Final = 4096
"""Requests that wait for their turn; each takes half a millisecond, and a round trip."""

_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0
"""Seconds between two generations. The longest has to be well below `SETTLE`, so that all nodes are back before anybody claims."""

Answer: TypeAlias = list[bytes]


def require_library() -> None:
    """Import the client library, which takes 0.4 s; to be called before the loop runs.

    Raises:
        StartupError: It is not installed.
    """
    try:
        importlib.import_module("coredis")  # 18 MiB, only for nodes of a cluster
    except ImportError as error:
        raise StartupError(
            f"the section Cluster needs the library coredis ({error}): {install_hint('cluster')}"
        ) from error
    # It tells with a traceback what we tell in a line.
    silenced = logging.getLogger("coredis")
    silenced.addHandler(logging.NullHandler())
    silenced.propagate = False
    warnings.filterwarnings("ignore", module=r"coredis(\..*)?")


@attrs.define(eq=False)
class _Request:
    """A call that waits for its answer. `on_late` gets the answer where nobody waits for it any more."""

    script: Script
    args: tuple[str | bytes | int, ...]
    on_late: Callable[[Answer], None] | None = None
    answered: trio.Event | None = None
    answer: Answer | None = None
    failure: str = ""
    abandoned: bool = False

    def settle(self, answer: Answer | None, failure: str = "") -> None:
        self.answer, self.failure = answer, failure
        if self.answered is not None:
            self.answered.set()
        if self.abandoned and answer is not None and self.on_late is not None:
            self.on_late(answer)


@attrs.define(eq=False)
class _Lane:
    """Requests that are asked in their order, one at a time; at most `most` wait."""

    most: int
    _asked: _Request | None = attrs.field(init=False, default=None)
    _send: trio.MemorySendChannel[_Request] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[_Request] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[_Request](self.most)

    def put(self, request: _Request) -> None:
        """Raises trio.WouldBlock: too many wait."""
        self._send.send_nowait(request)

    async def serve(self, ask: Callable[[_Request], Awaitable[Answer]]) -> None:
        """Ask one after another, until the first error, or until it is closed."""
        async for request in self._receive:
            self._asked = request
            answer = await ask(request)
            self._asked = None
            request.settle(answer)

    def close(self) -> None:
        """Nobody is asked any more: settle all. Idempotent."""
        self._send.close()
        if self._asked is not None:
            self._asked.settle(None, "Redis did not answer")
            self._asked = None
        while True:
            try:
                request = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            request.settle(None, "Redis is away")


@attrs.define(eq=False)
class RedisLink:
    """See the module. `run` has to run.

    `attend` is run in every generation, once commands and news work: when it returns or raises `RegistryAwayError`, that ends the
    generation. What else it raises comes out of `run`. `on_news` gets every message, and must return at once. `run_id` tells one life of the Redis server
    from the next. `reason` says why there is no generation now; it is empty while there is one.
    """

    config: ClusterConfig
    attend: Callable[[], Awaitable[None]]
    on_news: Callable[[bytes], None]
    run_id: str = attrs.field(init=False, default="")
    reason: str = attrs.field(init=False, default="it has not been asked yet")
    _echo_channel: str = attrs.field(init=False)
    _heard: float = attrs.field(init=False, default=0.0)
    _listening: trio.Event = attrs.field(init=False, factory=trio.Event)
    _requests: _Lane | None = attrs.field(init=False, default=None)
    _beats: _Lane | None = attrs.field(init=False, default=None)
    _overflowed: trio.Event = attrs.field(init=False, factory=trio.Event)
    _scope: trio.CancelScope | None = attrs.field(init=False, default=None)
    _told_bugs: set[str] = attrs.field(init=False, factory=lambda: set())
    _digests: dict[Script, Any] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._echo_channel = f"{PREFIX}echo:{random.getrandbits(64):x}"  # no secret

    @property
    def is_up(self) -> bool:
        """Whether there is a generation that can be asked."""
        return self._requests is not None

    async def call(
        self,
        script: Script,
        *args: str | bytes | int,
        on_late: Callable[[Answer], None] | None = None,
        is_beat: bool = False,
    ) -> Answer:
        """Run a script, behind all that were sent before, and return its answer. A beat waits for nothing but the beat before: many logins at once must not kill a node.

        Cancelled, it may run nevertheless: `on_late` gets the answer then.

        Raises:
            RegistryAwayError: it did not answer in time, or cannot be asked. The script may have run.
        """
        request = _Request(script, args, on_late, trio.Event())
        try:
            self._put(request, self._beats if is_beat else self._requests)
        except trio.WouldBlock:
            raise RegistryAwayError("Redis is away: too much waits for it") from None
        assert request.answered is not None, "made with it"  # noqa: S101 - for type checkers
        try:
            await request.answered.wait()
        except trio.Cancelled:
            if request.answer is not None:
                if on_late is not None:
                    on_late(request.answer)
            else:
                request.abandoned = True
            raise
        if request.answer is None:
            raise RegistryAwayError(request.failure)
        return request.answer

    def send(self, script: Script, *args: str | bytes | int) -> bool:
        """Run a script soon, behind all that were sent before, whatever it answers. False: nobody can be asked now.

        Where too much waits already, the generation ends: in the next one, all that this node holds is told anew, so that nothing is missed.
        """
        try:
            self._put(_Request(script, args), self._requests)
        except RegistryAwayError:
            return False
        except trio.WouldBlock:
            self._overflowed.set()
            return False
        return True

    def offer(self, script: Script, *args: str | bytes | int) -> bool:
        """As `send`, for what may be lost: False as well where too much waits."""
        try:
            self._put(_Request(script, args), self._requests)
        except (RegistryAwayError, trio.WouldBlock):
            return False
        return True

    def _put(self, request: _Request, lane: _Lane | None) -> None:
        if lane is None or self._overflowed.is_set():
            raise RegistryAwayError(f"Redis is away: {self.reason or 'too much waits for it'}")
        lane.put(request)

    async def run(self) -> None:
        """Keep a generation alive, until cancelled. Every reason is logged, but once while it stays the same."""
        pause, told = _SHORTEST_PAUSE, ""
        while True:
            since = trio.current_time()
            reason = await self.live()
            # The library makes a lost connection of a cancellation.
            await trio.lowlevel.checkpoint()
            if trio.current_time() - since > 2 * DEADLINE:
                pause, told = _SHORTEST_PAUSE, ""
            if told != reason:
                told = reason
                log.warning("Redis is away: what is up goes on", reason=reason)
            await trio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - nothing to guess
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def live(self) -> str:
        """Live for one generation, and return why it has ended."""
        found: list[BaseException] = []
        try:
            await self._generation()
        except* Exception as group:  # noqa: BLE001 - whatever it is, a new client is made
            found = list(leaves(group))
        for error in found:
            if isinstance(error, TrionatError) and not isinstance(error, RegistryAwayError):
                raise error
            if is_ours(error) and (text := repr(error)) not in self._told_bugs:
                self._told_bugs.add(text)
                log.exception("internal error", exc_info=error)  # noqa: LOG004 - it was caught above
        log.debug("the link to Redis has ended", errors=[repr(error) for error in found])
        ours = [str(error) for error in found if isinstance(error, RegistryAwayError)]
        self.reason = next(iter(ours or map(words_of, found)), "the connection has ended")
        return self.reason

    async def _generation(self) -> None:
        primary = await find_primary(self.config)
        client = open_client(self.config, primary)
        requests, beats = _Lane(_MOST_WAITING), _Lane(1)
        self._listening, self._heard = trio.Event(), trio.current_time()
        self._overflowed = trio.Event()

        async def ask(request: _Request) -> Answer:
            with trio.fail_after(DEADLINE):
                answer: Any = await client.evalsha(
                    self._digests[request.script], list(KEYS), list(request.args)
                )
            return _checked(answer)

        try:
            with trio.CancelScope() as scope:
                self._scope = scope
                async with client:
                    async with trio.open_nursery() as nursery:
                        try:
                            with trio.fail_after(DEADLINE):
                                await self._greet(client)
                            nursery.start_soon(requests.serve, ask, name="ask")
                            nursery.start_soon(beats.serve, ask, name="ask for beats")
                            nursery.start_soon(self._listen, client, name="hear news")
                            nursery.start_soon(self._echo, client, name="miss news")
                            nursery.start_soon(self._watch_overflow, name="watch what waits")
                            with trio.fail_after(DEADLINE):
                                await self._listening.wait()
                            self._requests, self._beats, self.reason = requests, beats, ""
                            await self.attend()
                        finally:
                            # Before the client is left, which may take a while where Redis hangs.
                            self._close(requests, beats)
                            scope.cancel("the generation is over")
        finally:
            self._close(requests, beats)

    def _close(self, *lanes: _Lane) -> None:
        self._requests = self._beats = None
        for lane in lanes:
            lane.close()

    async def _watch_overflow(self) -> None:
        await self._overflowed.wait()
        raise RegistryAwayError("too much waits for it")

    async def _greet(self, client: Client) -> None:
        self.run_id = (await look(client)).run_id
        for script in ALL:
            self._digests[script] = await client.script_load(script.text)

    async def _listen(self, client: Client) -> None:
        channels = [CHANNEL, self._echo_channel]
        echo = self._echo_channel.encode()
        async with client.pubsub(
            channels=channels, ignore_subscribe_messages=True, retry_policy=None
        ) as subscription:
            async for message in subscription:
                self._heard = trio.current_time()
                if _bytes(message["channel"]) == echo:
                    self._listening.set()
                else:
                    self.on_news(_bytes(message["data"]))
        raise RegistryAwayError("the connection for news was closed")

    async def _echo(self, client: Client) -> None:
        while True:
            with trio.fail_after(DEADLINE):
                await client.publish(self._echo_channel, "1")
            await trio.sleep(_ECHO if self._listening.is_set() else _ECHO / 20)
            if trio.current_time() - self._heard > DEADLINE + _ECHO:
                raise RegistryAwayError("no news come any more")


def _checked(answer: object) -> Answer:
    if not isinstance(answer, list | tuple) or not answer:
        raise RegistryAwayError("Redis gave a strange answer")
    return [_bytes(part) for part in cast("list[object]", answer)]


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode()
