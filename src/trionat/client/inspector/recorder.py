"""All recordings: which there are, how much memory they may take, and who is told of what changes.

A visitor is recorded at its local service: `RecordedEndpoint` stands in the place of the service's own endpoint. Where nothing is recorded there is
no such endpoint, and so nothing of this on the way of the bytes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from trionat.client.forwarder import Forwarder
from trionat.client.inspector.recording import Recording
from trionat.relay.client_tunnel import LocalServiceError

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.client.inspector.recording import Track
    from trionat.config.service import Service
    from trionat.transport.endpoint import Endpoint
    from trionat.transport.readiness import Readiness

MOST_MEMORY: Final = 64 * 1024 * 1024
"""Bytes that are kept of all visitors together."""

MOST_ENDED: Final = 10_000
"""Visitors that have left and are still listed; one takes about a KiB, besides its bytes."""


class Watcher(Protocol):
    """Somebody who is told of changes."""

    def note(self, number: int) -> None:
        """The recording of that number has changed, or is not there any more."""
        ...


@attrs.define(eq=False)
class Recorder:
    """`limit` is how many bytes of each direction of a visitor are kept, `memory` of all together: the oldest make room. `most` visitors that have left are listed."""

    limit: int
    memory: int = MOST_MEMORY
    most: int = MOST_ENDED
    recordings: dict[int, Recording] = attrs.field(init=False, factory=lambda: {})
    live: dict[int, Recording] = attrs.field(init=False, factory=lambda: {})
    watchers: set[Watcher] = attrs.field(init=False, factory=lambda: set())
    held: int = attrs.field(init=False, default=0)
    _numbers: count[int] = attrs.field(init=False, factory=lambda: count(1))
    # Ordered ones: of a plain dict the oldest is found only by passing over all that were there before it.
    _holding: OrderedDict[int, Recording] = attrs.field(init=False, factory=lambda: OrderedDict())
    _ended: OrderedDict[int, Recording] = attrs.field(init=False, factory=lambda: OrderedDict())

    def begin(
        self,
        number: int,
        service: Service,
        visitor: TCPAddress | None,
        visited: TCPAddress | None,
        *,
        replay_of: int | None = None,
    ) -> Recording:
        """Return the recording of a visitor who begins now, at the service of that number."""
        recording = Recording(
            number=next(self._numbers),
            service=number,
            name=service.name,
            local=str(service.local),
            visitor=visitor,
            visited=visited,
            began_at=time.time(),
            limit=self.limit,
            replay_of=replay_of,
        )
        self.recordings[recording.number] = recording
        self.live[recording.number] = recording
        self._tell(recording.number)
        return recording

    def grow(self, recording: Recording, taken: int) -> None:
        """A recording takes so much more memory now."""
        self.held += taken
        if recording.number not in self._holding:
            self._holding[recording.number] = recording
        while self.held > self.memory and self._holding:
            number, oldest = self._holding.popitem(last=False)
            self.held -= oldest.drop()
            self._tell(number)

    def end(self, recording: Recording, why: str) -> None:
        """A visitor is done with. May be said again with a better reason."""
        recording.end(why)
        if self.live.pop(recording.number, None) is not None:
            self._ended[recording.number] = recording
            if len(self._ended) > self.most:
                self._forget(self._ended.popitem(last=False)[1])
        self._tell(recording.number)

    def note_closed(self, plain: Endpoint, reason: str) -> None:
        """A visitor is done with, for that reason, which is told when the connection to its service is closed already."""
        if isinstance(plain, RecordedEndpoint):
            self.end(plain.recording, reason)

    def discard(self, recording: Recording) -> None:
        """There was no such visitor after all."""
        self.live.pop(recording.number, None)
        self._ended.pop(recording.number, None)
        self._forget(recording)

    def clear(self) -> None:
        """Forget all visitors that have left."""
        while self._ended:
            self._forget(self._ended.popitem(last=False)[1])

    def _forget(self, recording: Recording) -> None:
        if self.recordings.pop(recording.number, None) is None:
            return
        self._holding.pop(recording.number, None)
        self.held -= recording.drop()
        self._tell(recording.number)

    def _tell(self, number: int) -> None:
        for watcher in self.watchers:
            watcher.note(number)


class RecordedEndpoint:
    """The endpoint of a local service, of which a recording is made. See `Endpoint`."""

    def __init__(self, endpoint: Endpoint, recording: Recording, recorder: Recorder) -> None:
        self.recording = recording
        self._endpoint = endpoint
        self._recorder = recorder
        self._sent = recording.sent
        self._received = recording.received
        self._recv_into = endpoint.recv_into
        self._send = endpoint.send
        self.readable: Readiness = endpoint.readable
        self.writable: Readiness = endpoint.writable

    def recv_into(self, room: memoryview) -> int:
        """See `Endpoint`."""
        count = self._recv_into(room)
        track = self._sent
        if track.is_full:  # as nearly always in a bulk transfer, and so without another function
            track.count += count
        elif count:
            self._note(track, room[:count])
        if not count and track.ended is None:
            track.ended = time.perf_counter()
        return count

    def send(self, data: bytes | memoryview) -> int:
        """See `Endpoint`."""
        count = self._send(data)
        track = self._received
        if track.is_full:
            track.count += count
        else:
            self._note(track, memoryview(data)[:count])
        return count

    def _note(self, track: Track, piece: memoryview) -> None:
        if taken := self.recording.add(track, piece):
            self._recorder.grow(self.recording, taken)

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        return self._endpoint.has_unsent

    def flush(self) -> None:
        """See `Endpoint`."""
        self._endpoint.flush()

    def send_eof(self) -> None:
        """See `Endpoint`."""
        self._endpoint.send_eof()
        if self._received.ended is None:
            self._received.ended = time.perf_counter()

    def is_lost(self) -> bool:
        """See `Endpoint`."""
        return self._endpoint.is_lost()

    def limit_silence(self, seconds: float) -> None:
        """See `Endpoint`."""
        self._endpoint.limit_silence(seconds)

    def silent_for(self) -> float:
        """See `Endpoint`."""
        return self._endpoint.silent_for()

    def fileno(self) -> int:
        """See `Endpoint`."""
        return self._endpoint.fileno()

    def close(self) -> None:
        """See `Endpoint`."""
        self._endpoint.close()
        self._end("closed")

    def reset(self) -> None:
        """See `Endpoint`."""
        self._endpoint.reset()
        self._end("reset")

    def _end(self, why: str) -> None:
        if self.recording.ended is None:
            self._recorder.end(self.recording, why)


@attrs.define(eq=False)
class RecordingForwarder(Forwarder):
    """A forwarder whose visitors are recorded."""

    recorder: Recorder = attrs.field(kw_only=True)

    async def open(
        self, number: int, visitor: TCPAddress | None = None, visited: TCPAddress | None = None
    ) -> Endpoint:
        """See `Forwarder`."""
        return await self.open_recorded(number, visitor, visited)

    async def open_recorded(
        self,
        number: int,
        visitor: TCPAddress | None = None,
        visited: TCPAddress | None = None,
        *,
        replay_of: int | None = None,
    ) -> RecordedEndpoint:
        """Connect to a service for a visitor, or for a replay. Raises as `open`."""
        if (service := self.find(number)) is None:
            raise LocalServiceError(f"there is no service number {number}")
        recorder = self.recorder
        recording = recorder.begin(number, service, visitor, visited, replay_of=replay_of)
        try:
            endpoint = await super().open(number, visitor, visited)
        except LocalServiceError as error:
            recorder.end(recording, str(error))
            raise
        except BaseException:  # it is begun anew elsewhere, or all of it ends
            recorder.discard(recording)
            raise
        return RecordedEndpoint(endpoint, recording, recorder)

    async def _try(self, number: int) -> None:
        (await super().open(number)).close()

    def note_closed(self, plain: Endpoint, reason: str) -> None:
        """See `Forwarder`."""
        self.recorder.note_closed(plain, reason)
