"""The task that tells one receiver what has happened, one message after another, and again until it has taken it."""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.config.events import JSON
from trionat.log import get_logger
from trionat.server.events.event import DROPPED, LEFT_OUT, TEST, Event
from trionat.server.events.journal import Kept
from trionat.server.events.post import DeliveryError, post
from trionat.server.events.template import Message, compose, why_not_taken

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from trionat.config.events import WebhookConfig
    from trionat.server.events.journal import Journal

log = get_logger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 600.0
"""Seconds before a message is sent again; each failure doubles it."""

_MOST_TOGETHER: Final = 20
"""Events that a message of a chat may have."""

_DISK_WAIT: Final = 1.0
"""Seconds for the disk before the next message is sent."""

_GONE: Final = 410
"""What a receiver says that wants to hear nothing any more (RFC 9110 15.5.11)."""


@attrs.frozen
class Outcome:
    """What came of a message: `reason` says why it was not taken, None where it was. `retry_after` is what the receiver asks for, in seconds."""

    reason: str | None
    status: int | None = None
    retry_after: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether the receiver wants to hear nothing any more."""
        return self.status == _GONE


def key_of(webhook: WebhookConfig) -> str:
    """Return what stands for a webhook on the disk: its URL is secret."""
    return hashlib.sha256(webhook.url.encode()).hexdigest()[:32]


@attrs.define(eq=False, kw_only=True)
class Webhook:
    """See the module. `run` has to run. `failures` counts those in a row, of which `reason` is the last, and `next_try` is when it is tried again; `stopped` says that the receiver wants nothing any more."""

    config: WebhookConfig
    server: str
    journal: Journal
    tls: ssl.SSLContext
    now: Callable[[], float] = time.time
    failures: int = attrs.field(init=False, default=0)
    reason: str | None = attrs.field(init=False, default=None)
    next_try: float | None = attrs.field(init=False, default=None)
    """In seconds since 1970."""

    stopped: bool = attrs.field(init=False, default=False)
    _key: str = attrs.field(init=False)
    _counted: tuple[int, int] | None = attrs.field(init=False, default=None)
    _behind: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._key = key_of(self.config)

    @property
    def position(self) -> int:
        """The number of the last event that it is done with."""
        return self.journal.positions[self._key]

    @property
    def behind(self) -> int:
        """How many events that it wants wait for it, of those that are still there."""
        at = self.position, self.journal.last
        if self._counted != at:  # counted once, however many ask
            later = self.journal.newest(self.journal.most, above=self.position)
            self._counted = at
            self._behind = sum(_wants(self.config, each) for each in later)
        return self._behind

    @property
    def is_through(self) -> bool:
        """Whether there is nothing to tell, or no use in trying now."""
        return self.stopped or self.failures > 0 or not self._next()

    async def run(self) -> None:
        """Tell all there is, and what comes, until cancelled, or until the receiver says that it wants nothing any more."""
        while True:
            while not (events := self._next()):
                await self.journal.changed.wait()
            message = compose(
                self.config,
                events,
                self.journal.delivery_of(events[0].event.number),
                self.now(),
            )
            outcome = await send(self.config, message, self.tls)
            if outcome.reason is None:
                self._succeed(message.last)
                with trio.move_on_after(
                    _DISK_WAIT
                ):  # so that a kill has one message told twice at most
                    await self.journal.wait_settled(self._key)
            elif outcome.is_final:
                self.stopped, self.reason, self.next_try = True, outcome.reason, None
                log.warning(
                    "a webhook wants no events any more (status 410): it gets none until the server is started anew",
                    url=self.config.shown,
                )
                return
            else:
                await trio.sleep(self._fail(outcome))

    def _next(self) -> list[Kept]:
        """Return the events to tell next, as many as one message may have; those of other types are done with."""
        position, found = self.position, list[Kept]()
        most = 1 if self.config.template == JSON else _MOST_TOGETHER
        while len(found) < most and (kept := self.journal.next_after(position)) is not None:
            if (lost := kept.event.number - position - 1) > 0:
                if not found:
                    found.append(self._dropped(lost, kept.event))
                break
            if _wants(self.config, kept.event):
                found.append(kept)
            position = kept.event.number
        if not found and position != self.position:
            self.journal.settle(self._key, position)
        return found

    def _dropped(self, count: int, before: Event) -> Kept:
        """Return what stands for events that are gone."""
        event = Event(before.number - 1, before.time, DROPPED, self.server, {"count": count})
        return Kept(event, event.to_json())

    def _succeed(self, number: int) -> None:
        if self.reason is not None:
            log.info("a webhook takes events again", url=self.config.shown)
        self.failures, self.reason, self.next_try = 0, None, None
        self.journal.settle(self._key, number)

    def _fail(self, outcome: Outcome) -> float:
        """Note a failure, and return for how long to wait."""
        self.failures += 1
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.failures - 1, 16))
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - so that servers do not come all at once
        pause = max(pause, min(outcome.retry_after or 0.0, _LONGEST_PAUSE))
        if outcome.reason != self.reason:
            log.warning(
                "a webhook does not take events; they are kept",
                url=self.config.shown,
                reason=outcome.reason,
                next_try=f"in {pause:.0f} s",
            )
        self.reason, self.next_try = outcome.reason, self.now() + pause
        return pause


def _wants(webhook: WebhookConfig, event: Event) -> bool:
    """Tell whether a receiver is to hear of an event, or of what it stands for."""
    if event.type == LEFT_OUT:
        return any(map(webhook.wants, event.data.get("types", {})))
    return webhook.wants(event.type)


async def send(webhook: WebhookConfig, message: Message, tls: ssl.SSLContext) -> Outcome:
    """Send a message once."""
    try:
        answer = await post(
            message.url,
            message.headers,
            message.body,
            tls=tls,
            allow_private=webhook.allow_private,
        )
    except DeliveryError as error:
        return Outcome(str(error))
    reason = why_not_taken(webhook.template, answer)
    return Outcome(reason, answer.status, answer.retry_after)


async def send_test(
    webhook: WebhookConfig, server: str, tls: ssl.SSLContext, now: Callable[[], float] = time.time
) -> Outcome:
    """Send a test event, once, whatever the webhook wants to hear of. It has no number, and is in no journal."""
    event = Event(0, now(), TEST, server, {})
    message = compose(
        webhook, [Kept(event, event.to_json())], f"test-{secrets.token_hex(8)}", now()
    )
    return await send(webhook, message, tls)
