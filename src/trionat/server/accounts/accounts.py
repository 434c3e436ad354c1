"""Who may log in, and who may stay."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from trionat.errors import RefusedError, StoreError
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.server.accounts.scope import Scope, told_expiry
from trionat.server.accounts.tickets import verify_ticket
from trionat.server.events.event import account_expired, quota_reached, quota_warning
from trionat.server.events.hub import Hub
from trionat.store.amount import format_amount
from trionat.store.month import month_of
from trionat.store.passwords import hash_password, is_hashed, verify_password

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from trionat.server.accounts.credential import Credential
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.state_folder import State
    from trionat.store.base import Limits, Store, User

log = get_logger(__name__)

# With StartAuth: false everybody is this user.
ANONYMOUS: Final = "anonymity"

_NOBODY_IS_HELD: Final = "this server has no accounts, so it cannot keep to the restrictions of a ticket (StartAuth: false): use the ticket that it shows"

_WARN_AT: Final = 0.8
"""The part of its monthly quota at which an account's operator is told."""

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


def _told_disabled(name: str) -> str:
    return f"the account {name} is disabled: ask the server's operator"


def _end_expired(sessions: Iterable[LiveSession]) -> None:
    """End sessions whose ticket has expired."""
    now = _now()
    for session in sessions:
        expires_at = None if session.credential is None else session.credential.expires_at
        if expires_at is not None and now >= expires_at:
            session.end(CloseCode.ACCOUNT_EXPIRED, told_expiry(session.username, expires_at))


def _check_caveats(user: User, caveats: Sequence[str]) -> None:
    """Refuse a ticket, whose token is right, for what its caveats say."""
    try:
        scope = Scope.of(user.limits, caveats)
    except ValueError as error:
        raise RefusedError(RefusalCode.UNSUPPORTED_VERSION, str(error)) from error
    if scope.expires_at is not None and scope.is_expired(_now()):
        raise RefusedError(RefusalCode.ACCOUNT_EXPIRED, told_expiry(user.name, scope.expires_at))


@attrs.define(eq=False)
class Accounts:
    """Checks credentials against the store; without a store (`StartAuth: false`) everybody is `anonymity`.

    `upgrade_passwords` has a password that the store holds in plain text replaced by its hash when somebody logs in with it.
    `quotas` has what users with a quota and a session had used of it this month at the last look, and their quota, in bytes.
    `events` is told of quotas, and of accounts that have expired.
    """

    state: State
    store: Store | None
    traffic: Traffic
    upgrade_passwords: bool = False
    quotas: dict[str, tuple[int, int]] = attrs.field(init=False, factory=lambda: {})
    events: Hub = attrs.field(factory=Hub, kw_only=True)
    _damaged: set[str] = attrs.field(init=False, factory=lambda: set())
    _store_is_down: bool = attrs.field(init=False, default=False)

    async def authenticate(
        self,
        username: str,
        *,
        password: str | None,
        token: bytes | None = None,
        caveats: Sequence[str] = (),
        has_traffic: bool = True,
    ) -> User | None:
        """Return the account that these credentials open, or None where no login is needed.

        `token` is a ticket's; with one, the password does not count. `caveats` are those of the ticket, and hold in any case. Who `has_traffic` has to have some left this month.

        An unknown name, a wrong password and a void ticket get the same answer, and cost the same time.

        Raises:
            RefusedError: they open none, or it has expired or is disabled or damaged, or the ticket has expired or says what is not known here, or the
                store cannot be asked.
        """
        if self.store is None:
            if caveats:
                raise RefusedError(RefusalCode.UNSUPPORTED_VERSION, _NOBODY_IS_HELD)
            await trio.lowlevel.checkpoint()
            return None
        try:
            user = await self.store.find_user(username)
        except StoreError as error:
            raise self._cannot_ask(error) from error
        authentic = await self._is_authentic(user, username, password, token, caveats)
        if user is None or not authentic:
            kind = "ticket" if token is not None else "name or password"
            reason = (
                f"wrong {kind}"
                if username
                else "this server wants a ticket, or a user and a password"
            )
            raise RefusedError(RefusalCode.AUTH_FAILED, f"authentication failed: {reason}")
        _check_caveats(user, caveats)
        if user.disabled:
            raise RefusedError(RefusalCode.ACCOUNT_EXPIRED, _told_disabled(user.name))
        if user.is_expired(_now()):
            self._tell_expired(user)
            raise RefusedError(RefusalCode.ACCOUNT_EXPIRED, f"the account {user.name} has expired")
        if self._is_damaged(user):
            raise RefusedError(
                RefusalCode.STORE_UNAVAILABLE,
                f"the account {user.name} is damaged: ask the server's operator",
            )
        if self.upgrade_passwords and token is None and not is_hashed(user.password):
            user = await self._upgrade(self.store, user)
        try:
            exhausted = await self._exhausted([user]) if has_traffic else {}
        except StoreError as error:
            raise self._cannot_ask(error) from error
        self._note_store(None)
        if exhausted:
            raise RefusedError(RefusalCode.QUOTA_EXCEEDED, exhausted[user.name])
        return user

    async def _exhausted(self, users: Collection[User]) -> dict[str, str]:
        """Return, for those of the users who have no traffic left this month, what to tell them."""
        quotas = {
            user.name: user.limits.monthly_quota
            for user in users
            if user.limits.monthly_quota is not None
        }
        used = await self.traffic.used_this_month(quotas) if quotas else {}
        for user in users:
            if (quota := quotas.get(user.name)) is None:
                self.quotas.pop(user.name, None)
            else:
                self.quotas[user.name] = used[user.name], quota
        if self.events.is_on:
            self._tell_quotas(quotas, used)
        return {
            name: f"the account {name} has used up its {format_amount(quota)} of this month (UTC)"
            for name, quota in quotas.items()
            if used[name] >= quota
        }

    def _tell_quotas(self, quotas: Mapping[str, int], used: Mapping[str, int]) -> None:
        month = month_of(_now())
        for name, quota in quotas.items():
            if used[name] >= _WARN_AT * quota:
                tell = quota_reached if used[name] >= quota else quota_warning
                self.events.publish(tell(user=name, month=month, used=used[name], quota=quota))

    def _tell_expired(self, user: User) -> None:
        if self.events.is_on and user.expires_at is not None:
            expires_at = user.expires_at.isoformat()
            self.events.publish(account_expired(user=user.name, expires_at=expires_at))

    def _is_damaged(self, user: User) -> bool:
        """Tell whether the account must not be used; log that once, as long as it lasts."""
        if not user.damage:
            self._damaged.discard(user.name)
        elif user.name not in self._damaged:
            self._damaged.add(user.name)
            log.warning("an account cannot be used", user=user.name, error=user.damage)
        return user.name in self._damaged

    async def _is_authentic(
        self,
        user: User | None,
        username: str,
        password: str | None,
        token: bytes | None,
        caveats: Sequence[str],
    ) -> bool:
        if token is not None:
            return user is not None and verify_ticket(self.state, user, token, caveats)
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
            for name in self.quotas.keys() - {each.username for each in sessions.values()}:
                del self.quotas[name]
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
        _end_expired(watched)  # which takes no store
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
            if user.disabled:
                session.end(CloseCode.ACCOUNT_EXPIRED, _told_disabled(name))
            elif user.is_expired(_now()):
                self._tell_expired(user)
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
