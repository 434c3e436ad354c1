"""Sessions, visitors, accounts and tokens as the console shows them: a row for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from trionat.server.accounts.values import token_values, user_values
from trionat.server.admin.snapshot import ServiceView  # noqa: TC001 - read when the document is made

if TYPE_CHECKING:
    from datetime import datetime

    from trionat.server.admin.snapshot import ReservedView, SessionView, VisitorView
    from trionat.store.base import User
    from trionat.store.tokens import Token


@attrs.frozen(kw_only=True)
class SessionRow:
    """A session, without its visitors. `round_trip` is in seconds (null: not known), `rate` in bytes per second, both ways."""

    uid: int
    user: str
    client: str
    dialect: str
    address: str
    since: str
    seconds: float
    round_trip: float | None
    services: tuple[ServiceView, ...]
    visitor_count: int
    tunnels_idle: int
    tunnels_busy: int
    received: int
    sent: int
    rate: float
    group: str | None
    restrictions: tuple[str, ...]

    @classmethod
    def of(cls, view: SessionView) -> SessionRow:
        """Return the row of a session."""
        return cls(
            visitor_count=len(view.visitors),
            **{
                name: getattr(view, name)
                for name in attrs.fields_dict(cls)
                if name != "visitor_count"
            },
        )


@attrs.frozen(kw_only=True)
class VisitorRow:
    """A visitor, and whose: `session` is null where the client was lost and its ports are kept. `waiting` for a tunnel, or else served; `rate` is in bytes per second, both ways."""

    number: int
    address: str
    port: int
    name: str | None
    since: str
    seconds: float
    received: int
    sent: int
    rate: float
    waiting: bool
    session: int | None
    user: str
    client: str | None

    @classmethod
    def of(cls, visitor: VisitorView, session: SessionView, rate: float) -> VisitorRow:
        """Return the row of a visitor that a session has."""
        return cls._make(visitor, session.uid, session.user, session.client, rate)

    @classmethod
    def of_waiting(cls, visitor: VisitorView, reserved: ReservedView) -> VisitorRow:
        """Return the row of a visitor that waits for a client to come back."""
        return cls._make(visitor, None, reserved.user, None, 0.0)

    @classmethod
    def _make(
        cls, visitor: VisitorView, session: int | None, user: str, client: str | None, rate: float
    ) -> VisitorRow:
        return cls(
            number=visitor.number,
            address=visitor.address,
            port=visitor.port,
            name=visitor.name,
            since=visitor.since,
            seconds=visitor.seconds,
            received=visitor.received,
            sent=visitor.sent,
            rate=rate,
            waiting=visitor.waiting,
            session=session,
            user=user,
            client=client,
        )


@attrs.frozen(kw_only=True)
class LimitsRow:
    """What an account may have at most; null: as much as the server gives to anybody. `bandwidth` is in bytes per second, `monthly_quota` in bytes."""

    visit_ports: tuple[int, ...] | None
    sessions: int | None
    visitors: int | None
    bandwidth: int | None
    monthly_quota: int | None
    allow_visitors: tuple[str, ...] | None
    deny_visitors: tuple[str, ...] | None
    names: tuple[str, ...] | None


@attrs.frozen(kw_only=True)
class UserRow:
    """An account. `used_this_month` is in bytes, both directions added, of this month (UTC); `damage` says why nobody can log in until it is repaired."""

    name: str
    admin: bool
    disabled: bool
    has_password: bool
    created_at: str | None
    expires_at: str | None
    expired: bool
    limits: LimitsRow
    damage: str | None
    used_this_month: int

    @classmethod
    def of(cls, user: User, used: int, now: datetime) -> Self:
        """Return the row of an account."""
        values: dict[str, Any] = user_values(user, now)
        values["limits"] = LimitsRow(**values["limits"])
        return cls(**values, used_this_month=used)

    @property
    def user(self) -> str:
        """Whose row it is, as other rows have it."""
        return self.name


@attrs.frozen(kw_only=True)
class TokenRow:
    """A token, but for its secret. `last_used` is right to the hour."""

    id: str
    name: str
    user: str
    scope: Literal["read", "manage", "metrics"]
    created_at: str
    expires_at: str | None
    expired: bool
    last_used: str | None

    @classmethod
    def of(cls, token: Token, now: datetime) -> Self:
        """Return the row of a token."""
        values: dict[str, Any] = token_values(token, now)
        return cls(**values)
