"""A server in memory, and clients of it, for tests of any kind: each runs in a thread with a Trio loop of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from trionat.address import TCPAddress
from trionat.client.app import connect
from trionat.config.client import ClientConfig
from trionat.config.server import ServerConfig
from trionat.config.service import parse_service
from trionat.server.embedded import open_server
from trionat.trio_thread import TrioThread

if TYPE_CHECKING:
    from collections.abc import Generator

    from trionat.events import PublicService, Ready

T = TypeVar("T")

_TIMEOUT: Final = 10.0
"""Seconds for a server or a client to be up. Chosen: it takes some hundred milliseconds, on a busy machine a few seconds."""


class _AnyLoopThread(TrioThread[T]):
    """One that a test under Trio may have as well: what it needs of that test's loop is nothing, so it may block it for a moment."""

    def _check_loop(self) -> None:
        pass


@attrs.frozen
class Exposure:
    """See the module; `ready` is the server."""

    ready: Ready

    @classmethod
    @contextmanager
    def open(cls, most_services: int) -> Generator[Exposure]:
        """Run a server with so many visit ports in the block. Blocks.

        Raises:
            StartupError: there are too few descriptors.
            TimeoutError: it is not up within 10 s.
        """
        any_port = TCPAddress("127.0.0.1", 0)
        config = ServerConfig(
            name="pytest",
            controller_addr=any_port,
            tunnel_addr=any_port,
            visit_port=(0,) * most_services,
            drain_grace=0,  # a visitor that a test forgot does not hold up its end
        )
        with _AnyLoopThread(open_server(config), timeout=_TIMEOUT) as ready:
            yield cls(ready)

    @contextmanager
    def expose(self, service: int | str) -> Generator[PublicService]:
        """Make a local service public in the block. Blocks.

        Raises:
            ValueError: it is none.
            TimeoutError: there is no free visit port.
        """
        config = ClientConfig(
            ticket=self.ready.ticket,
            services=(parse_service(str(service)),),
            min_idle_tunnels=1,
            drain_grace=0,
        )
        with _AnyLoopThread(connect(config), timeout=_TIMEOUT) as client:
            yield client.services[0]
