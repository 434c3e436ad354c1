"""The tunnels of a native session: two tasks each, which serve one visitor after another."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError, PeerTimeoutError
from trionat.log import get_logger
from trionat.protocol.tunnel_frames import AbortReason, Resume
from trionat.relay.acknowledgements import are_owed
from trionat.relay.liveness import ACKNOWLEDGED_WITHIN
from trionat.relay.server_tunnel import ServerTunnel
from trionat.server.sessions.tunnels import Tunnels
from trionat.server.visitors.queue import Place
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trionat.protocol.messages import Lost
    from trionat.relay.send_buffer import SendBuffer
    from trionat.relay.stream import VisitorStream
    from trionat.server.visitors.visitor import Visitor
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Tunnels that a visitor is given in vain where streams are not resumed; then it is reset.
_TRIES = 3

# Idle tunnels that nobody has needed for this long, in sweeps, are sent home.
_RETIRE_AFTER = 30


async def _at_once(_: Visitor) -> None:
    pass


@attrs.define(eq=False)
class _Served:
    """What runs on one tunnel: its current visitor, the one before, and the next, which `release` holds. `place` is its own in the queue."""

    scope: trio.CancelScope
    place: Place
    next: Visitor | None = None
    current: Visitor | None = None
    before: Visitor | None = None


@attrs.define(eq=False, kw_only=True)
class NativeTunnels(Tunnels):
    """Cancelled, `run` puts visitors whose streams can go on over another tunnel back into the queue, and resets the others.

    `keep_idle` is how many idle tunnels the client wants at least, `acknowledged_within` is as in `Tunnel`. With `new_buffer` streams outlive
    their tunnels, and one that gets no further over any of them is reset after `resume_wait` seconds. `on_acks` is called, once a second or where a
    buffer is full, when the client is to be told how far they are. `release` is waited for before a tunnel gets a visitor. With `confirms`, one that has had
    a visitor before answers a probe first.
    """

    keep_idle: int
    acknowledged_within: float = ACKNOWLEDGED_WITHIN
    new_buffer: Callable[[], SendBuffer] | None = None
    resume_wait: float = 0.0
    on_acks: Callable[[], None] = lambda: None
    release: Callable[[Visitor], Awaitable[None]] = _at_once
    confirms: bool = False
    _tunnels: dict[ServerTunnel, _Served] = attrs.field(init=False, factory=lambda: {})
    _sweeps: int = attrs.field(init=False, default=0)

    async def _serve(self, wire: Endpoint, early: bytes) -> None:
        assert not early, "a login lets nothing through behind ATTACH"  # noqa: S101 - its bug, not the peer's
        place = Place()
        tunnel = ServerTunnel(
            wire,
            acknowledged_within=self.acknowledged_within,
            on_full=self.on_acks,
            on_probed=partial(self.queue.restore, place),
        )
        served = self._tunnels[tunnel] = _Served(trio.CancelScope(), place)
        reason = "its session has ended"
        try:
            with isolated(log, "tunnel lost"), served.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        self._carry, tunnel, served, nursery.cancel_scope, name="carry"
                    )
                    await tunnel.receive()
                    nursery.cancel_scope.cancel("the client closed the tunnel")
            reason = "the tunnel was lost"
        finally:
            del self._tunnels[tunnel]
            streams = tunnel.detach()
            current, before = served.current, served.before
            if current is not None and self.streams[current].over:
                # The last words were said, only the bookkeeping was cut short. The client may not have heard them.
                self._finish(current, self.streams[current].end)
                current, before = None, current
            if before is not None and before.stream in streams:
                self._wait_anew(before)
            if current is not None:
                self._rescue(current, reason)

    async def _carry(self, tunnel: ServerTunnel, served: _Served, scope: trio.CancelScope) -> None:
        is_new = True
        while (visitor := await self.queue.next(served.place)) is not None:
            served.next = visitor
            try:
                if self.confirms and not is_new:
                    await tunnel.confirm()
                is_new = False
                await self.release(visitor)
            except BaseException:
                self.queue.put_back(visitor)
                raise
            finally:
                served.next = None
            served.current = visitor
            stream = await self._serve_visitor(visitor, tunnel)
            served.current, served.before = None, visitor
            self._finish(visitor, stream.end)
        scope.cancel("not needed any more")

    async def _serve_visitor(self, visitor: Visitor, tunnel: ServerTunnel) -> VisitorStream:
        frame = visitor.opening
        visitor.tries += 1
        if (stream := visitor.stream) is None:
            buffer = None if self.new_buffer is None else self.new_buffer()
            stream = visitor.stream = visitor.new_stream(buffer)
            self._begin(visitor, stream)
            await tunnel.open(stream, frame)
        else:
            stream.attempt += 1
            if not stream.can_resume:  # the client is told, and lets go of its end
                stream.fail(AbortReason.OTHER, "too much was under way to go on (ResumeMemory)")
                visitor.endpoint.reset()
            self._begin(visitor, stream)
            # Not one that began on the control connection, whose first tunnel this is, nor one of whom only the last words are to be said.
            if visitor.tries > 1 and stream.failure is None and not visitor.has_left:
                log.info("visitor goes on over another tunnel", visitor=visitor.number)
            await tunnel.resume(
                stream, Resume(frame, stream.received, stream.acknowledged, stream.attempt)
            )
        return stream

    def kick(self, number: int, reason: str) -> bool:
        """See `Tunnels`; finds those as well that `release` holds."""
        for served in self._tunnels.values():
            visitor = served.next
            if visitor is None or visitor.number != number or visitor.is_over:
                continue
            if visitor.stream is not None:
                visitor.stream.fail(AbortReason.OTHER, reason)
                visitor.endpoint.reset()
                return True
        return super().kick(number, reason)

    def _rescue(self, visitor: Visitor, reason: str) -> None:
        """The tunnel is gone: the visitor goes on over another one where it can, else it is reset."""
        stream = self.streams[visitor]
        if stream.aborted:  # only our answer was to be sent
            visitor.endpoint.reset()
            self._finish(visitor, stream.end)
        elif stream.send_buffer is not None:
            if not visitor.is_over:  # else only the client is to be told
                log.info("visitor waits for another tunnel", visitor=visitor.number, reason=reason)
            self._end(visitor)
            self._wait_anew(visitor)
        elif visitor.tries < _TRIES and not (stream.taken or stream.received or stream.failure):
            visitor.stream = None  # the service has got nothing of it
            self._put_back(visitor)
        else:
            visitor.endpoint.reset()
            self._finish(visitor, reason)

    def _wait_anew(self, visitor: Visitor) -> None:
        """Its stream goes on over the next tunnel. One that comes no further from one tunnel to the next waits no longer for that."""
        stream = visitor.stream
        assert stream is not None, "it had a tunnel"  # noqa: S101 - for type checkers
        now = trio.current_time()
        if stream.advance():
            visitor.since = now
        elif now - visitor.since > self.resume_wait and stream.failure is None:
            stream.fail(AbortReason.OTHER, "it gets no further over any tunnel")
            visitor.endpoint.reset()
            visitor.since = now  # until the client is told
        self.queue.put_back(visitor)

    # -- what the control connection brings --------------------------------------------------------------------------

    def streams_on_tunnels(self) -> Iterator[VisitorStream]:
        """Those of which each side tells the other how far it is."""
        for tunnel in self._tunnels:
            yield from tunnel.streams

    def give_up(self, lost: Lost) -> None:
        """The client has lost these visitors' tunnels: they wait for others."""
        attempts, silent = dict(lost.streams), False
        for tunnel in list(self._tunnels):
            if any(attempts.get(stream.visitor) == stream.attempt for stream in tunnel.streams):
                self._end_tunnel(tunnel, "the client has lost it")
                silent = True
        if silent:
            self._doubt_idle()

    def _sweep(self) -> None:
        """See after every tunnel, and send home those that were not needed for a while."""
        doubtful = any(tunnel.liveness.is_asked for tunnel in self._tunnels)
        silent = False
        for tunnel in list(self._tunnels):
            try:
                tunnel.sweep(doubtful=doubtful)
            except PeerError as error:
                self._give_up_tunnel(tunnel, error)
                silent = silent or isinstance(error, PeerTimeoutError)
            else:
                silent = silent or tunnel.liveness.is_overdue
        if silent:
            self._doubt_idle()
        if are_owed(self.streams_on_tunnels()):
            self.on_acks()
        self._sweeps += 1
        if self._sweeps % _RETIRE_AFTER == 0:
            busy = len(self._tunnels) - self.queue.idle
            self.queue.retire(max(0, self.queue.least_idle - max(self.keep_idle, busy // 4)))
            self.queue.least_idle = self.queue.idle

    def _doubt_idle(self) -> None:
        """A tunnel is silent, and others may have died with it: those that were not heard of lately get no visitor until they answer a probe.

        Those who come meanwhile wait, so the client opens new ones.
        """
        for tunnel, served in list(self._tunnels.items()):
            if served.scope.cancel_called:
                continue
            try:
                if tunnel.doubt():
                    self.queue.withhold(served.place)
            except PeerError as error:
                self._give_up_tunnel(tunnel, error)

    def _give_up_tunnel(self, tunnel: ServerTunnel, error: PeerError) -> None:
        log.info("tunnel given up", reason=str(error))
        self._end_tunnel(tunnel, str(error))

    def _end_tunnel(self, tunnel: ServerTunnel, reason: str) -> None:
        """End a tunnel whose client may not notice a mere end, since it may wait for a plain end that does not read."""
        served = self._tunnels[tunnel]
        served.scope.cancel(reason)
        self.queue.withhold(served.place)  # its task is still to end
        tunnel.wire.reset()
