"""`trionat user limit`: what an account may use at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import attrs
import typer

from trionat.cli.local_server import ConfigFile, State, StateDir, existing_user, given, told
from trionat.cli.output import say
from trionat.config.values import PORTS, whole
from trionat.errors import StoreError
from trionat.server.accounts.limit_lists import (
    MOST_PORTS,
    check_names,
    check_networks,
    check_ports,
)
from trionat.store.amount import parse_amount, write_amount
from trionat.store.base import Limits, Store, User
from trionat.text import quoted

_NONE: Final = "none"

_COUNT: Final = whole(1, 1_000_000)


def read_ports(text: str) -> tuple[int, ...]:
    """Read ports and ranges of them, with commas between.

    Raises:
        ValueError: They are none, or too many.
    """
    ports = {port for part in text.split(",") for port in PORTS.read(part.strip())}
    try:
        return check_ports(ports)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not 1 to {MOST_PORTS} ports from 1 to 65535") from None


def read_names(text: str) -> tuple[str, ...]:
    """Read patterns of names, with commas between.

    Raises:
        ValueError: They are none, or too many.
    """
    return check_names(part.strip() for part in text.split(","))


def _read_networks(text: str) -> tuple[str, ...]:
    return check_networks(part.strip() for part in text.split(","))


@attrs.frozen
class _Limit:
    """One of the limits: its option, and how its value is read and shown."""

    option: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]
    lifted: str = "no limit"
    """How it is shown where there is none."""

    @property
    def title(self) -> str:
        """What it is called for people."""
        return self.option.removeprefix("--").replace("-", " ")


_LIMITS: Final = {
    "visit_ports": _Limit("--visit-ports", read_ports, PORTS.write, "all"),
    "names": _Limit("--names", read_names, ", ".join, "any right below the server's domain"),
    "sessions": _Limit("--sessions", _COUNT.read, str),
    "visitors": _Limit("--visitors", _COUNT.read, str),
    "bandwidth": _Limit(
        "--bandwidth", parse_amount, lambda value: f"{write_amount(value)} bytes a second"
    ),
    "monthly_quota": _Limit(
        "--quota", parse_amount, lambda value: f"{write_amount(value)} bytes a month"
    ),
    "allow_visitors": _Limit("--allow-visitors", _read_networks, ", ".join, "everybody"),
    "deny_visitors": _Limit("--deny-visitors", _read_networks, ", ".join, "nobody"),
}


def show_limits(limits: Limits) -> dict[str, str]:
    """Return the limits that there are as texts for people, by what they limit."""
    values = attrs.asdict(limits)
    return {
        limit.title: limit.show(values[field])
        for field, limit in _LIMITS.items()
        if values[field] is not None
    }


def limit(
    name: Annotated[str, typer.Argument(help="The user's name.", metavar="NAME")],
    visit_ports: Annotated[
        str | None,
        typer.Option(metavar="PORTS|none", help="The visit ports allowed, as 60000-60009,60020."),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERNS|none", help="The names allowed, as 'shop-*.tunnel.example.com,blog'."
        ),
    ] = None,
    sessions: Annotated[
        str | None, typer.Option(metavar="N|none", help="Sessions at once.")
    ] = None,
    visitors: Annotated[
        str | None, typer.Option(metavar="N|none", help="Visitors at once, of all sessions.")
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|none",
            help="Bytes a second, of all sessions and both directions, as 10M or 1.5Mi.",
        ),
    ] = None,
    quota: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|none", help="Bytes a calendar month (UTC), both directions, as 100G."
        ),
    ] = None,
    allow_visitors: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORKS|none",
            help="The only visitors let in, as 192.0.2.0/24,2001:db8::/32 (within the server's AllowVisitors).",
        ),
    ] = None,
    deny_visitors: Annotated[
        str | None,
        typer.Option(metavar="NETWORKS|none", help="Visitors that are not let in."),
    ] = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Limit what an account may use; `none` lifts a limit. Without an option, show the limits."""
    given_texts = (
        *(visit_ports, names, sessions, visitors, bandwidth, quota),
        *(allow_visitors, deny_visitors),
    )
    options = dict(zip(_LIMITS, given_texts, strict=True))
    with told():
        changes = {
            field: _read(_LIMITS[field], text)
            for field, text in options.items()
            if text is not None
        }

        def change(user: User) -> User:
            if len(changes) == len(_LIMITS):  # it does not matter what they were: maybe damaged
                return attrs.evolve(user, limits=Limits(**changes), damage="")
            if user.damage:
                raise StoreError(user.damage)
            return attrs.evolve(user, limits=attrs.evolve(user.limits, **changes))

        async def ask(store: Store) -> Limits:
            if changes:
                return (await store.change_user(name, change)).limits
            return change(await existing_user(store, name)).limits

        state = State.find(state_dir, config)
        limits = state.ask(ask)
        if changes:
            state.note("account.changed", name, what="limits", limits=changes)
    say(f"{name}:")
    there = show_limits(limits)
    for each in _LIMITS.values():
        say(f"  {each.title:14}  {there.get(each.title, each.lifted)}")


def _read(limit: _Limit, text: str) -> Any:
    with given(limit.option):
        return None if text == _NONE else limit.read(text)
