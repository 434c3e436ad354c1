"""A visitor's connection whose first bytes can be read once more, as long as it has got no answer.

A node passes a visitor to the node that holds the port, as far as it knows. If that one has lost the port meanwhile, or is lost itself, the
visitor goes to another one, which has to get all that the visitor has said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.transport.endpoint import TLS_RECORD_BYTES, SocketEndpoint

if TYPE_CHECKING:
    from trionat.transport.endpoint import Endpoint
    from trionat.transport.readiness import Readiness

_CLOSE: Final = "close"
_RESET: Final = "reset"

_MOST_BYTES: Final = 64 * 1024
"""Of a visitor; one that has said more before any answer cannot be passed on a second time."""


@attrs.define(eq=False)
class Retained:
    """See the module, and `Endpoint`. Owns `inner`.

    Before the first answer, `close` and `reset` wake whoever waits, as ever, and are only noted else: `let_go` does it, or `rewind` begins anew.
    """

    inner: Endpoint
    _said: bytearray | None = attrs.field(init=False, repr=False, factory=bytearray)
    _read: int = attrs.field(init=False, default=0)
    _answered: bool = attrs.field(init=False, default=False)
    _farewell: str = attrs.field(init=False, default="")

    @property
    def readable(self) -> Readiness:
        """See `Endpoint`."""
        return self.inner.readable

    @property
    def writable(self) -> Readiness:
        """See `Endpoint`."""
        return self.inner.writable

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        return self.inner.has_unsent

    @property
    def can_rewind(self) -> bool:
        """Whether all that was read is still here, and nothing was written."""
        return self._said is not None and not self._answered

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was read or written."""
        return self._said is not None and not self._said and not self._answered

    def rewind(self) -> None:
        """Begin anew: what was read is read once more."""
        self._read, self._farewell = 0, ""

    def let_go(self) -> None:
        """Do what was put off; the next `close` or `reset` is done at once."""
        self._answered = True
        if self._farewell == _RESET:
            self.inner.reset()
        elif self._farewell:
            self.inner.close()

    def recv_into(self, buffer: memoryview) -> int:
        """See `Endpoint`."""
        said = self._said
        if said is None:
            return self.inner.recv_into(buffer)
        count = min(len(said) - self._read, len(buffer))
        if count:
            buffer[:count] = memoryview(bytes(said[self._read : self._read + count]))
            self._read += count
            if len(buffer) - count < TLS_RECORD_BYTES:
                return count
        try:
            more = self.inner.recv_into(buffer[count:])
        except (BlockingIOError, OSError):
            if count:
                return count
            raise
        if self._answered or len(said) + more > _MOST_BYTES:
            if self._read == len(said):
                self._said = None
        else:
            said += buffer[count : count + more]
            self._read = len(said)
        return count + more

    def send(self, data: bytes | memoryview) -> int:
        """See `Endpoint`."""
        count = self.inner.send(data)
        self._answered = True
        return count

    def flush(self) -> None:
        """See `Endpoint`."""
        self.inner.flush()

    def send_eof(self) -> None:
        """See `Endpoint`."""
        self._answered = True
        self.inner.send_eof()

    def is_lost(self) -> bool:
        """See `Endpoint`."""
        return self.inner.is_lost()

    def limit_silence(self, seconds: float) -> None:
        """See `Endpoint`."""
        self.inner.limit_silence(seconds)

    def silent_for(self) -> float:
        """See `Endpoint`."""
        return self.inner.silent_for()

    def fileno(self) -> int:
        """See `Endpoint`."""
        return self.inner.fileno()

    def close(self) -> None:
        """See the class."""
        if self._answered:
            self.inner.close()
        else:
            self._put_off(_CLOSE)

    def reset(self) -> None:
        """See the class."""
        if self._answered:
            self.inner.reset()
        else:
            self._put_off(_RESET)

    def _put_off(self, farewell: str) -> None:
        if self._farewell:
            return
        self._farewell = farewell
        try:
            if not isinstance(
                self.inner, SocketEndpoint
            ):  # what has become of it is not only the kernel's
                raise OSError
            sock = self.inner.sock.dup()
        except OSError:  # there is no descriptor left, or it is closed already
            self.let_go()
            self._said = None
        else:
            self.inner.close()  # wakes whoever waits; the connection is the other descriptor's by now
            self.inner = SocketEndpoint(sock)
