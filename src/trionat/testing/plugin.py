"""The plugin of pytest, by its entry point `trionat`. It is imported at each start of pytest where trionat is installed, so it imports nothing before a test asks for a fixture."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.events import PublicService, Ready
    from trionat.testing.exposure import Exposure

MOST_SERVICES: Final = 16
"""Visit ports of the server, and so services at once that a test run (a worker of pytest-xdist) can expose."""


class Expose(Protocol):
    """What the fixture `trionat_expose` gives."""

    def __call__(self, service: int | str, /) -> PublicService:
        """Make a local service public until the end of the test, and return where: `public` is the address for visitors.

        Blocks until it is reachable, for at most 10 s. The service itself need not be up yet.

        Args:
            service: A port of 127.0.0.1, or whatever `parse_service` takes for a visit port: `"HOST:PORT"`, or the path of a Unix socket.

        Raises:
            ValueError: `service` is none.
            TimeoutError: there is no free visit port: 16 services are exposed.
        """
        ...


@pytest.fixture(scope="session")
def _trionat_exposure() -> Iterator[Exposure]:
    from trionat.testing.exposure import Exposure  # noqa: PLC0415 - the start of pytest

    with Exposure.open(MOST_SERVICES) as exposure:
        yield exposure


@pytest.fixture(scope="session")
def trionat_server(_trionat_exposure: Exposure) -> Ready:
    """A trionat server on 127.0.0.1, in memory and in a thread of its own, until the end of the test run; what clients have to know of it."""
    return _trionat_exposure.ready


@pytest.fixture
def trionat_expose(_trionat_exposure: Exposure) -> Iterator[Expose]:
    """A function that makes a local port public at that server, until the end of the test."""
    with ExitStack() as stack:

        def expose(service: int | str, /) -> PublicService:
            return stack.enter_context(_trionat_exposure.expose(service))

        yield expose
