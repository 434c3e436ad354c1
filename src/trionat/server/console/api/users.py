"""Accounts: who may connect, and what they may have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import trio

from trionat.errors import RefusedError
from trionat.server.accounts.limit_lists import check_names, check_networks, check_ports
from trionat.server.admin.messages import Kicked, KickUser
from trionat.server.console.account import find_account
from trionat.server.console.authentication import banned, check_ban
from trionat.server.console.expiry import WHEN, read_expiry
from trionat.server.console.operation import (
    ROOT,
    ByText,
    Call,
    Nothing,
    Operation,
    Page,
    Reply,
    cut_page,
)
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.refusals import there, valid
from trionat.server.console.rows import UserRow
from trionat.server.console.shape import ABSENT, Absent, field
from trionat.store.base import Limits, User, check_new_name, new_ticket_salt
from trionat.store.passwords import (
    SHORTEST_PASSWORD,
    check_new_password,
    hash_password,
    make_no_password,
    verify_password,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trionat.server.console.context import Context

_MOST = 1_000_000
_LISTS: Mapping[str, Callable[[Any], tuple[int | str, ...]]] = {
    "visit_ports": check_ports,
    "names": check_names,
    "allow_visitors": check_networks,
    "deny_visitors": check_networks,
}


@attrs.frozen(kw_only=True)
class LimitsChange:
    """Limits to be set: those that are missing stay as they are, and null lifts one."""

    visit_ports: tuple[int, ...] | Absent | None = field(ABSENT, least=1, most=65535)
    sessions: int | Absent | None = field(ABSENT, least=1, most=_MOST)
    visitors: int | Absent | None = field(ABSENT, least=1, most=_MOST)
    bandwidth: int | Absent | None = field(ABSENT, least=1, about="bytes per second")
    monthly_quota: int | Absent | None = field(ABSENT, least=1, about="bytes")
    allow_visitors: tuple[str, ...] | Absent | None = field(ABSENT, longest=64)
    deny_visitors: tuple[str, ...] | Absent | None = field(ABSENT, longest=64)
    names: tuple[str, ...] | Absent | None = field(ABSENT, longest=253)

    @property
    def is_whole(self) -> bool:
        """Whether it sets all limits, so that it does not matter what they were."""
        return ABSENT not in attrs.asdict(self, recurse=False).values()

    def of(self, limits: Limits) -> Limits:
        """Return the limits with these changes.

        Raises:
            Problem: one of them is wrong.
        """
        changes = {
            name: value
            for name, value in attrs.asdict(self, recurse=False).items()
            if value is not ABSENT
        }
        for name, check in _LISTS.items():
            if changes.get(name) is not None:
                with valid(f"limits.{name}"):
                    changes[name] = check(changes[name])
        return attrs.evolve(limits, **changes)


@attrs.frozen(kw_only=True)
class NewUser:
    """An account to be made. Without a password (null) it has tickets and tokens only."""

    name: str = field(shortest=1, longest=64)
    password: str | None = field(shortest=SHORTEST_PASSWORD, longest=1024, secret=True)
    admin: bool = False
    disabled: bool = False
    expires_at: str | None = field(None, about=WHEN)
    limits: LimitsChange = LimitsChange()


@attrs.frozen(kw_only=True)
class UserChange:
    """What is to be changed of an account; what is missing stays as it is."""

    admin: bool | Absent = ABSENT
    disabled: bool | Absent = ABSENT
    expires_at: str | Absent | None = field(ABSENT, about=WHEN)
    limits: LimitsChange = LimitsChange()


@attrs.frozen(kw_only=True)
class PasswordChange:
    """A new password. Who sets his own has to know the old one."""

    password: str = field(shortest=SHORTEST_PASSWORD, longest=1024, secret=True)
    old_password: str | None = field(None, longest=1024, secret=True)


@attrs.frozen(kw_only=True)
class One:
    """Which account."""

    name: str = field(longest=255)


async def _rows(context: Context, users: Iterable[User]) -> tuple[UserRow, ...]:
    there = list(users)
    used = await context.traffic.used_this_month([user.name for user in there])
    now = datetime.now(UTC)
    return tuple(UserRow.of(user, used[user.name], now) for user in there)


async def _list(call: Call[ByText, Nothing]) -> Page[UserRow]:
    users = await call.context.store.list_users()
    page = cut_page(
        (user for user in users if call.principal.may_see(user.name)),
        lambda user: user.name,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )
    return Page(await _rows(call.context, page.items), page.next)


async def _get(call: Call[One, Nothing]) -> UserRow:
    user = await find_account(call.context, call.principal, call.parameters.name)
    (row,) = await _rows(call.context, [user])
    return row


async def _add(call: Call[Nothing, NewUser]) -> Reply:
    body, store, now = call.body, call.context.store, datetime.now(UTC)
    with valid("name"):
        check_new_name(body.name)
        if "/" in body.name or body.name in (".", ".."):
            raise ValueError("such a name has no path of its own here")
    if body.password is None:
        call.also.update(password="none")  # noqa: S106 - no secret, which any other is
    else:
        with valid("password"):
            check_new_password(body.password)
    user = User(
        name=body.name,
        password=make_no_password()
        if body.password is None
        else await hash_password(body.password),
        ticket_salt=new_ticket_salt(),
        expires_at=read_expiry(body.expires_at, now),
        created_at=now,
        limits=body.limits.of(Limits()),
        admin=body.admin,
        disabled=body.disabled,
    )
    with valid("name"):
        await store.add_user(user)
    bare = attrs.evolve(
        user, name="", limits=Limits(), expires_at=None, admin=False, disabled=False
    )
    _leave_out_same(call.sent, bare, user)
    (row,) = await _rows(call.context, [user])
    location = f"{ROOT}/users/{quote(user.name, safe='')}"
    return Reply(values=row, status=201, headers={"Location": location})


async def _change(call: Call[One, UserChange]) -> Reply:
    body, name, store = call.body, call.parameters.name, call.context.store
    await find_account(call.context, call.principal, name)
    is_own = name == call.principal.username
    if is_own and (body.admin is False or body.disabled is True):
        raise Problem(
            Code.CONFLICT, "an administrator cannot do that to itself: another one has to"
        )
    expires_at = (
        None
        if body.expires_at is ABSENT
        else read_expiry(body.expires_at, datetime.now(UTC), must_be_later=is_own)
    )

    found = list[User]()

    def change(user: User) -> User:
        found[:] = [user]
        if user.damage and body.limits != LimitsChange() and not body.limits.is_whole:
            raise Problem(Code.CONFLICT, user.damage)
        return attrs.evolve(
            user,
            expires_at=user.expires_at if body.expires_at is ABSENT else expires_at,
            limits=body.limits.of(user.limits),
            admin=user.admin if body.admin is ABSENT else body.admin,
            disabled=user.disabled if body.disabled is ABSENT else body.disabled,
            damage="" if body.limits.is_whole else user.damage,
        )

    with there(f"user {name!r}"), valid("limits" if body.expires_at is ABSENT else "expires_at"):
        changed = await store.change_user(name, change, keep_administrator=True)
    _leave_out_same(call.sent, found[0], changed)
    (row,) = await _rows(call.context, [changed])
    return Reply(values=row, changed=bool(call.sent))


def _leave_out_same(sent: dict[str, Any], before: User, after: User) -> None:
    """Leave out of what was sent what was so before."""
    limits = {
        name: value
        for name, value in sent.get("limits", {}).items()
        if getattr(before.limits, name) != getattr(after.limits, name) or before.damage
    }
    same = [
        name for name in sent if name != "limits" and getattr(before, name) == getattr(after, name)
    ]
    for name in same:
        del sent[name]
    if limits:
        sent["limits"] = limits
    else:
        sent.pop("limits", None)


async def _remove(call: Call[One, Nothing]) -> None:
    name = call.parameters.name
    if name == call.principal.username:
        raise Problem(Code.CONFLICT, "an administrator cannot remove itself: another one has to")
    with there(f"user {name!r}"):
        await call.context.store.remove_user(name, keep_administrator=True)


async def _set_password(call: Call[One, PasswordChange]) -> None:
    name = call.parameters.name
    user = await find_account(call.context, call.principal, name)
    with valid("password"):
        check_new_password(call.body.password)
    if name == call.principal.username:
        await _check_old(call, user)
    hashed = await hash_password(call.body.password)
    with there(f"user {name!r}"):
        await call.context.store.set_password(name, hashed, new_ticket_salt())


async def _check_old(call: Call[One, PasswordChange], user: User) -> None:
    """Check that who sets his own password knows the old one; wrong ones count as those of a login."""
    bans, host, old = call.context.bans, call.host, call.body.old_password
    if old is None:
        raise Problem(Code.INVALID, "old_password is missing", field="old_password")
    check_ban(call.context, host)
    try:
        async with bans.trying(host):
            if await verify_password(user.password, old):
                return
            delay = bans.fail(host)
    except RefusedError as refusal:
        raise banned(refusal, call.context, host) from refusal
    await trio.sleep(delay)
    raise Problem(Code.FORBIDDEN, "the old password is wrong", field="old_password")


async def _kick(call: Call[One, Nothing]) -> Kicked:
    name = call.parameters.name
    call.principal.require_sight(name, f"user {name!r}")
    kicked = await call.context.commands.kick(KickUser(name))
    if not kicked.anybody:
        raise Problem(Code.NOT_FOUND, f"there is no client of a user {name!r} here")
    return kicked


OPERATIONS = (
    Operation(
        method="GET",
        path="/users",
        name="list_users",
        summary="Accounts: all for an administrator, for anybody else his own",
        parameters=ByText,
        answer=Page[UserRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="POST",
        path="/users",
        name="add_user",
        summary="Make an account; 409 where there is one of that name",
        permission=Permission.MANAGE,
        is_for_admins=True,
        body=NewUser,
        answer=UserRow,
        status=201,
        handle=_add,
    ),
    Operation(
        method="GET",
        path="/users/{name}",
        name="get_user",
        summary="One account",
        parameters=One,
        answer=UserRow,
        handle=_get,
    ),
    Operation(
        method="PATCH",
        path="/users/{name}",
        name="change_user",
        summary="Change what an account may; its sessions keep to it, or end, within 2 s",
        permission=Permission.MANAGE,
        is_for_admins=True,
        parameters=One,
        body=UserChange,
        answer=UserRow,
        handle=_change,
    ),
    Operation(
        method="DELETE",
        path="/users/{name}",
        name="remove_user",
        summary="Remove an account, with its tickets and tokens; its sessions end within 2 s, its traffic stays",
        permission=Permission.MANAGE,
        is_for_admins=True,
        parameters=One,
        status=204,
        handle=_remove,
    ),
    Operation(
        method="PUT",
        path="/users/{name}/password",
        name="set_password",
        summary="Set a password: the old one, all tickets and all logins are void",
        permission=Permission.MANAGE,
        parameters=One,
        body=PasswordChange,
        status=204,
        handle=_set_password,
    ),
    Operation(
        method="POST",
        path="/users/{name}/kick",
        name="kick_user",
        summary="Send all clients of an account away, at all nodes; this is not a ban",
        permission=Permission.MANAGE,
        parameters=One,
        answer=Kicked,
        handle=_kick,
    ),
)
