"""When the other end of a tunnel has been silent, or has owed an answer, for too long.

Nothing here has a timer: a sweep comes once a second for every tunnel, and all of this counts sweeps. So there is no clock on the way of
the bytes, which only set `heard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import ConnectionLostError, PeerTimeoutError

if TYPE_CHECKING:
    from trionat.transport.endpoint import Endpoint

SWEEP_INTERVAL: Final = 1.0
"""Seconds from one sweep to the next."""

PROBE_AFTER: Final = 15
"""Sweeps of silence on an idle tunnel; below the 30 s after which the hastiest NATs forget a connection."""

PROBE_SOON_AFTER: Final = 2
"""Sweeps of silence, where a visitor is about to use the tunnel, or another one to the same peer does not answer: whoever was heard of a moment
ago need not be asked again."""

_PROBE_ANSWER_WITHIN: Final = 4
"""Sweeps: a round trip, with room for two retransmissions (RFC 6298: 1 s, then 2 s)."""

FORGOTTEN_AFTER: Final = 60
"""Sweeps of silence on an idle tunnel after which a client gives it up: several probes did not arrive."""

_ABORT_ANSWER_WITHIN: Final = 10
"""Sweeps; the peer reads our ABORT only when it has delivered what came before."""

_LOST_WIRE_STUCK_FOR: Final = 5
"""Sweeps for which what came over a wire that is lost by now may wait for its reader. What is still read may be all of it, with its END."""

ACKNOWLEDGED_WITHIN: Final = 15.0
"""Seconds in which the peer's kernel has to acknowledge something of what a busy tunnel has sent. Nobody is asked there, so the kernel
has to tell; a slow reader's acknowledges all the same. With less, tunnels would end in outages that the control connection survives."""

RESUMED_AFTER: Final = 4.0
"""The same, in seconds, where streams outlive their tunnels: then nothing is lost with one that might have come back. With the second or two
that the kernel takes to repeat what was lost, another tunnel has the stream within 6 s."""


def acknowledged_within(peer_timeout: float) -> float:
    """Return for how long the tunnels of a session whose peer may be silent for so long wait; no shorter than the session."""
    return max(ACKNOWLEDGED_WITHIN, 2 * peer_timeout)


@attrs.define(eq=False)
class Liveness:
    """What is known of the other end of one tunnel. `heard` is set whenever something comes; `silent` is in sweeps."""

    wire: Endpoint
    acknowledged_within: float = ACKNOWLEDGED_WITHIN
    heard: bool = attrs.field(init=False, default=True)
    silent: int = attrs.field(init=False, default=0)
    _unanswered_probe: int | None = attrs.field(init=False, default=None)
    _unanswered_abort: int = attrs.field(init=False, default=0)
    _unacknowledged: int = attrs.field(init=False, default=0)
    _wire_lost: bool = attrs.field(init=False, default=False)
    _stuck: int = attrs.field(init=False, default=0)
    _given: int = attrs.field(init=False, default=0)

    @property
    def is_asked(self) -> bool:
        """Whether the peer owes an answer to a probe."""
        return self._unanswered_probe is not None

    @property
    def is_overdue(self) -> bool:
        """Whether the peer has owed an answer to a probe, or an acknowledgement, for more than a sweep."""
        return self._unacknowledged > 1 or (self._unanswered_probe or 0) > 1

    def ask(self) -> None:
        """A probe, or what is answered like one, is on its way. What was heard before is no answer; what was owed before is owed since then."""
        if self._unanswered_probe is None or self.heard:
            self._unanswered_probe = 0
            self.heard = False

    def sweep(self, *, busy: bool, aborting: bool, given: int) -> None:
        """Count one sweep. `given` are the bytes that the visitor, or the service, has taken so far.

        Raises:
            PeerTimeoutError: the peer owes something for too long.
            ConnectionLostError: the wire is lost.
        """
        self._check_wire(given)
        self._unanswered_abort = self._unanswered_abort + 1 if aborting else 0
        if self._unanswered_abort > _ABORT_ANSWER_WITHIN:
            raise PeerTimeoutError("the other end of the tunnel did not answer an ABORT")
        # Counted, since the kernel tells when it last heard anything, which may be long before what it has just sent.
        stalled = busy and self.wire.silent_for() > SWEEP_INTERVAL
        self._unacknowledged = self._unacknowledged + 1 if stalled else 0
        if self._unacknowledged * SWEEP_INTERVAL > self.acknowledged_within:
            raise PeerTimeoutError("the other end of the tunnel acknowledged nothing for too long")
        if self.heard:
            self.heard = False
            self.silent = 0
            self._unanswered_probe = None
            return
        self.silent += 1
        if self._unanswered_probe is not None:
            self._unanswered_probe += 1
            if self._unanswered_probe > _PROBE_ANSWER_WITHIN:
                raise PeerTimeoutError("the other end of the tunnel did not answer a probe")

    def _check_wire(self, given: int) -> None:
        """Notice that the wire was lost while nobody reads it, since what came waits for a plain end that takes nothing."""
        self._wire_lost = self._wire_lost or self.wire.is_lost()
        if not self._wire_lost:
            return
        self._stuck = self._stuck + 1 if given == self._given else 0
        self._given = given
        if self._stuck > _LOST_WIRE_STUCK_FOR:
            raise ConnectionLostError("the tunnel was lost")
