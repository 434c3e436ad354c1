"""What the rest of trionat knows of a store: the `Store` protocol, and what goes in and out of it.

A store answers questions about accounts and adds up their traffic; it knows nothing of sessions, sockets or the text of tickets.
There are two: SQLite, the embedded one, and MySQL or MariaDB. Every method is a checkpoint and never blocks the loop. Cancelling
a call leaves the store usable and either the whole change made, perhaps a moment later, or none of it.
"""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, Self

import attrs

from trionat.errors import LastAdministratorError, NameTakenError
from trionat.hostnames import parse_pattern
from trionat.networks import parse_network
from trionat.store.amount import MAX_AMOUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from datetime import datetime

    from trionat.store.day import DayTotal
    from trionat.store.tokens import Token

MAX_NAME_LENGTH: Final = 64
"""Characters in the name of a new account; chosen, not measured: it fits every log line, and every store."""

_SALT_BYTES: Final = 16

NOBODYS_SALT: Final = "A" * 22
"""16 bytes of zero, as a hash has its salt: of an account that has no password (`passwords.make_no_password`)."""


def check_new_name(name: str, whose: str = "user") -> None:
    """Check the name of an account or a token to be made; accounts that exist already may have any name.

    Raises:
        ValueError: It is empty, too long, or has blanks or characters in it that cannot be seen.
    """
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable() or " " in name:
        raise ValueError(
            f"a {whose} name is 1 to {MAX_NAME_LENGTH} characters without blanks or control characters, got {name!r}"
        )


def new_ticket_salt() -> bytes:
    """Return a random salt for an account's tickets."""
    return secrets.token_bytes(_SALT_BYTES)


@attrs.frozen(kw_only=True)
class Limits:
    """What an account may use at most; None means as much as the server gives to anybody.

    `visit_ports` are the only ports that it may have, `names` the only names, as `parse_pattern` returns patterns of them; `sessions` and `visitors` are counted at once; `bandwidth` is in bytes per
    second and `monthly_quota` in bytes per calendar month (UTC), both directions added. `allow_visitors` are the only networks
    (as `parse_network` takes them) that may visit, `deny_visitors` those that may not; where both have an address, it may not.
    """

    visit_ports: tuple[int, ...] | None = None
    sessions: int | None = None
    visitors: int | None = None
    bandwidth: int | None = None
    monthly_quota: int | None = None
    allow_visitors: tuple[str, ...] | None = None
    deny_visitors: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    @property
    def shared(self) -> Limits:
        """What all sessions of the account share: without ports and names, of which each has its own."""
        return attrs.evolve(self, visit_ports=None, names=None)

    def to_text(self) -> str:
        """Return what stores keep: a JSON object of the limits that there are, or nothing where there are none."""
        there = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return json.dumps(there) if there else ""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `to_text` wrote.

        Raises:
            ValueError: It is something else; people can write into databases.
        """
        if not text:
            return cls()
        try:
            there = json.loads(text)
            ports = there.pop("visit_ports", None)
            allow, deny = there.pop("allow_visitors", None), there.pop("deny_visitors", None)
            names = there.pop("names", None)
            for each in (ports, allow, deny, names):
                if each is not None and type(each) is not list:
                    raise ValueError(f"{each!r} is no list")
            for number in (*there.values(), *(ports or ())):
                if type(number) is not int or not 0 <= number <= MAX_AMOUNT:
                    raise ValueError(f"{number!r} limits nothing")
            for network in (*(allow or ()), *(deny or ())):
                parse_network(network)
            for name in names or ():
                if parse_pattern(name) != name:
                    raise ValueError(f"{name!r} is not as a pattern is kept")
            limits = cls(
                visit_ports=None if ports is None else tuple(ports),
                allow_visitors=None if allow is None else tuple(allow),
                deny_visitors=None if deny is None else tuple(deny),
                names=None if names is None else tuple(names),
                **there,
            )
        except (TypeError, AttributeError, RecursionError) as exc:
            raise ValueError("limits are whole numbers by name") from exc
        if limits.bandwidth == 0:
            raise ValueError("a rate of nothing would hold a stream up for ever")
        return limits


def read_limits(text: str, *, of: str) -> tuple[Limits, str]:
    """Read what a store keeps of an account's limits: return them, or none, and what is wrong with them."""
    try:
        return Limits.from_text(text), ""
    except ValueError:
        reason = "are damaged: set all of them anew with trionat user limit"
        return Limits(), f"the limits of {of!r} in the store {reason}"


@attrs.frozen(kw_only=True)
class User:
    """One account.

    `account_id` is given by the store (0 in an account that is to be added) and tells the account from a later one of the same
    name. `password` is an Argon2id hash in PHC text form or, in a database that the Go program wrote, the password itself.
    `ticket_salt` (16 bytes) goes into the account's ticket, so that a new salt revokes every ticket handed out before; it is
    empty where there is none, in an account that the Go program made: then every ticket is void until a salt is set.
    `expires_at` is UTC and aware; None means never. The instant itself counts as expired. `created_at` is None where the store
    does not know it. `admin` says that it may see and change all of the server, by the console and the API; `disabled` that it may not
    log in now, nor may its sessions go on. `damage` is empty, or tells what is wrong with the account in the store: one that must not be used
    until that is put right.
    """

    name: str
    password: str = attrs.field(repr=False)
    ticket_salt: bytes = attrs.field(repr=False)
    expires_at: datetime | None = None
    created_at: datetime | None = None
    limits: Limits = Limits()
    admin: bool = False
    disabled: bool = False
    damage: str = ""
    account_id: int = 0

    @property
    def has_password(self) -> bool:
        """Whether there is a password to log in with; without one there are tickets and tokens only."""
        if not self.password.startswith("$argon2"):
            return bool(self.password)
        return f"${NOBODYS_SALT}$" not in self.password

    def is_expired(self, now: datetime) -> bool:
        """Tell whether the account is past its expiry at `now` (aware)."""
        return self.expires_at is not None and now >= self.expires_at

    def may_administer(self, now: datetime) -> bool:
        """Tell whether it is an administrator that may log in at `now` (aware)."""
        can_log_in = self.has_password and not (self.disabled or self.damage)
        return self.admin and can_log_in and not self.is_expired(now)


def check_administrators(
    before: User, after: User | None, others: Iterable[User], now: datetime
) -> None:
    """Check that a change of an account leaves somebody who is an administrator and may log in; `after` is None where it is removed.

    Raises:
        LastAdministratorError: It does not.
    """
    if not before.may_administer(now) or (after is not None and after.may_administer(now)):
        return
    if not any(other.may_administer(now) for other in others):
        raise LastAdministratorError


@attrs.frozen(kw_only=True)
class Flush:
    """Traffic to be added, once: bytes by user name, both directions added, relayed in `month` (`2026-11`, UTC).

    `server` names who counted (a server's own random name, 32 hexadecimal digits) and `number` its flushes, from 1 on, one more
    each time: a store adds a flush only if its number is above the last one that it has of that server. So one whose answer was
    lost can be sent again.
    """

    server: str
    number: int
    month: str
    amounts: Mapping[str, int]

    def missing(self, month: str, last: int) -> Mapping[str, int]:
        """Return the bytes of that month in it, unless a store has it whose last flush of this server has the number `last`."""
        return self.amounts if month == self.month and self.number > last else {}


MOST_NAMES: Final = 1000
"""Names that one user may have had within the time for which they are kept: a client that asks for one after another fills no table."""

TOO_MANY_NAMES: Final = (
    f"this account has had {MOST_NAMES} names lately, and may have no other for a while"
)

FRESH: Final = timedelta(hours=1)
"""A last use that is younger is not written anew."""


UNSETTLED: Final = timedelta(minutes=2)
"""But one that is younger than this is: who has made a reservation may take it back, unless somebody else of the account counts on it as well and has written it anew."""

FORGOTTEN_AT_ONCE: Final = 100
"""Names whose time is over that one change removes: however many they are, who wants a name does not wait for all of them. The same goes for totals of days."""

MOST_DAYS_AT_ONCE: Final = 1000
"""Totals of days that are returned at once; whoever wants more asks again."""


@attrs.frozen(kw_only=True)
class OwnedName:
    """Whose a name is, and when it was used last (aware): the account's of that name and `account_id`, not a later one's of the same name.

    `owner` is empty where the account is gone: nobody has the name until its time is over.
    """

    name: str
    owner: str
    account_id: int
    used_at: datetime

    def is_of(self, user: str, account_id: int) -> bool:
        """Tell whether it is this account's."""
        return (self.owner, self.account_id) == (user, account_id)

    def may_stay(self, user: str, account_id: int, now: datetime) -> bool:
        """Tell whether it is this account's, and its use need not be noted now: as most often."""
        return self.is_of(user, account_id) and UNSETTLED <= now - self.used_at < FRESH


def check_free(
    found: Mapping[str, OwnedName], user: str, account_id: int, now: datetime, keep: timedelta
) -> None:
    """Check that each name is an account's, or free again.

    Raises:
        NameTakenError: One is neither.
    """
    for name, owned in found.items():
        if not owned.is_of(user, account_id) and now - owned.used_at < keep:
            raise NameTakenError(name)


class Store(Protocol):
    """Accounts by name, and their traffic; names are compared exactly, case and all.

    Every method raises `StoreUnavailableError` when the store cannot be asked, and those that need an existing user
    `StoreError` when there is none. Those that change something raise `StoreDataError`, and change nothing, when a value cannot be
    stored. Several processes may use one store at once: servers that run, and `trionat user`.
    """

    async def prepare(self) -> None:
        """Make sure that the store can be used, and make what is missing of trionat's own in it.

        Raises:
            StoreUnavailableError: It cannot be used; the message says what to do.
        """
        ...

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None."""
        ...

    async def find_users(self, names: Collection[str]) -> dict[str, User]:
        """Return the accounts of those names that exist, by name; one question, however many they are."""
        ...

    async def list_users(self) -> list[User]:
        """Return every account, sorted by name."""
        ...

    async def add_user(self, user: User) -> None:
        """Add an account, made now if it has no `created_at`; `StoreError` where the name is taken."""
        ...

    async def remove_user(self, name: str, *, keep_administrator: bool = False) -> None:
        """Remove an account with its limits and tokens; its traffic stays. `StoreError` where there is none.

        Raises:
            LastAdministratorError: with `keep_administrator`, where nobody else is one and may log in.
        """
        ...

    async def set_password(self, name: str, password: str, ticket_salt: bytes) -> None:
        """Replace password (a hash) and salt together: who changes a password wants the old tickets dead as well."""
        ...

    async def upgrade_password(self, name: str, old: str, new: str) -> bool:
        """Replace the stored password by a hash of it, salt and tickets untouched; False where it is not `old` any more."""
        ...

    async def set_ticket_salt(self, name: str, ticket_salt: bytes) -> None:
        """Replace the salt alone: old tickets are dead, the password stays."""
        ...

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends (aware UTC), or that it never does."""
        ...

    async def set_admin(self, name: str, *, admin: bool) -> None:
        """Make an account an administrator, or none any more."""
        ...

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Keep an account from logging in, or let it again."""
        ...

    async def change_user(
        self, name: str, change: Callable[[User], User], *, keep_administrator: bool = False
    ) -> User:
        """Change when an account ends, its limits, and whether it is an administrator or disabled, in one step; return it as it is then.

        `change` gets the account as it is and returns it as it is to be, perhaps in another thread, and perhaps once more; what it raises changes nothing. Damaged limits stay as they are,
        unless it takes away the `damage`.

        Raises:
            LastAdministratorError: with `keep_administrator`, where nobody would be left that is one and may log in.
        """
        ...

    async def add_token(self, token: Token) -> None:
        """Add a token of an account.

        Raises:
            StoreError: The account is not there (any more), has a token of that name, or as many as it may have (`MOST_TOKENS`).
        """
        ...

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token whose text has that SHA-256, expired or not; None where there is none, or its account is gone."""
        ...

    async def list_tokens(self, user: str | None = None) -> list[Token]:
        """Return every token whose account is there, or those of one account, sorted by account and name."""
        ...

    async def touch_token(self, token_id: str, now: datetime) -> None:
        """Note that a token was used, if it is there; its last use never becomes earlier."""
        ...

    async def remove_token(self, token_id: str) -> None:
        """Remove a token; `StoreError` where there is none."""
        ...

    async def reserve_names(
        self, user: str, account_id: int, names: Collection[str], now: datetime, keep: timedelta
    ) -> frozenset[str]:
        """Make names (whole, in small letters) an account's, all or none: each has to be its own, or used last `keep` ago or longer, or by nobody yet. Their last use is `now`.

        It never becomes earlier, where a clock was set back. Of two that ask at once one gets them. The names of an account that is gone, whoever has removed it, are nobody's until that time is over: an account
        that is made later has another id.

        Returns:
            Those that were not the account's before, which `take_back_names` takes.

        Raises:
            NameTakenError: One is somebody else's.
            StoreError: The user has had too many names lately (`MOST_NAMES`).
        """
        ...

    async def take_back_names(
        self, user: str, account_id: int, names: Collection[str], reserved_at: datetime
    ) -> None:
        """Forget names of an account that were new with a reservation of that moment; but not what was reserved or used since."""
        ...

    async def touch_name(self, user: str, name: str, now: datetime) -> bool:
        """Note that a name was used; tell whether it is the user's. One that is not stays as it is, and none becomes another account's by it."""
        ...

    async def list_names(self) -> list[OwnedName]:
        """Return every name that is known, sorted; some may be free again."""
        ...

    async def release_name(self, name: str) -> None:
        """Forget whose a name is: anybody may have it. `StoreError` where it is not known."""
        ...

    async def add_traffic(self, flush: Flush, day: str | None = None) -> bool:
        """Add a flush to the totals, to its month and to that day of it (`2026-11-29`, UTC), wholly and once, whether its users have accounts or not.

        Days that are `DAYS_KEPT` older are forgotten. Without a day it is added to none.

        Returns:
            Whether this call added it; False where the store has that server's flush of this number, or a later one.

        Raises:
            StoreDataError: It does not take an amount or a name. The number is looked at first: so no earlier call has added
                this flush either.
        """
        ...

    async def traffic(self) -> dict[str, int]:
        """Return the bytes of every user that has any, in all."""
        ...

    async def monthly_traffic(
        self, month: str, names: Collection[str], pending: Flush | None = None
    ) -> dict[str, int]:
        """Return the bytes of these users in that month (`2026-11`, UTC); who has none may be missing.

        What is in `pending`, a flush of which nobody knows whether it was added, counts once: as if it had been.
        """
        ...

    async def daily_traffic(
        self,
        first: str,
        last: str,
        *,
        user: str | None = None,
        after: tuple[str, str] = ("", ""),
        limit: int = MOST_DAYS_AT_ONCE,
    ) -> list[DayTotal]:
        """Return the totals of these days (`2026-11-29`, UTC; both are among them), of all users or one, in the order of day and user.

        It begins behind `after`, a day and a user, and returns at most `limit`.
        """
        ...
