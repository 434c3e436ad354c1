"""Who may log in, and who may stay."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from trionat.errors import RefusedError, StoreError
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.server.accounts.tickets import verify_ticket
from trionat.store.amount import format_amount
from trionat.store.passwords import hash_password, is_hashed, verify_password

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from trionat.server.accounts.credential import Credential
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.state_folder import StateFolder
    from trionat.store.base import Limits, Store, User

log = get_logger(__name__)

# With StartAuth: false everybody is this user.
ANONYMOUS: Final = "anonymity"

# How often the accounts of live sessions are looked at: a removed account's session is closed within this many seconds.
WATCH_INTERVAL: Final = 2.0


def _now() -> datetime:
    return datetime.now(UTC)


class Limited(Protocol):
    """What is asked of what the sessions of a user share."""

    def change(self, limits: Limits) -> None:
        """Put new limits into force."""
        ...


class LiveSession(Protocol):
    """What is asked of a session whose account is watched."""

    username: str
    account_id: int
    credential: Credential | None

    @property
    def user_limits(self) -> Limited:
        """What all sessions of its user share."""
        ...

    def end(self, code: CloseCode, text: str) -> None:
        """End it, and tell its client why."""
        ...


def _end_void(session: LiveSession, credential: Credential) -> None:
    """End a session whose credential does not let it in any more."""
    # To clients, an account that they cannot log in to is one that is not there: they end.
    text = f"the {credential.name} of {session.username} is void by now"
    session.end(CloseCode.ACCOUNT_REMOVED, text)


@attrs.define(eq=False)
class Accounts:
    """Checks credentials against the store; without a store (`StartAuth: false`) everybody is `anonymity`.

    `upgrade_passwords` has a password that the store holds in plain text replaced by its hash when somebody logs in with it.
    """

    state: StateFolder
    store: Store | None
    traffic: Traffic
    upgrade_passwords: bool = False
    _damaged: set[str] = attrs.field(init=False, factory=lambda: set())
    _store_is_down: bool = attrs.field(init=False, default=False)

    async def authenticate(
        self, username: str, *, password: str | None, token: bytes | None = None
    ) -> User | None:
        """Return the account that these credentials open, or None where no login is needed.

        `token` is a ticket's; with one, the password does not count.

        An unknown name, a wrong password and a void ticket get the same answer, and cost the same time.

        Raises:
            RefusedError: they open none, or it has expired or is damaged, or the store cannot be asked.
        """
        if self.store is None:
            await trio.lowlevel.checkpoint()
            return None
        try:
            user = await self.store.find_user(username)
        except StoreError as error:
            raise self._cannot_ask(error) from error
        authentic = await self._is_authentic(user, username, password, token)
        if user is None or not authentic:
            kind = "ticket" if token is not None else "name or password"
            reason = (
                f"wrong {kind}"
                if username
                else "this server wants a ticket, or a user and a password"
            )
            raise RefusedError(RefusalCode.AUTH_FAILED, f"authentication failed: {reason}")
        if user.is_expired(_now()):
            raise RefusedError(RefusalCode.ACCOUNT_EXPIRED, f"the account {user.name} has expired")
        if self._is_damaged(user):
            raise RefusedError(
                RefusalCode.STORE_UNAVAILABLE,
                f"the account {user.name} is damaged: ask the server's operator",
            )
        if self.upgrade_passwords and token is None and not is_hashed(user.password):
            user = await self._upgrade(self.store, user)
        try:
            exhausted = await self._exhausted([user])
        except StoreError as error:
            raise self._cannot_ask(error) from error
        self._note_store(None)
        if exhausted:
            raise RefusedError(RefusalCode.QUOTA_EXCEEDED, exhausted[user.name])
        return user

    async def _exhausted(self, users: Iterable[User]) -> dict[str, str]:
        """Return, for those of the users who have no traffic left this month, what to tell them."""
        quotas = {
            user.name: user.limits.monthly_quota
            for user in users
            if user.limits.monthly_quota is not None
        }
        used = await self.traffic.used_this_month(quotas) if quotas else {}
        return {
            name: f"the account {name} has used up its {format_amount(quota)} of this month (UTC)"
            for name, quota in quotas.items()
            if used[name] >= quota
        }

    def _is_damaged(self, user: User) -> bool:
        """Tell whether the account must not be used; log that once, as long as it lasts."""
        if not user.damage:
            self._damaged.discard(user.name)
        elif user.name not in self._damaged:
            self._damaged.add(user.name)
            log.warning("an account cannot be used", user=user.name, error=user.damage)
        return user.name in self._damaged

    async def _is_authentic(
        self, user: User | None, username: str, password: str | None, token: bytes | None
    ) -> bool:
        if token is not None:
            return user is not None and verify_ticket(self.state, user, token)
        try:
            return await verify_password(None if user is None else user.password, password or "")
        except StoreError as error:
            log.warning("an account cannot be used", user=username, error=str(error))
            return False

    async def _upgrade(self, store: Store, user: User) -> User:
        """Replace a plain text by its hash; whoever logs in is let in all the same if that fails.

        Return the account with the password that was checked, as the store holds that now: not what somebody else may have
        set meanwhile, which this login has not shown.
        """
        try:
            hashed = await hash_password(user.password)
            if not await store.upgrade_password(user.name, user.password, hashed):
                return user  # it was changed meanwhile: `watch` finds out whether it is another one
        except StoreError as error:
            log.warning("a password stays in plain text", user=user.name, error=str(error))
            return user
        log.info("a password in plain text was replaced by its hash", user=user.name)
        return attrs.evolve(user, password=hashed)

    async def watch(self, sessions: Mapping[int, LiveSession]) -> None:
        """Give live sessions their accounts' new limits, and end those whose account may not go on, for ever.

        A store that is down ends none, and a session whose account is damaged goes on as it is. Passwords that were hashed
        meanwhile, perhaps all at once, are compared between two looks, as many as there is time for, and the others after the next.
        """
        store = self.store
        if store is None:
            return
        next_look = trio.current_time() + WATCH_INTERVAL
        while True:
            await trio.sleep_until(next_look)
            doubtful = await self._look(store, list(sessions.values())) if sessions else []
            next_look = trio.current_time() + WATCH_INTERVAL
            for session, credential, user in doubtful:
                if trio.current_time() >= next_look:
                    break
                if (renewed := await credential.renewed(user)) is not None:
                    session.credential = renewed
                else:
                    _end_void(session, credential)

    async def _look(
        self, store: Store, watched: Collection[LiveSession]
    ) -> list[tuple[LiveSession, Credential, User]]:
        """Look at the accounts once; return of which sessions only the password can tell whether they may go on."""
        try:
            users = await store.find_users({session.username for session in watched})
            exhausted = await self._exhausted(users.values())
        except StoreError as error:
            self._note_store(error)
            return []
        self._note_store(None)
        doubtful: list[tuple[LiveSession, Credential, User]] = []
        for session in watched:
            name, credential = session.username, session.credential
            user = users.get(name)
            if user is None or user.account_id != session.account_id:
                session.end(CloseCode.ACCOUNT_REMOVED, f"the account {name} was removed")
                continue
            if credential is not None and not credential.opens(user):
                if not credential.may_be_renewed(user):
                    _end_void(session, credential)
                    continue
                doubtful.append((session, credential, user))
            if user.is_expired(_now()):
                session.end(CloseCode.ACCOUNT_EXPIRED, f"the account {name} has expired")
            elif name in exhausted:
                session.end(CloseCode.QUOTA_EXCEEDED, exhausted[name])
            elif not self._is_damaged(user):
                session.user_limits.change(user.limits)
        return doubtful

    def _cannot_ask(self, error: StoreError) -> RefusedError:
        self._note_store(error)
        return RefusedError(
            RefusalCode.STORE_UNAVAILABLE, "the server cannot check accounts now; try again"
        )

    def _note_store(self, error: StoreError | None) -> None:
        """Log that the store is down, and that it is back, once each: all clients may be trying to get in."""
        if error is not None and not self._store_is_down:
            log.warning("the user store cannot be asked; sessions go on", error=str(error))
        elif error is None and self._store_is_down:
            log.info("the user store can be asked again")
        self._store_is_down = error is not None
