"""The process that has served so far, as the new one sees it: it gives copies of what has to be held all the while, and in the end everything."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.errors import PeerError, StartupError
from trionat.log import get_logger
from trionat.server.listeners import GivenListeners
from trionat.server.upgrade.successor import CAPABILITIES
from trionat.server.upgrade.upgrade import VARIABLE
from trionat.server.upgrade.wire import Parcel, Wire
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = get_logger(__name__)

_TO_ANSWER: Final = 30.0
"""Seconds for the other process to answer, which does nothing else meanwhile."""

_FOR_ALL: Final = 60.0
"""Seconds for it to give everything: it ends its sessions first."""


@attrs.define(eq=False)
class Predecessor:
    """See the module. `meet` comes first, then `inherit`, then `take`, after which it `has_given` everything; `decline` may be called at any time."""

    wire: Wire
    pid: int = attrs.field(init=False, default=0)
    version: str = attrs.field(init=False, default="")
    listeners: GivenListeners = attrs.field(init=False, factory=GivenListeners)
    lock: BinaryIO | None = attrs.field(init=False, default=None)
    admin_socket: socket.socket | None = attrs.field(init=False, default=None)
    has_given: bool = attrs.field(init=False, default=False)

    @classmethod
    def find(cls, environ: MutableMapping[str, str]) -> Predecessor | None:
        """Return the process whose place this one is to take, and take it out of the environment; None where there is none."""
        number = environ.pop(VARIABLE, "")
        if not number.isdecimal():
            return None
        try:
            os.set_inheritable(int(number), False)
            return cls(Wire(socket.socket(fileno=int(number))))
        except OSError:  # a variable of somebody else
            return None

    def meet(self, folder: Path) -> BinaryIO:
        """Say who we are, and take what has to be held all the while; return the lock of the state folder. Blocks.

        Raises:
            StartupError: the other one is gone, or serves another folder.
        """
        try:
            self.wire.send(
                "hello",
                {"version": VERSION, "capabilities": CAPABILITIES},
                within=_TO_ANSWER,
            )
            welcome = self.wire.receive(within=_TO_ANSWER)
        except PeerError as error:
            raise StartupError(f"the process before is gone: {error}") from error
        values = welcome.values
        self.pid, self.version = int(values.get("pid", 0)), str(values.get("version", ""))
        theirs = Path(str(values.get("folder", "")))
        if not _is_same(folder, theirs):
            welcome.close()
            raise StartupError(
                f"{folder}: the state folder was {theirs} so far (StateDir): stop the server, and start it anew"
            )
        self._take(welcome)
        assert self.lock is not None, "the other one has locked the folder"  # noqa: S101 - for type checkers
        return self.lock

    def _take(self, welcome: Parcel) -> None:
        for what, descriptor in zip(welcome.values["sockets"], welcome.descriptors, strict=True):
            match what["role"]:
                case "lock":
                    self.lock = os.fdopen(descriptor, "rb+")
                case "admin":
                    self.admin_socket = socket.socket(fileno=descriptor)
                case role:
                    address = TCPAddress(what["host"], what["port"])
                    self.listeners.add(role, address, socket.socket(fileno=descriptor))

    async def inherit(self) -> Parcel:
        """Say that we are ready, and return what the other one leaves.

        Raises:
            StartupError: it goes on itself, or is gone.
        """
        self.listeners.close()  # what is not in our configuration
        try:
            await trio.to_thread.run_sync(
                partial(self.wire.send, "ready", {}, within=_TO_ANSWER), abandon_on_cancel=True
            )
            parcel = await trio.to_thread.run_sync(
                partial(self.wire.receive, within=_FOR_ALL), abandon_on_cancel=True
            )
        except PeerError as error:
            raise StartupError(f"the process before goes on itself, or is gone: {error}") from error
        return parcel

    def take(self) -> None:
        """Tell that we serve from now on. No checkpoint: the caller has accepted nobody yet, and does nothing else before.

        Raises:
            StartupError: the other one is gone, or has given us up.
        """
        try:
            self.wire.send("taken", {}, within=1)
        except PeerError as error:
            raise StartupError(f"the process before has given this one up: {error}") from error
        self.has_given = True
        self.wire.close()

    def decline(self, reason: str) -> None:
        """Tell why we cannot take over. Nothing is done where we have, or the other one is gone."""
        if self.wire.sock.fileno() >= 0:
            with suppress(PeerError):
                self.wire.send("no", {"reason": reason}, within=1)
            self.wire.close()


def _is_same(folder: Path, other: Path) -> bool:
    try:
        return folder.samefile(other)
    except OSError:
        return False
