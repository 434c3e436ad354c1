"""A visitor's HTTP connection, as one service sees it: an `Endpoint` like any other for the tunnel that serves it.

What `recv_into` gives is what goes to the service: a head that was checked and written anew, then its body, one request after the other as long as
`same_service` says that they are its own. A request waits for the answer before. When the connection has something else to say than a request for
this service, the tunnel is told that no more comes, and whoever owns the connection goes on with it.

What `send` takes is what the service says: heads are written anew, and each answer is followed to its end, so that no service can say anything
that nobody has asked it for.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.protocol.http.answer import (
    BEGINNING,
    MOST_ANSWER_HEAD_BYTES,
    NO_ANSWER,
    NOT_HTTP,
    parse_answer,
)
from trionat.protocol.http.body import ChunkFollower, ChunkReader
from trionat.protocol.http.fields import HeadReader, HttpError
from trionat.protocol.http.head import RequestHead
from trionat.server.names.http_connection import READ_BYTES, Refusal
from trionat.transport.readiness import TURN, Gate, Readiness
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.server.names.http_connection import HttpConnection, Said

# Of a body, what leaves together with its head; the rest goes without being copied.
_JOINED_BYTES: Final = 64 * 1024

# Seconds for a service to end its side when it was told that no more comes.
_ENDS_WITHIN: Final = 10.0


class _Closed(Readiness):
    async def wait(self) -> None:
        raise trio.ClosedResourceError

    def nudge(self) -> None:
        """Nobody waits."""


_CLOSED: Final = _Closed()

GONE: Final = 499
"""What nginx writes for a request whose visitor did not wait for an answer."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@attrs.define(eq=False)
class HttpEndpoint:
    """See the module, and `Endpoint`. Does not own the connection: `close` and `reset` give it back.

    `on_over` is called once, with what the connection says next, which is for its owner: a request for another service, a refusal to be told to the
    visitor, or nothing. Nobody waits for the connection then, and this endpoint does not touch it any more. `on_answered` is called
    for each request but one of which a refusal tells, with the status of its answer (`GONE`: the visitor went before there was any), the bytes of its body that have left, be it complete
    or cut, and the seconds since the request: until the end of the answer, or until the connection became something else. `leaving` says that no other request is to be
    served here: an answer that begins is the last one, and a connection that waits for a request ends. `drops` are fields, in small letters, that the service does not get.
    """

    connection: HttpConnection
    request: RequestHead
    same_service: Callable[[RequestHead], bool]
    on_over: Callable[[Said], None]
    on_answered: Callable[[RequestHead, int, int, float], None] = (
        lambda _request, _status, _sent, _seconds: None
    )
    leaving: Callable[[], bool] = lambda: False
    drops: tuple[bytes, ...] = ()
    # Of the request: what is to be given next, and what comes after that.
    _outgoing: memoryview = attrs.field(init=False, repr=False)
    _length: int = attrs.field(init=False)
    _chunks: ChunkReader | None = attrs.field(init=False)
    _began: float = attrs.field(init=False)
    _read: int = attrs.field(init=False)  # of its body
    # Since when nothing has moved, and how much had by then.
    _still: tuple[float, int] = attrs.field(init=False)
    # Of the answer: whether it is still to come, whether its head is (0) and its status, and what of its body is. No length: it ends with the connection.
    _answering: bool = attrs.field(init=False)
    _status: int = attrs.field(init=False)
    _to_come: int | None = attrs.field(init=False, default=0)
    _follower: ChunkFollower | None = attrs.field(init=False, default=None)
    _followed: int = attrs.field(init=False, default=0)
    _sent: int = attrs.field(init=False, default=0)  # of its body
    _heads: HeadReader = attrs.field(init=False, factory=lambda: HeadReader(MOST_ANSWER_HEAD_BYTES))
    _is_last: bool = attrs.field(init=False, default=False)
    _has_spoken: bool = attrs.field(init=False)  # the service, if only to say 100
    # Of both.
    _raw: bool = attrs.field(init=False, default=False)  # the connection has become something else
    _switched: float | None = attrs.field(init=False, default=None)  # when it has
    _answered: Gate = attrs.field(init=False, factory=Gate)
    _was_read: bool = attrs.field(init=False, default=False)
    _is_lost: bool = attrs.field(init=False, default=False)
    _over: float | None = attrs.field(init=False, default=None)  # since when
    _closed: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._begin(self.request)

    # -- to the service -----------------------------------------------------------------------------------------------

    def _begin(self, request: RequestHead) -> None:
        """This is the next request."""
        connection = self.connection
        if self.drops:
            request = request.dropping(self.drops)
        outgoing = request.encode(connection.origin)
        self.request, self._length, self._chunks = request, request.length or 0, None
        if request.chunked:
            self._chunks = ChunkReader()
        elif self._length and connection.ahead:
            outgoing += (piece := connection.ahead[: self._length])
            connection.ahead = connection.ahead[len(piece) :]
            self._length -= len(piece)
        self._outgoing = memoryview(outgoing)
        self._answering, self._status, self._sent, self._read = True, 0, 0, 0
        self._has_spoken = False
        self._began = trio.current_time()
        self._still = self._began, -1

    @property
    def _is_asked(self) -> bool:
        """Whether the request is complete."""
        return not self._length and self._chunks is None and not self._outgoing

    def recv_into(self, buffer: memoryview) -> int:
        """See `Endpoint`."""
        if self._closed:
            raise _error(errno.EBADF)
        self._was_read = True
        try:
            while self._over is None:
                if self._outgoing:
                    count = min(len(buffer), len(self._outgoing))
                    buffer[:count] = self._outgoing[:count]
                    self._outgoing = self._outgoing[count:]
                    return count
                if self._raw:
                    return self.connection.take(buffer)
                if self._length:
                    return self._read_body(buffer)
                if self._chunks is not None:
                    if not self._read_chunks(self._chunks, buffer[:READ_BYTES]):
                        return 0
                elif self._answering:
                    return self._look_ahead(buffer[:READ_BYTES])
                else:
                    said = self.connection.read_head(buffer[:READ_BYTES])
                    if isinstance(said, RequestHead) and self.same_service(said):
                        self._begin(said)
                    else:
                        self._end(said)
        except BlockingIOError:
            raise
        except OSError:
            self._is_lost = True
            raise
        return 0

    def _read_body(self, buffer: memoryview) -> int:
        connection = self.connection
        count = connection.take(buffer)
        if count > self._length:
            connection.ahead = bytes(buffer[self._length : count]) + connection.ahead
            count = self._length
        self._length -= count
        self._read += count
        return count

    def _read_chunks(self, chunks: ChunkReader, buffer: memoryview) -> bool:
        """Read until there is something for the service; False: the visitor has ended, or was refused."""
        connection = self.connection
        while not self._outgoing:
            data = bytes(buffer[: connection.take(buffer)])
            if not data:
                return False
            self._read += len(data)
            try:
                outgoing, count = chunks.feed(data)
            except HttpError as error:
                self._end(None if self._status else self._refusal(error.status, str(error)))
                return False
            self._outgoing = memoryview(outgoing)
            if chunks.complete:
                self._chunks = None
                connection.ahead = data[count:] + connection.ahead
        return True

    def _look_ahead(self, buffer: memoryview) -> int:
        """While the answer comes: is the visitor still there? What it says waits, and no more is read then."""
        connection = self.connection
        if not connection.ahead:
            connection.ahead = bytes(buffer[: connection.take(buffer)])
            if not connection.ahead:
                return 0
        raise BlockingIOError

    @property
    def readable(self) -> Readiness:
        """See `Endpoint`."""
        connection = self.connection
        if self._closed:
            return _CLOSED
        if self._over is not None or self._outgoing:
            return TURN
        if connection.ahead:
            waits = self._answering and not self._raw and self._is_asked
            return self._answered if waits else TURN
        return TURN if connection.more else connection.endpoint.readable

    # -- to the visitor -----------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> int:
        """See `Endpoint`."""
        if self._over is not None:
            raise _error(errno.EBADF if self._closed else errno.EPIPE)
        try:
            if self.has_unsent:
                self.flush()
            if self._raw:
                sent = self.connection.endpoint.send(data)
                self._sent += sent
                return sent
            return self._pass_on(memoryview(data))
        except BlockingIOError:
            raise
        except OSError:
            self._is_lost = True
            raise

    def _pass_on(self, data: memoryview) -> int:
        """Pass on what belongs to answers; return how much was taken. Once it is over the rest is thrown away."""
        taken = 0
        while taken < len(data) and self._over is None:
            if not self._answering:  # nobody has asked for it
                self._end(None)
                break
            before, needs_head = taken, self._status == 0
            if needs_head:
                taken += self._read_answer(data[taken:])
                if self._status and taken < len(data):
                    continue  # what follows leaves together with the head
            piece = data[taken:] if self._status else data[:0]
            try:
                sent = self._send_piece(piece[: self._allow(piece)])
            except BlockingIOError:
                if not taken:
                    raise
                break
            taken += sent
            self._note_progress(sent)
            if taken == before and self._answering:
                break  # there is no room
        return taken if self._over is None else len(data)

    def _read_answer(self, data: memoryview) -> int:
        """Read on in its head; return how many bytes belong to that."""
        piece = bytes(data[:MOST_ANSWER_HEAD_BYTES])
        try:
            head, rest = self._heads.feed(piece)
            if head is None:
                if self._heads.begins_otherwise(BEGINNING):  # such as an alert of TLS
                    raise HttpError(502, NOT_HTTP)
                return len(piece)
            answer = parse_answer(head, self.request)
            if answer.is_switched and not self._is_asked:
                raise HttpError(502, "the service switches before it was asked")
        except HttpError as error:
            self._end(self._refusal(502, str(error)))
            return len(data)
        connection, minor = self.connection, self.request.minor
        if not self._has_spoken:
            self._has_spoken, self._still = True, (trio.current_time(), -1)
        if not answer.is_interim:
            # Who declines an upgrade may have stopped to look for requests all the same, as Node does.
            stays = (
                answer.keep_alive
                and self.request.keep_alive
                and not self.request.upgrade
                and not self.leaving()
            )
            self._is_last = not stays or connection.ended
            self._status = answer.status
            self._to_come = answer.length
            self._follower = ChunkFollower(502) if answer.chunked else None
            self._followed = 0
            if answer.is_switched:
                self._raw, self._switched = True, trio.current_time()
        if not answer.is_interim or minor:  # HTTP/1.0 knows none
            connection.unsent += answer.encode(keep_alive=not self._is_last, minor=minor)
        if self._raw and connection.ahead:
            self._answered.open()
        return len(piece) - len(rest)

    def _allow(self, data: memoryview) -> int:
        """Return how many of these bytes belong to the answer's body."""
        if self._follower is None:
            return (
                len(data) if self._raw or self._to_come is None else min(len(data), self._to_come)
            )
        if not self._follower.complete and len(data) > self._followed:
            try:
                self._followed += self._follower.follow(bytes(data[self._followed :]))
            except HttpError:
                self._end(None)  # part of it has left: the visitor sees that it is not complete
                return 0
        return self._followed

    def _send_piece(self, piece: memoryview) -> int:
        """Send what is unsent and that; return how much of the piece has left."""
        connection = self.connection
        if self._over is not None or not (connection.unsent or piece):
            return 0
        if not connection.unsent:
            return connection.endpoint.send(piece)
        unsent = connection.unsent
        sent = connection.endpoint.send(unsent + piece[:_JOINED_BYTES])
        connection.unsent = unsent[sent:]
        return max(0, sent - len(unsent))

    def _note_progress(self, sent: int) -> None:
        """So much of the answer's body has left. Was that the end?"""
        self._sent += sent
        if self._follower is not None:
            self._followed -= sent
        elif self._to_come is not None:
            self._to_come -= sent
        self._note_end()

    def _note_end(self) -> None:
        if self._over is not None or not self._answering or not self._status or self._raw:
            return
        if self._follower is not None:
            is_whole = self._follower.complete and not self._followed
        else:
            is_whole = self._to_come == 0
        if is_whole and not self.has_unsent:
            self._finish_answer()
            if self._is_last or self.connection.ended:
                self._end(None)
            elif self.connection.ahead:
                self._answered.open()

    def _finish_answer(self) -> None:
        """No more of it comes."""
        self._answering = False
        self.connection.since = now = trio.current_time()
        seconds = (self._switched or now) - self._began
        self.on_answered(self.request, self._status or GONE, self._sent, seconds)

    @property
    def writable(self) -> Readiness:
        """See `Endpoint`."""
        return _CLOSED if self._closed else self.connection.endpoint.writable

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        connection = self.connection
        return self._over is None and (bool(connection.unsent) or connection.endpoint.has_unsent)

    def flush(self) -> None:
        """See `Endpoint`."""
        if self._over is not None:
            return
        connection = self.connection
        if connection.unsent:
            connection.unsent = connection.unsent[connection.endpoint.send(connection.unsent) :]
            if connection.unsent:
                raise BlockingIOError
        connection.endpoint.flush()
        self._note_end()

    def send_eof(self) -> None:
        """See `Endpoint`: the service has ended its side, and so the connection ends, but for what nobody has answered yet."""
        if self._over is not None:
            return
        if self._raw:
            self.connection.endpoint.send_eof()
        elif self._answering and not self._status:
            self._end(self._refusal(502, NO_ANSWER))
        else:
            self._end(None)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self, said: Said) -> None:
        """No more of the connection comes this way. Who waits for it is let go."""
        if self._answering and not isinstance(said, Refusal):  # of that its owner tells
            self._finish_answer()
        endpoint = self.connection.endpoint
        self._over = trio.current_time()
        endpoint.readable.nudge()
        endpoint.writable.nudge()
        self._answered.open()
        self.on_over(said)

    def is_lost(self) -> bool:
        """See `Endpoint`. The tunnel asks once a second, so this is where the deadlines are looked at that only HTTP has."""
        now = trio.current_time()
        if self._over is not None:
            return self._closed or now > self._over + _ENDS_WITHIN
        connection = self.connection
        if connection.endpoint.is_lost():
            self._is_lost = True
        elif not self._answering and not self._raw and self._is_asked:
            if now > connection.deadline:
                self._end(connection.timed_out())
            elif self.leaving() and not connection.head_begun:
                self._end(None)
        elif (self._length or self._chunks is not None) and self._has_stalled(now):
            seconds = connection.limits.idle_timeout
            text = f"nothing more of the body within {seconds:g} s"
            if self._status and self._answering:
                connection.endpoint.reset()  # or it would look whole where it ends with the connection
            self._end(None if self._status else self._refusal(408, text))
        return self._is_lost

    def _has_stalled(self, now: float) -> bool:
        """Tell whether a visitor owes some of its body for too long. While anything of the answer leaves, it does not."""
        connection, moved = self.connection, self._read + self._sent
        since, before = self._still
        if moved != before:
            self._still = now, moved
            return False
        if now <= since + connection.limits.idle_timeout:
            return False
        if self._outgoing or connection.ahead or connection.ended:
            return False  # the service is the slow one
        if not (self._read or self._has_spoken) and self.request.values(b"expect"):
            return False  # it waits until the service wants the body
        # A tunnel without room does not read: what the visitor has said meanwhile is with the kernel.
        room, readable = scratch().incoming[:READ_BYTES], connection.endpoint.readable
        try:
            connection.ahead = bytes(room[: connection.take(room)])
        except BlockingIOError:
            return True
        except OSError:
            self._is_lost = True
            return False
        self._still = now, moved
        readable.nudge()
        return False

    def limit_silence(self, seconds: float) -> None:
        """See `Endpoint`."""
        self.connection.endpoint.limit_silence(seconds)

    def silent_for(self) -> float:
        """See `Endpoint`."""
        return 0.0 if self._over is not None else self.connection.endpoint.silent_for()

    def fileno(self) -> int:
        """See `Endpoint`."""
        return -1 if self._over is not None else self.connection.endpoint.fileno()

    def _refusal(self, status: int, text: str) -> Refusal:
        return Refusal(status, text, self.request, trio.current_time() - self._began)

    def _unanswered(self) -> Refusal | None:
        """Return what the visitor is to be told where nothing of an answer has left."""
        if self._is_lost or self._status or not self._answering:
            return None
        if not self._was_read:
            return self._refusal(503, "no tunnel for the request")
        return self._refusal(502, "the service was not reached, or lost before it answered")

    def close(self) -> None:
        """Give the connection back, if it is still here. See `Endpoint`."""
        if not self._closed:
            self._closed = True
            if self._over is None:
                self._end(self._unanswered())

    def reset(self) -> None:
        """Give the connection back; reset it where the visitor has got a part of an answer. See `Endpoint`."""
        if not self._closed:
            self._closed = True
            if self._over is None:
                said = self._unanswered()
                if said is None:
                    self.connection.endpoint.reset()
                self._end(said)
