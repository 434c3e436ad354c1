"""What the process that serves and the one that is to take its place say to each other: messages with bytes and descriptors, over a pair of Unix sockets.

A message is a JSON object, behind it bytes as they are, behind those a zero byte for each batch of descriptors (unix(7), SCM_RIGHTS). The two may be of
different versions: who reads ignores fields that it does not know.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import attrs
import trio

from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Values: TypeAlias = "dict[str, Any]"

T = TypeVar("T")

_HEAD: Final = struct.Struct("!IQI")
"""Bytes of the JSON object, bytes behind it, and descriptors."""

_MOST_JSON: Final = 1024 * 1024 * 1024
_MOST_BYTES: Final = 1 << 40
"""Both are the word of a process that this user has started here: they only keep nonsense from looking like a length."""

_BATCH: Final = 250
"""Descriptors that are sent at once; Linux takes 253 (SCM_MAX_FD), other systems fewer than a thousand."""

_CROWDED: Final = 0.01
"""Seconds until the next try, where too many descriptors are on their way in the kernel (ETOOMANYREFS)."""

TO_GIVE: Final = 10.0
"""Seconds for what is handed over to be given, while nobody is accepted: it takes some hundredths."""

_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@attrs.frozen(kw_only=True)
class Parcel:
    """A message: what it says, the bytes and the descriptors that come with it. Those are whoever's who has the parcel, from both ends on."""

    word: str
    values: Values
    data: bytes = attrs.field(default=b"", repr=False)
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors, of which nobody has taken any."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@attrs.define(eq=False)
class Wire:
    """One end. Both methods block, for at most so many seconds: for a thread, or where nothing else runs."""

    sock: socket.socket

    def send(
        self,
        word: str,
        values: Values,
        *,
        data: Iterable[bytes] = (),
        descriptors: Sequence[int] = (),
        within: float,
    ) -> None:
        """Send a message. The descriptors stay the caller's.

        Raises:
            PeerTimeoutError: the other end has not taken all of it in time.
            ConnectionLostError: it is gone.
        """
        until = time.monotonic() + within
        text = json.dumps({**values, "word": word}, separators=(",", ":")).encode()
        pieces = list(data)
        head = _HEAD.pack(len(text), sum(map(len, pieces)), len(descriptors))
        try:
            # Not even an empty one behind the rest: who has heard all may have closed its end by then.
            for piece in (head + text, *filter(None, pieces)):
                self.sock.settimeout(_left(until))
                self.sock.sendall(piece)
            for start in range(0, len(descriptors), _BATCH):
                self._send_batch(descriptors[start : start + _BATCH], until)
        except TimeoutError as error:
            raise PeerTimeoutError(
                f"the other process has not taken what it was sent within {within:g} s"
            ) from error
        except OSError as error:
            raise ConnectionLostError(
                f"the other process is gone: {error.strerror or error}"
            ) from error

    def _send_batch(self, batch: Sequence[int], until: float) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", batch))
        while True:
            self.sock.settimeout(_left(until))
            try:
                self.sock.sendmsg([b"\0"], [rights])
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                time.sleep(_CROWDED)
            else:
                return

    def receive(self, *, within: float) -> Parcel:
        """Return the next message; the descriptors in it are the caller's.

        Raises:
            PeerTimeoutError: it has not come in time.
            ConnectionLostError: the other end is gone.
            RemoteProtocolError: it is none.
        """
        try:
            return self._receive(time.monotonic() + within)
        except TimeoutError as error:
            raise PeerTimeoutError(
                f"nothing was heard from the other process for {within:g} s"
            ) from error
        except ValueError as error:
            raise RemoteProtocolError("the other process speaks something else") from error
        except OSError as error:
            raise ConnectionLostError(
                f"the other process is gone: {error.strerror or error}"
            ) from error

    def _receive(self, until: float) -> Parcel:
        length, behind, count = _HEAD.unpack(self._read(_HEAD.size, until))
        if length > _MOST_JSON or behind > _MOST_BYTES:
            raise ValueError("no length")
        values: Values = json.loads(self._read(length, until))
        data = self._read(behind, until)
        descriptors = array.array("i")
        try:
            while len(descriptors) < count:
                self.sock.settimeout(_left(until))
                self._take_batch(descriptors)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        word = values.pop("word", "")
        return Parcel(word=word, values=values, data=bytes(data), descriptors=tuple(descriptors))

    def _take_batch(self, descriptors: array.array[int]) -> None:
        space = socket.CMSG_SPACE(_BATCH * descriptors.itemsize)
        head, control, flags, _ = self.sock.recvmsg(1, space, _CLOSE_ON_EXEC)
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not head:
            raise ConnectionLostError("the other process is gone")
        if flags & socket.MSG_CTRUNC or not control:
            raise ConnectionLostError(
                "descriptors were lost on the way: raise the limit (ulimit -n, under systemd LimitNOFILE)"
            )

    def _read(self, count: int, until: float) -> bytearray:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(_left(until))
            got = self.sock.recv_into(rest)
            if not got:
                raise ConnectionLostError("the other process is gone")
            rest = rest[got:]
        return data

    def close(self) -> None:
        """Close this end, and end whoever reads or writes in another thread. Idempotent."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


async def wait_for(job: Callable[[], T]) -> T:
    """Run what blocks on a wire in a thread of its own. Cancelled, whoever has the wire closes it, which ends the thread."""
    limiter = trio.CapacityLimiter(
        1
    )  # not that of all threads, in which slow name servers may take every place
    return await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=limiter)


def _left(until: float) -> float:
    """Return how many seconds are left; never 0, which would mean not to wait at all.

    Raises:
        TimeoutError: there are none.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
