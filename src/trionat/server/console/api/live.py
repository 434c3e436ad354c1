"""What changes, told as it does."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio
from starlette.responses import Response

from trionat.server.console.api.events import EventRow
from trionat.server.console.api.log import read_records
from trionat.server.console.api.server import server_row
from trionat.server.console.live import event
from trionat.server.console.operation import Call, Nothing, Operation
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from starlette.types import Message, Receive, Scope, Send

    from trionat.server.console.api.log import Record
    from trionat.server.console.live import Tick, Ticks, Topic

_SNAPSHOTS: Final[tuple[Topic, ...]] = ("server", "sessions", "visitors")
_ACCOUNTS: Final[tuple[Topic, ...]] = ("users", "tokens")
_LOG: Final = "log"
_EVENT: Final = "event"
_FOR_ADMINS: Final = frozenset({_LOG, _EVENT})
_TOPICS: Final = (*_SNAPSHOTS, *_ACCOUNTS, _EVENT, _LOG)

_LOOK_INTERVAL: Final = 1.0
_SIGN_OF_LIFE: Final = 15.0
"""Seconds after which a stream in which nothing happens says so."""

_DOUBT_INTERVAL: Final = 2.0
"""Seconds between two looks whether who reads may still do so."""

_MOST_RECORDS: Final = 200
"""Log records, or events, of one second that are told of. Of more events the reader hears `reset`, and of more records it gets the newest: to fetch all of the log anew each second would be more still."""


@attrs.frozen(kw_only=True)
class Topics:
    """What to tell of."""

    topics: str = field(
        "server,sessions,visitors", about="separated by commas: " + ", ".join(_TOPICS)
    )
    csrf: str = field(
        "", secret=True, about="in the place of X-CSRF-Token, which an EventSource cannot send"
    )


@attrs.define(eq=False)
class EventStream(Response):
    """An answer that goes on until its reader leaves, or may not read any more."""

    call: Call[Topics, Nothing]
    topics: tuple[str, ...]
    still_may: Callable[[], Awaitable[bool]]
    _told: dict[Ticks, int] = attrs.field(init=False, factory=lambda: {})
    _told_of_log: int = attrs.field(init=False, default=0)
    _told_of_events: int = attrs.field(init=False, default=0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell."""
        context = self.call.context
        with context.readers.counting(self.call.principal):
            if not await _read_body(receive):
                return
            with context.sampler.watching(), self._watching_accounts():
                await send(_START)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_wait_gone, receive, nursery.cancel_scope)
                    await self._tell(send)
                    nursery.cancel_scope.cancel("may not read any more")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextmanager
    def _watching_accounts(self) -> Generator[None]:
        if self._asks_of_accounts:
            with self.call.context.directory.watching():
                yield
        else:
            yield

    @property
    def _asks_of_accounts(self) -> bool:
        return any(topic in self.topics for topic in _ACCOUNTS)

    async def _tell(self, send: Send) -> None:
        context = self.call.context
        await context.sampler.look()
        if self._asks_of_accounts:
            await context.directory.wait_first()
        self._told = {each: each.number for each in (context.live, context.directory)}
        self._told_of_log = context.tail.newest
        self._told_of_events = context.delivery.journal.last
        said = looked = trio.current_time()
        text = event("reset", {"topics": list(self.topics)})
        while True:
            now = trio.current_time()
            if not text and now - said >= _SIGN_OF_LIFE:
                text = b": nothing new\n\n"
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})
                said = now
            if now - looked >= _DOUBT_INTERVAL:
                looked = now
                if not await self.still_may():
                    return
            if self._told[context.live] == context.live.number:
                with trio.move_on_after(_LOOK_INTERVAL):
                    await context.live.changed.wait()
            text = await self._news(context.live, _SNAPSHOTS)
            text += await self._news(context.directory, _ACCOUNTS)
            text += self._events() + await self._log()

    async def _news(self, source: Ticks, topics: tuple[Topic, ...]) -> bytes:
        ticks = source.since(self._told[source])
        asked: list[Topic] = [topic for topic in topics if topic in self.topics]
        if not asked:
            self._told[source] = source.number
            return b""
        if ticks is None:
            self._told[source] = source.number
            return event("reset", {"topics": asked})
        text = b""
        for tick in ticks:
            self._told[source] = tick.number
            for topic in asked:
                if topic != "server" or tick is ticks[-1]:
                    text += await self._words(tick, topic)
        return text

    async def _words(self, tick: Tick, topic: Topic) -> bytes:
        context, principal = self.call.context, self.call.principal
        return await tick.words(topic, principal, partial(server_row, context))

    def _events(self) -> bytes:
        journal, above = self.call.context.delivery.journal, self._told_of_events
        if _EVENT not in self.topics or journal.last == above:
            return b""
        found = journal.newest(_MOST_RECORDS + 1, above=above)
        self._told_of_events = journal.last
        if len(found) > _MOST_RECORDS:
            return event("reset", {"topics": [_EVENT]})
        return b"".join(event(_EVENT, attrs.asdict(EventRow.of(each))) for each in reversed(found))

    async def _log(self) -> bytes:
        tail = self.call.context.tail
        if _LOG not in self.topics or tail.newest == self._told_of_log:
            return b""
        above, self._told_of_log = self._told_of_log, tail.newest
        above = max(above, self._told_of_log - _MOST_RECORDS)
        write = partial(_write_records, partial(read_records, tail, above=above), self._told_of_log)
        return await trio.to_thread.run_sync(write, limiter=self.call.context.scribe)


_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"x-accel-buffering", b"no"),  # nginx would keep events until a buffer is full
    ],
}


def _write_records(read: Callable[[], list[Record]], newest: int) -> bytes:
    records = [attrs.asdict(record) for record in read() if record.number <= newest]
    return b"".join(event(_LOG, record) for record in records)


async def _read_body(receive: Receive) -> bool:
    """Read what was sent with the request before anything is answered, so that this can be that it is too large or too slow; tell whether the reader is still there.

    Raises:
        Problem: it is.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        if not message.get("more_body", False):
            return True


async def _wait_gone(receive: Receive, stream: trio.CancelScope) -> None:
    with suppress(Problem):  # of a body that nobody wants: the answer has begun
        while (await receive())["type"] != "http.disconnect":
            pass
    stream.cancel("the reader has gone")


async def _open(call: Call[Topics, Nothing]) -> Response:
    await trio.lowlevel.checkpoint()
    topics = tuple(dict.fromkeys(call.parameters.topics.split(",")))
    for topic in topics:
        if topic not in _TOPICS:
            known = ", ".join(_TOPICS)
            raise Problem(Code.INVALID, f"{topic!r} is none of {known}", field="topics")
        if topic in _FOR_ADMINS and not call.principal.is_admin:
            raise Problem(Code.FORBIDDEN, f"{topic} is for administrators")
    return EventStream(call, topics, call.still_may)


OPERATIONS = (
    Operation(
        method="GET",
        path="/live",
        name="watch",
        summary="What changes, as server-sent events: server, sessions, visitors, users, tokens, event, log, and reset where the lists have to be fetched anew",
        parameters=Topics,
        answer=str,
        media_type="text/event-stream",
        handle=_open,
    ),
)
