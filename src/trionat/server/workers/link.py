"""What a parent and its worker say to each other: messages on one pair of sockets, descriptors on another.

A message is a line of JSON. Some are questions, which have a number, and get an answer with the same number. A descriptor comes along with a
byte that says what it is for (unix(7), SCM_RIGHTS), a byte with the length of what is to be known about it, and that text: no more is
read at once, so none can be attached to the wrong one. Whoever takes descriptors says how many, on the same socket. Both ends are the same program of the same user, so what does not fit is a bug, and ends the link.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio

from trionat.errors import ConnectionLostError, RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import RefusalCode
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger(__name__)

Values: TypeAlias = "dict[str, Any]"

BEAT: Final = 1.0
"""Seconds between two reports to the parent, which are its sign of life as well."""

_READ_BYTES: Final = 64 * 1024

_MOST_BYTES: Final = 256 * 1024 * 1024
"""Of messages that wait for the other end to read them, and of one message: the status of more than a million visitors."""

_MOST_DESCRIPTORS: Final = 1024
"""That wait for the other end to take them. Chosen."""

_CROWDED: Final = 0.05
"""Seconds until the next try, where too many descriptors are on their way in the kernel."""

_BATCH: Final = 64
"""Descriptors to take before others get their turn."""

_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""Where the system has it, a descriptor cannot slip into a program that is started in this very moment."""


_TAKEN: Final = b"\0"
"""Instead of what a descriptor is for: that so many, as the text says, have been taken."""


_Parcel: TypeAlias = "tuple[bytes, socket.socket, str]"
"""What a socket is for, the socket, and what is to be known about it."""


def _ignore(purpose: bytes, about: str) -> None:
    """Nobody minds."""


def _close(purpose: bytes, sock: socket.socket, about: str) -> None:
    """Nobody wants it back."""
    sock.close()


class LinkLostError(ConnectionLostError):
    """The other process is gone, or does not read any more."""


@attrs.define(eq=False)
class _Question:
    """`answered` gets the answer; `late`, where nobody waits any more."""

    late: Callable[[Values], None]
    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: Values | None = None
    given_up: bool = False


@attrs.define(eq=False)
class Link:
    """One end. Owns both sockets from the beginning; `run` closes them.

    `hear` is called with each message that is no question. `reply` answers the questions, each in a task of its own. `take` is called with what a
    descriptor is for, with its socket, which it owns then, and with what is to be known about it. All three are set before `run` is started, and the first
    and the last must return at once. `missed` is called with purpose and text of each descriptor that was lost on the way, since there are too few (then it is the end
    that takes), or since the other end does not take them (of those of `pass_on` only). `returned` is called with each socket of `pass_on` that the other end
    has not taken when the link ends, and owns it then; it must return at once, too.
    """

    messages: socket.socket
    descriptors: socket.socket
    hear: Callable[[Values], None] = attrs.field(init=False)
    reply: Callable[[Values], Awaitable[Values]] = attrs.field(init=False)
    take: Callable[[bytes, socket.socket, str], None] = attrs.field(init=False)
    missed: Callable[[bytes, str], None] = attrs.field(init=False, default=_ignore)
    returned: Callable[[bytes, socket.socket, str], None] = attrs.field(init=False, default=_close)
    lost: bool = attrs.field(init=False, default=False)
    _numbers: count[int] = attrs.field(init=False, factory=lambda: count(1))
    _questions: dict[int, _Question] = attrs.field(init=False, factory=lambda: {})
    _replies: dict[int, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _unsent: deque[bytes] = attrs.field(init=False, factory=lambda: deque())
    _unsent_bytes: int = attrs.field(init=False, default=0)
    _unpassed: deque[_Parcel] = attrs.field(init=False, factory=lambda: deque())
    _unlent: deque[_Parcel] = attrs.field(init=False, factory=lambda: deque())
    _on_their_way: deque[_Parcel | None] = attrs.field(init=False, factory=lambda: deque())
    _taken: int = attrs.field(init=False, default=0)
    _crowded: bool = attrs.field(init=False, default=False)
    _sent: Signal = attrs.field(init=False, factory=Signal)
    _posted: Signal = attrs.field(init=False, factory=Signal)
    _passed: Signal = attrs.field(init=False, factory=Signal)

    def __attrs_post_init__(self) -> None:
        self.messages.setblocking(False)
        self.descriptors.setblocking(False)

    # -- saying ------------------------------------------------------------------------------------------------------

    def post(self, message: Values) -> None:
        """Send a message, soon; into the void where the link is lost."""
        if self.lost:
            return
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._unsent_bytes += len(line)
        self._unsent.append(line)
        self._posted.notify()
        if self._unsent_bytes > _MOST_BYTES:
            log.warning("another process of this server does not read", bytes=self._unsent_bytes)
            self.give_up()

    async def ask(
        self, question: Values, late: Callable[[Values], None] = lambda _: None
    ) -> Values:
        """Send a question, and return its answer. Cancelled, the other end is told, and `late` gets what it answers nevertheless.

        Raises:
            RefusedError: the other end has refused.
            LinkLostError: there will be no answer.
        """
        if self.lost:
            raise LinkLostError("the other process of this server is gone")
        number = next(self._numbers)
        mine = self._questions[number] = _Question(late)
        self.post({**question, "ask": number})
        try:
            await mine.answered.wait()
        except BaseException:
            if mine.answer is not None:  # it has come in this very moment
                late(mine.answer)
            else:
                mine.given_up = True
                self.post({"drop": number})
            raise
        if mine.answer is None:
            raise LinkLostError("the other process of this server is gone")
        if (refused := mine.answer.get("refused")) is not None:
            raise RefusedError(*refused)
        return mine.answer

    def pass_on(self, purpose: bytes, sock: socket.socket, about: str = "") -> None:
        """Give a socket away; it is closed here once the other end has it. Where there is no room for it, it is closed at once, and missed; where the link is lost, it is returned.

        `purpose` is one byte, and not 0; `about` at most 255.
        """
        if self.lost:
            self.returned(purpose, sock, about)
            return
        if len(self._unpassed) >= _MOST_DESCRIPTORS:
            sock.close()
            self.missed(purpose, about)
            return
        self._unpassed.append((purpose, sock, about))
        if self._unlent or len(self._unpassed) > 1 or not self._pass_next():
            self._passed.notify()

    def lend(self, purpose: bytes, sock: socket.socket, about: str = "") -> None:
        """Give away a copy of a socket, which stays the caller's. Any number of them arrive, ahead of those of `pass_on`, but for what is closed before its turn."""
        if not self.lost:
            self._unlent.append((purpose, sock, about))
            self._passed.notify()

    def _pass_next(self) -> bool:
        """Pass the one that is next; False where there is no room for it now.

        One that is given away is kept until the other end has it: in a process that is killed, what it has not read yet is lost.
        """
        waiting = self._unlent or self._unpassed
        purpose, sock, about = waiting[0]
        is_given = waiting is self._unpassed
        if sock.fileno() >= 0:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))
            try:
                self._send_piece(purpose, about, rights)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                # The other end is gone: what is given away is returned when `run` ends.
                self._on_their_way.append((purpose, sock, about) if is_given else None)
            except OSError:  # too many are under way (unix(7), ETOOMANYREFS)
                if not is_given:
                    self._crowded = True
                    return False
                sock.close()
                self.missed(purpose, about)
            else:
                self._on_their_way.append((purpose, sock, about) if is_given else None)
        waiting.popleft()
        return True

    def _send_piece(
        self, purpose: bytes, about: str, *rights: tuple[int, int, array.array[int]]
    ) -> None:
        """Send all of it or nothing: it is less than the kernel waits for room for. Raises OSError."""
        text = about.encode()
        head = purpose + bytes([len(text)]) + text
        sent = self.descriptors.sendmsg([head], rights)
        assert sent == len(head), "a descriptor's text was cut"  # noqa: S101 - for systems that differ

    def _tell_taken(self) -> None:
        """Say how many descriptors have been taken, before anything is done with them; later, where there is no room for it, as the other end has not read for long. To wait for that here could have both ends wait for each other."""
        if self._taken:
            try:
                self._send_piece(_TAKEN, str(self._taken))
            except BlockingIOError:
                self._passed.notify()
                return
            except OSError:  # the other end is gone
                pass
            self._taken = 0

    async def wait_sent(self) -> None:
        """Wait until the kernel has all messages, or the link is lost."""
        while self._unsent_bytes and not self.lost:
            await self._sent.wait()

    # -- hearing -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send and receive until the other end is gone, or cancelled. Whoever waits for an answer is told then.

        Raises whatever `hear`, `take` and `reply` raise, but for RefusedError of the last.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, name="link: send")
                nursery.start_soon(self._pass, name="link: pass descriptors")
                nursery.start_soon(self._take, name="link: take descriptors")
                await self._receive(nursery)
                nursery.cancel_scope.cancel("the other end is gone")
        finally:
            self.give_up()
            # What the other end has said last of all: it has those.
            while came := self._read_parcels():
                for _, unwanted, _ in came:
                    if unwanted is not None:
                        unwanted.close()
            for sock in (self.messages, self.descriptors):
                trio.lowlevel.notify_closing(sock)
                sock.close()
            left = [*filter(None, self._on_their_way), *self._unpassed]
            for waiting in (self._on_their_way, self._unpassed, self._unlent):
                waiting.clear()
            for parcel in left:
                self.returned(*parcel)

    def give_up(self) -> None:
        """End the link, at both ends. Idempotent."""
        if self.lost:
            return
        self.lost = True
        for question in self._questions.values():
            question.answered.set()
        self._questions.clear()
        with suppress(OSError):
            self.messages.shutdown(socket.SHUT_RDWR)  # wakes `run`
        self._sent.notify()

    async def _receive(self, nursery: trio.Nursery) -> None:
        pieces: list[bytes] = []
        held = 0
        while True:
            try:
                piece = self.messages.recv(_READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.messages)
                continue
            except OSError:
                return
            if not piece:
                return
            first, *rest = piece.split(b"\n")
            pieces.append(first)
            held += len(first)
            if held > _MOST_BYTES:
                raise AssertionError("a message without an end")
            if rest:
                self._handle(b"".join(pieces), nursery)
                for line in rest[:-1]:
                    self._handle(line, nursery)
                pieces, held = [rest[-1]], len(rest[-1])
            await trio.lowlevel.checkpoint()

    def _handle(self, line: bytes, nursery: trio.Nursery) -> None:
        message: Values = json.loads(line)
        if (number := message.pop("answer", None)) is not None:
            question = self._questions.pop(number, None)
            if question is None:
                return
            question.answer = message
            if question.given_up:
                question.late(message)
            else:
                question.answered.set()
        elif (number := message.pop("ask", None)) is not None:
            scope = self._replies[number] = trio.CancelScope()
            nursery.start_soon(self._reply, number, message, scope, name="link: reply")
        elif (number := message.pop("drop", None)) is not None:
            if (dropped := self._replies.get(number)) is not None:
                dropped.cancel("nobody waits for the answer any more")
        else:
            self.hear(message)

    async def _reply(self, number: int, question: Values, scope: trio.CancelScope) -> None:
        answer: Values = {"refused": [RefusalCode.STORE_UNAVAILABLE, "it was given up"]}
        try:
            with scope:
                try:
                    answer = await self.reply(question)
                except RefusedError as refusal:
                    answer = {"refused": [refusal.code, refusal.text]}
        finally:
            del self._replies[number]
        self.post({**answer, "answer": number})

    async def _send(self) -> None:
        while True:
            while not self._unsent:
                await self._posted.wait()
            piece = memoryview(b"".join(self._unsent))
            self._unsent.clear()
            while piece:
                try:
                    piece = piece[self.messages.send(piece) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.messages)
                except OSError:
                    return
                self._unsent_bytes = len(piece) + sum(map(len, self._unsent))
            self._sent.notify()
            await trio.lowlevel.checkpoint()

    async def _pass(self) -> None:
        while True:
            while not (self._unlent or self._unpassed or self._taken):
                await self._passed.wait()
            self._tell_taken()
            if self._taken or ((self._unlent or self._unpassed) and not self._pass_next()):
                await trio.lowlevel.wait_writable(self.descriptors)
                if self._crowded:
                    self._crowded = False
                    await trio.sleep(_CROWDED)
            else:
                await trio.lowlevel.checkpoint()

    async def _take(self) -> None:
        while (came := self._read_parcels()) is not None:
            if not came:
                await trio.lowlevel.wait_readable(self.descriptors)
                continue
            self._taken += len(came)
            self._tell_taken()
            for purpose, sock, about in came:
                if sock is None:
                    self.missed(purpose, about)
                else:
                    self.take(purpose, sock, about)
            await trio.lowlevel.checkpoint()

    def _read_parcels(self) -> list[tuple[bytes, socket.socket | None, str]] | None:
        """Read what has come, a batch at most, and let go what the other end has taken; None: the other end is gone. Does not wait.

        One for which there is no descriptor comes without its socket.
        """
        size = array.array("i").itemsize
        came: list[tuple[bytes, socket.socket | None, str]] = []
        while len(came) < _BATCH:
            try:
                head, control, _, _ = self.descriptors.recvmsg(
                    2, socket.CMSG_SPACE(size), _CLOSE_ON_EXEC
                )
                # Sent in one piece, so it is there.
                about = self.descriptors.recv(head[1]).decode() if head[1:] > b"\0" else ""
            except BlockingIOError:
                break
            except OSError:
                return came or None
            if not head:
                return came or None
            if head[:1] == _TAKEN:
                self._let_go(int(about))
                continue
            sock: socket.socket | None = None
            for _, _, data in control:
                number = int.from_bytes(data[:size], sys.byteorder)
                if not _CLOSE_ON_EXEC:
                    os.set_inheritable(number, False)
                sock = socket.socket(fileno=number)
            came.append((head[:1], sock, about))
        return came

    def _let_go(self, number: int) -> None:
        """The other end has so many more."""
        for _ in range(number):
            if (parcel := self._on_their_way.popleft()) is not None:
                parcel[1].close()
