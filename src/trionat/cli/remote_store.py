"""The accounts of a server that is asked over its API, for the commands that ask a store."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.cli.remote import MissingError, quoted_path, user_path
from trionat.errors import ConfigError, StoreError
from trionat.store.base import Limits, OwnedName, User
from trionat.store.tokens import Token, TokenScope

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.cli.remote import Remote


_NOT_TOLD: Final = "not told"
"""Stands for a password: the API tells only whether there is one."""


@attrs.frozen
class RemoteStore:
    """As much of a `Store` as commands ask for. Passwords are given as they are: the server hashes them."""

    remote: Remote

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None; without its password."""
        try:
            return self._read_user(await self._ask("GET", user_path(name)))
        except MissingError:
            return None

    async def list_users(self) -> list[User]:
        """Return every account that the token's may see."""
        return [self._read_user(values) for values in await self._list("/users")]

    async def add_user(self, user: User) -> None:
        """Add an account."""
        body = {
            "name": user.name,
            "password": user.password if user.has_password else None,
            "admin": user.admin,
            "expires_at": _text(user.expires_at),
        }
        await self._ask("POST", "/users", body)

    async def remove_user(self, name: str, *, keep_administrator: bool = False) -> None:
        """Remove an account; the server keeps the last administrator anyway."""
        del keep_administrator
        await self._ask("DELETE", user_path(name))

    async def set_password(self, name: str, password: str, ticket_salt: bytes) -> None:
        """Set a password; the salt is the server's to choose."""
        del ticket_salt
        try:
            await self._ask("PUT", f"{user_path(name)}/password", {"password": password})
        except ConfigError as error:
            if error.problems[0].where != "old_password":
                raise
            raise StoreError(
                "this is the account of the token, whose password takes the old one as well: set it in the console, or at the server"
            ) from error

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends, or that it never does."""
        await self._ask("PATCH", user_path(name), {"expires_at": _text(expires_at)})

    async def set_admin(self, name: str, *, admin: bool) -> None:
        """Make an account an administrator, or none any more."""
        await self._ask("PATCH", user_path(name), {"admin": admin})

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Keep an account from logging in, or let it again."""
        await self._ask("PATCH", user_path(name), {"disabled": disabled})

    async def change_user(
        self, name: str, change: Callable[[User], User], *, keep_administrator: bool = False
    ) -> User:
        """Change an account; only what is other than before is sent, so that what somebody else changes meanwhile stays."""
        del keep_administrator
        before = self._read_user(await self._ask("GET", user_path(name)))
        after = change(before)
        older = {} if before.damage else attrs.asdict(before.limits)
        limits = {
            key: value
            for key, value in attrs.asdict(after.limits).items()
            if key not in older or older[key] != value
        }
        body: dict[str, Any] = {"limits": limits} if limits and not after.damage else {}
        if after.expires_at != before.expires_at:
            body["expires_at"] = _text(after.expires_at)
        if after.admin != before.admin:
            body["admin"] = after.admin
        if after.disabled != before.disabled:
            body["disabled"] = after.disabled
        return self._read_user(await self._ask("PATCH", user_path(name), body))

    async def list_names(self) -> list[OwnedName]:
        """Return the names that are kept."""
        found = await self._list("/names")
        with self.remote.understood():
            return [
                OwnedName(
                    name=values["name"],
                    owner=values["user"],
                    account_id=0,
                    used_at=datetime.fromisoformat(values["used"]),
                )
                for values in found
            ]

    async def release_name(self, name: str) -> None:
        """Forget whose a name is."""
        await self._ask("DELETE", f"/names/{quoted_path(name)}")

    async def list_tokens(self, user: str | None = None) -> list[Token]:
        """Return tokens: those of one account, or all that the token's may see."""
        query = "" if user is None else f"?user={quoted_path(user)}"
        found = await self._list(f"/tokens{query}")
        with self.remote.understood():
            return [
                Token(
                    token_id=values["id"],
                    name=values["name"],
                    user=values["user"],
                    account_id=0,
                    digest=b"",
                    scope=TokenScope(values["scope"]),
                    created_at=datetime.fromisoformat(values["created_at"]),
                    expires_at=_moment(values["expires_at"]),
                    last_used=_moment(values["last_used"]),
                )
                for values in found
            ]

    async def remove_token(self, token_id: str) -> None:
        """Remove a token."""
        await self._ask("DELETE", f"/tokens/{quoted_path(token_id)}")

    def _read_user(self, values: Any) -> User:
        with self.remote.understood():
            return _user(values)

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        return await trio.to_thread.run_sync(partial(self.remote.ask, method, path, body))

    async def _list(self, path: str) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(lambda: list(self.remote.pages(path)))


def _user(values: dict[str, Any]) -> User:
    limits = {name: value for name, value in values["limits"].items() if value is not None}
    return User(
        name=values["name"],
        password=_NOT_TOLD if values.get("has_password", True) else "",
        ticket_salt=b"",
        expires_at=_moment(values["expires_at"]),
        created_at=_moment(values["created_at"]),
        limits=Limits.from_text(json.dumps(limits)),
        admin=values["admin"],
        disabled=values["disabled"],
        damage=values["damage"] or "",
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
