"""What has happened, who has changed what, and whether webhooks hear of it."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
import trio

from trionat.config.events import TYPES, is_among
from trionat.server.console.operation import Call, Nothing, Operation, Page
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import field
from trionat.server.events.audit import read_audit
from trionat.server.events.event import written_time
from trionat.server.events.template import sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trionat.server.events.event import Event
    from trionat.server.events.webhook import Webhook


@attrs.frozen(kw_only=True)
class EventRow:
    """An event: `data` has its fields, and `text` tells it in a line."""

    number: int
    time: str
    type: str
    server: str
    data: dict[str, Any]
    text: str

    @classmethod
    def of(cls, event: Event) -> EventRow:
        """Return the row of an event."""
        return cls(
            number=event.number,
            time=written_time(event.time),
            type=event.type,
            server=event.server,
            data=dict(event.data),
            text=sentence(event),
        )


@attrs.frozen(kw_only=True)
class ChangeRow:
    """A change that somebody has made: how he came (`by`: console, token, or command line), from where, what he did (`what`) to what (`target`). `number` stays the same. A `detail` is a list as `admin: true, unfinished: true`."""

    number: int
    time: str
    by: str
    user: str
    token: str | None
    host: str | None
    what: str
    target: str
    detail: str

    @classmethod
    def of(cls, values: dict[str, Any]) -> ChangeRow:
        """Return the row of an entry of the audit, whatever somebody has made of the file."""
        actor, details = _object(values.get("actor")), _object(values.get("details"))
        return cls(
            number=values["number"],
            time=str(values.get("time", "")),
            by=str(actor.get("by", "")),
            user=str(actor.get("name", "")),
            token=_text(actor.get("token")),
            host=_text(actor.get("address")),
            what=str(values.get("action", "")),
            target=str(values.get("target", "")),
            detail=", ".join(f"{name}: {_words(value)}" for name, value in details.items()),
        )


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@attrs.frozen(kw_only=True)
class WebhookRow:
    """A webhook, and how it stands: it takes events (`well`), is tried again (`failing`), or wants no more until the server is started anew (`stopped`).

    `url` is without what may be secret in it, and `types` are those that it wants, all where there are none. So many events that it wants wait for it (`behind`).
    `failures` counts tries in a row, of which `reason` is why the last one failed.
    """

    url: str
    template: str
    types: tuple[str, ...]
    state: Literal["well", "failing", "stopped"]
    behind: int
    failures: int
    reason: str | None
    next_try: str | None

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookRow:
        """Return the row of a webhook."""
        return cls(
            url=webhook.config.shown,
            template=webhook.config.template,
            types=webhook.config.types,
            state="stopped" if webhook.stopped else "failing" if webhook.failures else "well",
            behind=webhook.behind,
            failures=webhook.failures,
            reason=webhook.reason,
            next_try=None if webhook.next_try is None else written_time(webhook.next_try),
        )


@attrs.frozen(kw_only=True)
class TestRow:
    """What came of a test event; `url` is the webhook's, without what may be secret in it."""

    url: str
    taken: bool
    status: int | None
    reason: str | None


@attrs.frozen(kw_only=True)
class Newest:
    """Which part of a list that has the newest first."""

    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: int | None = field(None, about="what `next` of the page before says")


@attrs.frozen(kw_only=True)
class NewestOf(Newest):
    """Which events."""

    types: str | None = field(
        None,
        about="of these types alone, with commas between; session.* is all of a kind",
    )

    def wants(self) -> Callable[[str], bool]:
        """Return what tells whether a type is among them.

        Raises:
            Problem: There is no such type.
        """
        if self.types is None:
            return lambda _: True
        try:
            types = tuple(each for text in self.types.split(",") for each in TYPES.read(text))
        except ValueError as error:
            raise Problem(Code.INVALID, f"types: {error}", field="types") from None
        return lambda type_: is_among(type_, types)


async def _list_events(call: Call[NewestOf, Nothing]) -> Page[EventRow]:
    await trio.lowlevel.checkpoint()
    which = call.parameters
    found = call.context.delivery.journal.newest(
        which.limit + 1, before=which.after, wants=which.wants()
    )
    part = tuple(map(EventRow.of, found[: which.limit]))
    return Page(part, str(part[-1].number) if len(found) > len(part) else None)


def _read_changes(state: Path, which: Newest) -> Page[ChangeRow]:
    """In a thread, since it reads the files."""
    entries = read_audit(state, which.limit + 1, before=which.after)
    part = tuple(map(ChangeRow.of, entries[: which.limit]))
    return Page(part, str(part[-1].number) if len(entries) > len(part) else None)


async def _list_changes(call: Call[Newest, Nothing]) -> Page[ChangeRow]:
    read = partial(_read_changes, call.context.state.folder, call.parameters)
    return await trio.to_thread.run_sync(read, limiter=call.context.scribe)


async def _list_webhooks(call: Call[Nothing, Nothing]) -> Page[WebhookRow]:
    await trio.lowlevel.checkpoint()
    return Page(tuple(map(WebhookRow.of, call.context.delivery.webhooks)))


async def _test(call: Call[Nothing, Nothing]) -> Page[TestRow]:
    outcomes = await call.context.delivery.test()
    return Page(
        tuple(
            TestRow(
                url=webhook.shown,
                taken=outcome.reason is None,
                status=outcome.status,
                reason=outcome.reason,
            )
            for webhook, outcome in outcomes
        )
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/events",
        name="list_events",
        summary="What has happened at the server, the newest first",
        is_for_admins=True,
        parameters=NewestOf,
        answer=Page[EventRow],
        handle=_list_events,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/events/webhooks",
        name="list_webhooks",
        summary="Who is told of events, and whether that goes well",
        is_for_admins=True,
        answer=Page[WebhookRow],
        handle=_list_webhooks,
    ),
    Operation(
        method="POST",
        path="/events/test",
        name="test_events",
        summary="Send a test event to every webhook, and tell what came of it",
        permission=Permission.MANAGE,
        is_for_admins=True,
        answer=Page[TestRow],
        handle=_test,
    ),
    Operation(
        method="GET",
        path="/audit",
        name="list_changes",
        summary="Who has changed what, by the console, the API and the command line of this machine, the newest first",
        is_for_admins=True,
        parameters=Newest,
        answer=Page[ChangeRow],
        handle=_list_changes,
        is_long=True,
    ),
)
