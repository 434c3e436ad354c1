"""What is done by the API, written down for the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.server.console.context import tell_change
from trionat.server.events.audit import CONSOLE, TOKEN, UNFINISHED, Actor

if TYPE_CHECKING:
    from trionat.server.console.context import Change
    from trionat.server.events.audit import Audit

_ACTIONS: Final = {
    "add_user": "account.added",
    "change_user": "account.changed",
    "remove_user": "account.removed",
    "set_password": "account.changed",
    "revoke_tickets": "account.changed",
    "kick_user": "kick",
    "kick_session": "kick",
    "kick_visitor": "kick",
    "add_token": "token.added",
    "revoke_token": "token.revoked",
    "release_name": "name.released",
    "lift_ban": "ban.lifted",
}
"""What the command line calls the same; all others have the name of their operation."""

_WHAT: Final = {
    "add_user": "",
    "add_token": "",
    "set_password": "password",
    "revoke_tickets": "tickets",
}
"""What is told in place of the names of the fields that were sent."""

_KINDS: Final = {"kick_user": "user", "kick_session": "session", "kick_visitor": "visitor"}
"""What stands before the target of a kick."""


@attrs.frozen
class Trail:
    """Notes changes in the audit, and in the log."""

    audit: Audit

    def note(self, change: Change) -> None:
        """See `Context.on_change`."""
        tell_change(change)
        principal, name = change.principal, change.operation.name
        actor = Actor(
            by=CONSOLE if principal.token is None else TOKEN,
            name=principal.username,
            token=principal.token,
            address=change.host,
        )
        given = {key: str(value) for key, value in change.parameters.items()}
        told: dict[str, Any] = {**change.sent, **change.also}
        target = str(told.pop("name", "")) or given.pop(next(iter(given), ""), "")
        what = _WHAT.get(name, ", ".join(each for each in change.sent if each != "name"))
        details: dict[str, Any] = {"what": what} if what else {}
        details |= {**given, **told}
        if change.unfinished:
            details[UNFINISHED] = True
        target = f"{_KINDS[name]} {target}" if name in _KINDS else target
        self.audit.note(
            actor,
            _ACTIONS.get(name, name),
            target,
            details,
            is_bounded=not principal.is_admin,
        )
