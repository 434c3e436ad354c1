"""TLS in memory, between a socket's bytes and ours.

One call of the kernel brings or takes many records, which OpenSSL on a socket would read and write one by one, each record in two
reads. So a message costs one read, and a bulk transfer a sixteenth of the calls.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from trionat.transport.endpoint import SocketBase
from trionat.transport.readiness import TURN
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


# What goes through OpenSSL's memory at once. It never gives back what it has once taken, for each direction of each connection: with 256 KiB a
# server with 500 busy tunnels had three times the memory.
_PIECE_BYTES: Final = 32 * 1024


class TLSEndpoint(SocketBase):
    """A TLS connection on a socket, which it owns.

    The end of the TCP stream counts as the end even without TLS's close_notify: every protocol of ours that runs in here says
    itself when it is complete, so nothing can be cut off unseen. We send none ourselves, unless the end is to be told (`tells_end`): to visitors, since an answer of HTTP may
    end with the connection, and is cut off for many of them if nothing else says so.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        tells_end: bool = False,
    ) -> None:
        """Make it; `do_handshake` comes first.

        Raises:
            ValueError: the name of the server is none.
        """
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
            session=session,
        )
        # What it has for an answer with a buffer is its length.
        self._read = cast("Callable[[int, memoryview], int]", self.tls.read)
        self._room = scratch().records[:_PIECE_BYTES]
        self._unsent = b""
        self._ahead = b""  # read by `send_eof`
        self._tells_end = tells_end
        self._ends = False  # behind what is unsent
        self._has_ended = False  # the peer

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        return bool(self._unsent)

    def flush(self) -> None:
        """See `Endpoint`."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        if self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
            if self._unsent:
                raise BlockingIOError
        if self._ends:
            self._ends = False
            super().send_eof()

    def send_eof(self) -> None:
        """See `Endpoint`. Where there is no room for close_notify, `flush` goes on with it."""
        if not self._tells_end:
            super().send_eof()
            return
        # OpenSSL looks at once for the peer's close_notify, and breaks the connection where it finds data.
        if count := self.tls.pending():
            self._ahead += self.tls.read(count)
        records = self._incoming.read()
        with suppress(ssl.SSLError):  # mostly SSLWantReadError: the peer has not ended
            self.tls.unwrap()
        self._incoming.write(records)
        self._ends = True
        with suppress(BlockingIOError):
            self.flush()

    def _feed(self) -> bool:
        """Give OpenSSL what the kernel has; tell whether that was all. BlockingIOError: it has nothing."""
        count = self.sock.recv_into(self._room)
        self._incoming.write(self._room[:count])
        return count < len(self._room)

    def recv_into(self, buffer: memoryview) -> int:
        """See `Endpoint`."""
        tls, incoming, room = self.tls, self._incoming, len(buffer)
        filled = 0
        emptied = False
        if self._ahead:
            filled = min(room, len(self._ahead))
            buffer[:filled] = self._ahead[:filled]
            self._ahead = self._ahead[filled:]
        while filled < room:
            if incoming.pending or tls.pending():  # to ask in vain costs an exception
                try:
                    count = self._read(room - filled, buffer[filled:] if filled else buffer)
                except ssl.SSLWantReadError:
                    pass  # there is half a record
                except ssl.SSLZeroReturnError:  # close_notify, where we have ended as well
                    self._note_end()
                    break
                else:
                    if not count:  # close_notify
                        self._note_end()
                        break
                    filled += count
                    continue
            if self._has_ended or (emptied and filled):
                break
            try:
                emptied = self._feed()
            except BlockingIOError:
                if not filled:
                    raise
                break
            if not incoming.pending:  # the end of the stream
                break
        return filled

    def _note_end(self) -> None:
        """The peer has said close_notify. The end of TCP need not follow, so nobody may wait for the socket any more."""
        self._has_ended = True
        self.readable = TURN

    def send(self, data: bytes | memoryview) -> int:
        """See `Endpoint`."""
        if self._unsent:
            self.flush()
        view = memoryview(data)
        count = 0
        while count < len(view):
            count += self.tls.write(view[count : count + _PIECE_BYTES])
            records = self._outgoing.read()
            try:
                sent = self.sock.send(records)
            except BlockingIOError:
                sent = 0
            if sent < len(records):
                self._unsent = records[sent:]
                break
        return count

    async def do_handshake(self) -> None:
        """Shake hands; the caller sets the deadline.

        Raises:
            OSError: the peer went away, speaks no TLS, or (as `ssl.SSLError`) does not agree.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush_all()
                await self._feed_some()
            except ssl.SSLError:
                with suppress(OSError):
                    self.flush()  # the alert, which says why
                raise
            else:
                await self._flush_all()
                return

    async def _feed_some(self) -> None:
        while True:
            try:
                self._feed()
            except BlockingIOError:
                await self.readable.wait()
            else:
                break
        if not self._incoming.pending:
            self._incoming.write_eof()

    async def _flush_all(self) -> None:
        while True:  # noqa: ASYNC913 - ends where there is room
            try:
                self.flush()
            except BlockingIOError:
                await self.writable.wait()
            else:
                return
