"""Traffic: all of a user's in `bars`, by month in a table of trionat's own.

The Go program may add to the same rows at the same time. Several rows of one name add up; we add to the one with the lowest
`id`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from trionat.store.base import FORGOTTEN_AT_ONCE
from trionat.store.day import DAYS_KEPT, DayTotal, days_before

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionat.store.base import Flush
    from trionat.store.mysql.pool import Link


async def add_flush(link: Link, flush: Flush, day: str | None) -> bool:
    """Add a flush, in a transaction that holds the lock of all changes; tell whether it was a new one."""
    last = await link.ask("select number from trionat_flushes where server = %s", flush.server)
    if last and last[0][0] >= flush.number:
        return False
    await link.change("replace into trionat_flushes values (%s, %s)", flush.server, flush.number)
    await _change_all(
        link,
        "insert into trionat_months values {} on duplicate key update bytes = bytes + values(bytes)",
        [(flush.month, name, amount) for name, amount in flush.amounts.items()],
    )
    if day is not None:
        await _change_all(
            link,
            "insert into trionat_days values {} on duplicate key update bytes = bytes + values(bytes)",
            [(day, name, amount) for name, amount in flush.amounts.items()],
        )
        await link.change(
            "delete from trionat_days where day < %s limit %s",
            days_before(day, DAYS_KEPT),
            FORGOTTEN_AT_ONCE,
        )
    await _add_to_bars(link, flush.amounts)
    return True


async def totals(link: Link) -> dict[str, int]:
    """Return the bytes of every user that has any, in all."""
    sums: Counter[str] = Counter()
    for name, amount in await link.ask(
        "select username, coalesce(bar, 0) from bars where username is not null"
    ):
        sums[name] += amount
    return dict(sums)


async def totals_of_month(
    link: Link, month: str, names: tuple[str, ...], pending: Flush | None
) -> dict[str, int]:
    """Return the bytes of these users (one at least) in that month, as if `pending` had been added."""
    rows = await link.ask(
        # In one statement, which sees a flush in both tables or in neither.
        "select username, bytes from trionat_months where month = %s and username in %s "
        "union all select null, number from trionat_flushes where server = %s",
        month,
        names,
        pending.server if pending else "",
    )
    missing: Mapping[str, int] = {}
    if pending is not None:
        missing = pending.missing(month, max((n for name, n in rows if name is None), default=0))
    found = Counter({name: missing[name] for name in names if name in missing})
    found.update({name.decode(): amount for name, amount in rows if name is not None})
    return dict(found)


async def totals_of_days(
    link: Link, first: str, last: str, user: str | None, after: tuple[str, str], limit: int
) -> list[DayTotal]:
    """Return the totals of these days, of all users or one, in the order of day and user, behind `after`."""
    rows = await link.ask(
        "select day, username, bytes from trionat_days where day between %s and %s "
        "and (day > %s or username > %s) and (%s or username = %s) order by day, username limit %s",
        max(first, after[0]),
        last,
        *after,
        user is None,
        user or "",
        limit,
    )
    return [DayTotal(day=day, user=name.decode(), amount=amount) for day, name, amount in rows]


async def _add_to_bars(link: Link, amounts: Mapping[str, int]) -> None:
    first: dict[str, int] = {}
    if amounts:
        for row, name in await link.ask_by_name(
            "select id, username from bars where {} in %s order by id", tuple(amounts)
        ):
            if name in amounts:
                first.setdefault(name, row)
    await _change_all(
        link,  # an insert, in case somebody removes the row meanwhile
        "insert into bars (id, bar, username) values {} on duplicate key update bar = coalesce(bar, 0) + values(bar)",
        [(row, amounts[name], name) for name, row in first.items()],
    )
    await _change_all(
        link,
        "insert into bars (bar, username) values {}",
        [(amount, name) for name, amount in amounts.items() if name not in first],
    )


async def _change_all(link: Link, statement: str, rows: list[tuple[object, ...]]) -> None:
    """Run a statement on many rows, if there are any; they go where the braces are."""
    if rows:
        await link.change(statement.format(", ".join(["%s"] * len(rows))), *rows)
