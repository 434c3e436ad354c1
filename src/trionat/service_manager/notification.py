"""What a running trionat tells systemd: that it is ready, what it does, and that its event loop turns: sd_notify(3).

The protocol is a datagram with lines to a Unix socket. The libraries for it need a compiler, or have not been kept for years.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.system import has_unix_sockets, open_unix_socket

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = get_logger(__name__)

_LONGEST_STATUS: Final = 200
"""Characters of a status; more does not fit a line of `systemctl status`."""


@attrs.define(eq=False)
class Notification:
    """The way to the service manager. `watchdog` is how many seconds it waits for a sign of life, None where it wants none.

    Nothing here waits: a datagram that does not fit is dropped, as the next one says the same or newer.
    """

    _address: str
    watchdog: float | None = None
    _told: bool = attrs.field(init=False, default=False)

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notification | None:
        """Return the way that this process was started with, and take it out of the environment, so that no child speaks in its name; None where there is none."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")) or not has_unix_sockets():
            return None
        mine = pid in {"", str(os.getpid())}
        watchdog = int(usec) / 1e6 if usec.isdecimal() and int(usec) and mine else None
        return cls(f"\0{address[1:]}" if address.startswith("@") else address, watchdog)

    def ready(self) -> None:
        """Say that it does what it is there for."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Say that it reads its configuration anew; `ready` says that this is over."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def main_process(self, pid: int) -> None:
        """Say that another process is the one to look after from now on."""
        self._tell(f"MAINPID={pid}")

    def stopping(self) -> None:
        """Say that it stops."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """Say what it does, in a line for people."""
        line = " ".join(text.split())[:_LONGEST_STATUS]
        self._tell(f"STATUS={line}")

    async def keep_alive(self) -> None:
        """Tell that the event loop turns, twice as often as is asked for, until cancelled."""
        if self.watchdog is None:
            return
        while True:
            self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog / 2)

    def _tell(self, message: str) -> None:
        try:
            with open_unix_socket(socket.SOCK_DGRAM) as way:
                way.setblocking(False)
                way.connect(self._address)
                way.send(message.encode("utf-8", "replace"))
        except OSError as error:
            if not self._told:
                log.warning("the service manager cannot be told", reason=str(error))
            self._told = True
