"""Sessions whose worker was killed: it cannot tell any more whether their clients come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.events.event import session_ended, session_lost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionat.server.events.hub import Hub
    from trionat.server.registry.claim import Claim
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Values


@attrs.define(eq=False)
class LostSessions:
    """Tells `events` that they are lost, and that they have ended when what they held in `table` is gone before their clients are back."""

    table: ClaimTable
    events: Hub
    _lost: dict[LeaseKey, tuple[Claim, Values]] = attrs.field(init=False, factory=lambda: {})

    def add(
        self,
        word: str,
        up: Mapping[int, Values],
        away: Mapping[int, Values],
        keys: Mapping[int, LeaseKey],
    ) -> None:
        """The worker with that word is gone. By uid: what events say of its sessions that were up, and of those that were lost already; and the keys of their clients."""
        claims = {claim.key: claim for claim in self.table.held_by(word)}
        lost: dict[int, Values] = dict(away)
        for uid, facts in up.items():
            lost[uid] = {
                **facts,
                "code": "worker",
                "reason": "its worker has ended",
                "seconds": 0.0,
                "relayed": 0,
            }
            self.events.publish(session_lost(**lost[uid]))
        for uid, facts in lost.items():
            if (key := keys.get(uid)) is not None and key in claims:
                self._lost[key] = claims[key], facts
            else:  # its client is at another worker, or node
                self._tell_end(facts)

    def note_back(self, key: LeaseKey) -> None:
        """A client is back."""
        self._lost.pop(key, None)

    def tell_ends(self) -> None:
        """Tell of those that hold nothing any more."""
        for key, (claim, facts) in list(self._lost.items()):
            if not self.table.is_current(claim):
                del self._lost[key]
                self._tell_end(facts)

    def _tell_end(self, facts: Values) -> None:
        ended: Values = {
            **facts,
            "code": "gone",
            "reason": "the client did not come back in time",
        }
        self.events.publish(session_ended(**ended))
