"""Sessions and visitors as the console shows them: a row for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.admin.snapshot import ServiceView  # noqa: TC001 - read when the document is made

if TYPE_CHECKING:
    from trionat.server.admin.snapshot import ReservedView, SessionView, VisitorView


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
