"""`trionat traffic`: how many bytes were relayed for whom."""

from __future__ import annotations

import calendar
import json
from datetime import UTC, datetime
from typing import Annotated

import attrs
import typer

from trionat.cli.local_server import AsJson, ConfigFile, State, StateDir, given, told
from trionat.cli.output import say
from trionat.cli.remote import Remote, quoted_path
from trionat.errors import StoreError
from trionat.log import escape
from trionat.store.amount import format_amount
from trionat.store.base import Store
from trionat.store.day import DayTotal
from trionat.store.journal import FILE_NAME, Journal, load_journal
from trionat.store.month import month_of, parse_month


@attrs.frozen(kw_only=True)
class _Usage:
    """One user's traffic, in bytes: in all and in one month, how much a month may have, and what is still on its way there; `refused` says that the store does not take it."""

    user: str
    total: int
    month: int
    quota: int | None
    waiting: int
    refused: bool


def traffic(
    user: Annotated[
        str | None, typer.Argument(help="The user, instead of all.", metavar="[USER]")
    ] = None,
    month: Annotated[
        str | None,
        typer.Option(
            metavar="MONTH",
            help="The month to show, such as 2026-11 (UTC); the current one without it.",
        ),
    ] = None,
    days: Annotated[
        bool,
        typer.Option("--days", help="Show each day of that month instead."),
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Show the bytes relayed for each user, in all and in a month. Both directions are added. The most come first."""
    with told():
        with given("--month"):
            month = parse_month(month) if month else month_of(datetime.now(UTC))
        state = State.find(state_dir, config)
        if days:
            _show_days(state, user, month, as_json=as_json)
            return
        if state.remote is None:
            journal = load_journal(state.folder)
            found = state.ask(lambda store: _usage(store, journal, user, month))
            journal_place = str(state.folder / FILE_NAME)
        else:
            found = _usage_afar(state, state.remote, user, month)
            journal_place = f"the journal of {state.place}"
    if as_json:
        for usage in found:
            say(json.dumps(_as_json(usage, month)))
        return
    _show(found, month)
    if rest := sum(usage.waiting for usage in found):
        say(f"{format_amount(rest)} more wait in {journal_place} until a server adds them.")
    for name in sorted(usage.user for usage in found if usage.refused):
        say(f"The store refuses the traffic of {name!r}: the server's log says why.")


def _show_days(state: State, user: str | None, month: str, *, as_json: bool) -> None:
    if state.remote is None:
        found = state.ask(lambda store: _find_days(store, user, month))
    else:
        found = _find_days_afar(state.remote, user, month)
    if as_json:
        for total in found:
            say(json.dumps({"day": total.day, "user": total.user, "bytes": total.amount}))
        return
    if not found:
        say(f"There is no traffic of a day in {month}.", err=True)
        return
    width = max(len(escape(total.user)) for total in found)
    for total in found:
        say(f"{total.day}  {escape(total.user):{width}}  {format_amount(total.amount)}")


async def _find_days(store: Store, user: str | None, month: str) -> list[DayTotal]:
    found: list[DayTotal] = []
    after = ("", "")
    while more := await store.daily_traffic(f"{month}-01", f"{month}-31", user=user, after=after):
        found += more
        after = (more[-1].day, more[-1].user)
    return found


def _find_days_afar(remote: Remote, user: str | None, month: str) -> list[DayTotal]:
    year, number = map(int, month.split("-"))
    _, last = calendar.monthrange(year, number)
    path = f"/traffic/days?first={month}-01&last={month}-{last}{_only(user)}"
    return [
        DayTotal(day=values["day"], user=values["user"], amount=values["bytes"])
        for values in remote.pages(path)
    ]


def _only(user: str | None) -> str:
    return "" if user is None else f"&user={quoted_path(user)}"


def _usage_afar(state: State, remote: Remote, user: str | None, month: str) -> list[_Usage]:
    found = [
        _Usage(
            user=values["user"],
            total=values["bytes"],
            month=values["month_bytes"],
            quota=values["monthly_quota"],
            waiting=values["waiting"],
            refused=values["refused"],
        )
        for values in remote.pages(f"/traffic?month={month}{_only(user)}")
    ]
    if user is not None and not any(usage.total or usage.waiting for usage in found):
        state.ask(lambda store: _check_there(store, user))
    return _sorted(found)


async def _check_there(store: Store, user: str) -> None:
    if await store.find_user(user) is None:
        raise _unknown(user)


def _unknown(user: str) -> StoreError:
    return StoreError(f"there is no user {user!r}, and no traffic of one")


def _sorted(found: list[_Usage]) -> list[_Usage]:
    return sorted(found, key=lambda usage: (-usage.total, usage.user))


async def _usage(store: Store, journal: Journal, user: str | None, month: str) -> list[_Usage]:
    waiting, refused = journal.unsettled(), journal.refused_users
    totals = await store.traffic()
    names = {*totals, *waiting} if user is None else {user}
    users = await store.find_users(names)
    if user is not None and user not in {*totals, *waiting, *users}:
        raise _unknown(user)
    monthly = await store.monthly_traffic(month, names)
    found = [
        _Usage(
            user=name,
            total=totals.get(name, 0),
            month=monthly.get(name, 0),
            quota=users[name].limits.monthly_quota if name in users else None,
            waiting=waiting.get(name, 0),
            refused=name in refused,
        )
        for name in names
    ]
    return _sorted(found)


def _as_json(usage: _Usage, month: str) -> dict[str, object]:
    return {
        "user": usage.user,
        "bytes": usage.total,
        "month": month,
        "month_bytes": usage.month,
        "monthly_quota": usage.quota,
        "waiting": usage.waiting,
    }


def _show(found: list[_Usage], month: str) -> None:
    if not found:
        say("There is no traffic yet.", err=True)
        return
    rows = [("user", "in all", month)]
    for usage in found:
        of = "" if usage.quota is None else f" of {format_amount(usage.quota)}"
        rows.append(
            (escape(usage.user), format_amount(usage.total), format_amount(usage.month) + of)
        )
    name, total = (max(len(row[column]) for row in rows) for column in (0, 1))
    for row in rows:
        say(f"{row[0]:{name}}  {row[1]:>{total}}  {row[2]}")
