"""How many bytes were relayed for whom."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from trionat.server.console.operation import Call, Nothing, Operation, Page, cut_page
from trionat.server.console.refusals import valid
from trionat.server.console.shape import field
from trionat.store.day import DAYS_KEPT, day_of, days_before, parse_day
from trionat.store.month import month_of, parse_month

if TYPE_CHECKING:
    from trionat.server.console.principal import Principal

_LAST_DAYS = 29


@attrs.frozen(kw_only=True)
class UsageRow:
    """A user's traffic in bytes, both directions added: in all and in a month, what a month may have (null: no limit), and what the store does not have yet. `refused` says that the store does not take it: the server's log says why."""

    user: str
    bytes: int
    month: str
    month_bytes: int
    monthly_quota: int | None
    waiting: int
    refused: bool


@attrs.frozen(kw_only=True)
class DayRow:
    """A user's traffic on a day (UTC), in bytes, both directions added."""

    day: str
    user: str
    bytes: int


@attrs.frozen(kw_only=True)
class Month:
    """Which part of which month."""

    month: str | None = field(None, longest=7, about="as 2026-11 (UTC); this month without it")
    user: str | None = field(None, longest=255, about="one user's only")
    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: str | None = field(None, about="what `next` of the page before says")


@attrs.frozen(kw_only=True)
class Days:
    """Which part of which days; the last thirty without `first`."""

    first: str | None = field(None, longest=10, about="the first day, as 2026-11-01 (UTC)")
    last: str | None = field(None, longest=10, about="the last day; today without it")
    user: str | None = field(None, longest=255, about="one user's only")
    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: str | None = field(None, about="what `next` of the page before says")


def _whose(principal: Principal, user: str | None) -> str | None:
    """Return whose traffic is meant, None: everybody's."""
    if user is not None:
        principal.require_sight(user, f"traffic of a user {user!r}")
    return user if principal.is_admin else principal.username


async def _list(call: Call[Month, Nothing]) -> Page[UsageRow]:
    store, given = call.context.store, call.parameters
    with valid("month"):
        month = month_of(datetime.now(UTC)) if given.month is None else parse_month(given.month)
    user = _whose(call.principal, given.user)
    journal = call.context.traffic.journal
    waiting, refused = journal.unsettled(), journal.refused_users
    totals = await store.traffic()
    names = {*totals, *waiting} if user is None else {user}
    page = cut_page(names, str, limit=given.limit, after=given.after)
    users = await store.find_users(page.items)
    monthly = await store.monthly_traffic(month, page.items)
    rows = [
        UsageRow(
            user=name,
            bytes=totals.get(name, 0),
            month=month,
            month_bytes=monthly.get(name, 0),
            monthly_quota=users[name].limits.monthly_quota if name in users else None,
            waiting=waiting.get(name, 0),
            refused=name in refused,
        )
        for name in page.items
    ]
    return Page(tuple(rows), page.next)


async def _list_days(call: Call[Days, Nothing]) -> Page[DayRow]:
    given = call.parameters
    with valid("last"):
        last = day_of(datetime.now(UTC)) if given.last is None else parse_day(given.last)
    with valid("first"):
        first = days_before(last, _LAST_DAYS) if given.first is None else parse_day(given.first)
    with valid("after"):
        after = ("", "") if given.after is None else _read_place(given.after)
    user = _whose(call.principal, given.user)
    found = await call.context.store.daily_traffic(
        first, last, user=user, after=after, limit=given.limit + 1
    )
    rows = tuple(DayRow(day=each.day, user=each.user, bytes=each.amount) for each in found)
    part = rows[: given.limit]
    return Page(part, f"{part[-1].day} {part[-1].user}" if len(rows) > len(part) else None)


def _read_place(text: str) -> tuple[str, str]:
    day, blank, user = text.partition(" ")
    if not blank:
        raise ValueError("say what `next` of the page before says")
    return parse_day(day), user


OPERATIONS = (
    Operation(
        method="GET",
        path="/traffic",
        name="list_traffic",
        summary="Bytes of each user, in all and in a month: everybody's for an administrator, for anybody else his own",
        parameters=Month,
        answer=Page[UsageRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/traffic/days",
        name="list_traffic_by_day",
        summary=f"The same by day; days are kept for {DAYS_KEPT} days",
        parameters=Days,
        answer=Page[DayRow],
        handle=_list_days,
        is_long=True,
    ),
)
