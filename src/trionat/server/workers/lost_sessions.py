"""Sessions whose worker was killed: it cannot tell any more whether their clients come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.events.event import session_ended, session_lost

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trionat.server.events.hub import Hub
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.ports import LeaseKey, PointId
    from trionat.server.workers.link import Values


@attrs.define(eq=False)
class LostSessions:
    """Tells `events` that they are lost, and that they have ended when what they held in `table` is gone before their clients are back."""

    table: ClaimTable
    events: Hub
    _lost: dict[LeaseKey, Values] = attrs.field(init=False, factory=lambda: {})

    def add(
        self,
        word: str,
        up: Mapping[int, Values],
        away: Mapping[int, Values],
        keys: Mapping[int, LeaseKey],
    ) -> None:
        """The worker with that word is gone. By uid: what events say of its sessions that were up, and of those that were lost already; and the keys of their clients."""
        held = {claim.key for claim in self.table.held_by(word)}
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
            if (key := keys.get(uid)) is not None and key in held:
                self._lost[key] = facts
            else:  # its client is at another worker, or node
                self._tell_end(facts)

    def note_up(self, key: LeaseKey, points: Collection[PointId]) -> bool:
        """A client is up. Tell whether it is one of these, and has its ports and names again; one that has others by now has lost what it had."""
        facts = self._lost.pop(key, None)
        if facts is None:
            return False
        if set(points) == set(facts["points"]):
            return True
        self._tell_end(facts)
        return False

    def tell_ends(self) -> None:
        """Tell of those that hold nothing any more. What is held under the key of one by now may be for its client, which is on its way to another worker."""
        for key, facts in list(self._lost.items()):
            if not self.table.has(key):
                del self._lost[key]
                self._tell_end(facts)

    def _tell_end(self, facts: Values) -> None:
        ended: Values = {
            **facts,
            "code": "gone",
            "reason": "the client did not come back in time",
        }
        self.events.publish(session_ended(**ended))
