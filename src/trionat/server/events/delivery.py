"""What becomes of events: they are written down, and every webhook is told."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.server.events.audit import Audit
from trionat.server.events.journal import Journal, events_folder
from trionat.server.events.post import receiver_context
from trionat.server.events.webhook import Webhook, key_of, send_test
from trionat.signals import Signal
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from trionat.config.events import EventsConfig, WebhookConfig
    from trionat.server.events.hub import Hub
    from trionat.server.events.webhook import Outcome

log = get_logger(__name__)

_LAST_WORDS: Final = 2.0
"""Seconds of a planned stop for receivers that are well to hear what has happened; the others hear it after the next start."""

_AFTER_BUG: Final = 30.0

_COUNT_INTERVAL: Final = 10.0
"""Seconds between two looks whether it may be told what was left out."""

_LAST_LINES: Final = 1.0
"""Seconds for the disk."""


@attrs.define(eq=False)
class Delivery:
    """See the module; made by `open_delivery`. `audit` has what people change, which is told as well where it is an event. `tls` is there where there are webhooks."""

    audit: Audit
    journal: Journal
    hub: Hub
    webhooks: tuple[Webhook, ...] = ()
    tls: ssl.SSLContext | None = None
    open_context: Callable[[], ssl.SSLContext] = receiver_context
    rests: bool = attrs.field(default=False, kw_only=True)
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _running: dict[Webhook, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _telling: trio.CancelScope | None = attrs.field(init=False, default=None)

    @property
    def server(self) -> str:
        """What events call this server."""
        return self.hub.server

    def take_config(self, config: EventsConfig, tls: ssl.SSLContext | None) -> None:
        """Tell these webhooks from now on. One that is as before goes on, one that is new hears what comes; `tls` is for the first ones."""
        self.tls = self.tls or tls
        if self.tls is None:  # there is no webhook, and there was none
            return
        before = {webhook.config: webhook for webhook in self.webhooks}
        self.journal.take_webhooks([key_of(each) for each in config.webhooks])
        self.webhooks = tuple(
            before.get(each)
            or Webhook(
                config=each,
                server=self.server,
                journal=self.journal,
                tls=self.tls,
                now=self.hub.now,
            )
            for each in config.webhooks
        )
        for webhook in self._running.keys() - set(self.webhooks):
            self._running.pop(webhook).cancel("it is not configured any more")
        self._changed.notify()

    async def run(self) -> None:
        """Write down, and tell every receiver, until cancelled; but while it rests."""
        while True:
            while self.rests:
                await self._changed.wait()
            async with trio.open_nursery() as nursery:
                self._telling = nursery.cancel_scope
                nursery.start_soon(_keep, self.journal.run, name="journal of events")
                await self._tell(nursery)
            self._telling = None
            self._running.clear()
            self._changed.notify()

    async def _tell(self, nursery: trio.Nursery) -> None:
        """Tell all webhooks in `nursery`, also those that come with a reload, until cancelled."""
        while True:
            for webhook in self.webhooks:
                if webhook not in self._running:
                    scope = self._running[webhook] = trio.CancelScope()
                    name = f"events for {webhook.config.shown}"
                    nursery.start_soon(_run, webhook, scope, name=name)
            await self._changed.wait()

    @asynccontextmanager
    async def resting(self) -> AsyncGenerator[None]:
        """Tell nobody anything in the block, so that another process can go on with what is written down by then. A message that is on its way may be sent twice.

        Where `hub.is_elsewhere` is set in the block, that is how it stays.
        """
        self.rests = True
        while self._telling is not None:
            self._telling.cancel("another process goes on")
            await self._changed.wait()
        try:
            yield
        finally:
            if not self.hub.is_elsewhere:
                self.rests = False
                self._changed.notify()

    async def write_down(self) -> None:
        """Write what waits, and what was left out, for another process to go on with."""
        self.hub.tell_left_out(at_once=True)
        await self.journal.write_down()

    async def take_over(self) -> None:
        """Go on where another process has ended.

        Raises:
            StartupError: the journal cannot be used.
        """
        await self.journal.take_over()
        self.hub.is_elsewhere = False
        _remember(self.hub, self.journal)
        self.rests = False
        self._changed.notify()

    async def wait_through(self) -> None:
        """Wait until every receiver that is well has heard everything."""
        while not all(webhook.is_through for webhook in self.webhooks):  # noqa: ASYNC110 - for two seconds, once
            await trio.sleep(0.02)

    async def test(self) -> list[tuple[WebhookConfig, Outcome]]:
        """Send a test event to every receiver, at once, and return what came of it."""
        if self.tls is None:
            await trio.lowlevel.checkpoint()
            return []
        return await send_tests([each.config for each in self.webhooks], self.server, self.tls)


async def send_tests(
    webhooks: list[WebhookConfig], server: str, tls: ssl.SSLContext
) -> list[tuple[WebhookConfig, Outcome]]:
    """Send a test event to all of them, at once; return what came of it, in their order."""
    outcomes: dict[int, Outcome] = {}

    async def send(number: int, webhook: WebhookConfig) -> None:
        outcomes[number] = await send_test(webhook, server, tls)

    async with trio.open_nursery() as nursery:
        for number, webhook in enumerate(webhooks):
            nursery.start_soon(send, number, webhook, name=f"test of {webhook.shown}")
    return [(webhook, outcomes[number]) for number, webhook in enumerate(webhooks)]


async def _count(hub: Hub) -> None:
    """Tell what was left out, for ever."""
    while True:
        await trio.sleep(_COUNT_INTERVAL)
        hub.tell_left_out()


async def _run(webhook: Webhook, scope: trio.CancelScope) -> None:
    with scope:
        await _keep(webhook.run)


async def _keep(job: Callable[[], Awaitable[None]]) -> None:
    """Run a job to its end, and once more after a bug, which no tunnel is to feel."""
    is_done = False
    while not is_done:
        with isolated(log, "events are told once more in a while"):
            await job()
            is_done = True
        if not is_done:
            await trio.sleep(_AFTER_BUG)


def _remember(hub: Hub, journal: Journal) -> None:
    """Have the hub go on where the journal has ended."""
    hub.number = journal.number
    for event in journal:
        if (identity := event.identity) is not None:
            hub.remember(identity)


@asynccontextmanager
async def open_delivery(
    hub: Hub, config: EventsConfig, state: Path, *, later: bool = False
) -> AsyncGenerator[Delivery]:
    """With `later`, only when `take_over` is called: another process does it until then. Write down and deliver what is published in the block. At its end those receivers that are well may hear the rest, for two seconds; the others hear it after the next start.

    Raises:
        StartupError: The state folder cannot be used.
    """
    keys = [key_of(webhook) for webhook in config.webhooks]
    hub.is_elsewhere, folder = later, events_folder(state)
    if later:
        journal = Journal.of_another(folder, keys)
    else:
        journal = await trio.to_thread.run_sync(partial(Journal.open, folder, keys))
    _remember(hub, journal)
    delivery = Delivery(Audit(state, hub), journal, hub, rests=later)
    if config.webhooks:  # the system's authorities take some MiB
        delivery.take_config(config, await trio.to_thread.run_sync(receiver_context))
    try:
        with hub.telling(journal):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep, delivery.audit.run, name="audit")
                nursery.start_soon(delivery.run, name="events")
                nursery.start_soon(_count, hub, name="events that are counted")
                yield delivery
                if not hub.is_elsewhere:
                    hub.tell_left_out(at_once=True)
                    with trio.move_on_after(_LAST_WORDS):
                        await journal.flush()
                        await delivery.wait_through()
                nursery.cancel_scope.cancel("the server stops")
    finally:
        with trio.move_on_after(_LAST_LINES, shield=True):
            await journal.close()
