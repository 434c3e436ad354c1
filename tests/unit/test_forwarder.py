"""What a client tells of a local service that it cannot connect to."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from trionat.client.forwarder import Forwarder
from trionat.config.service import parse_service
from trionat.events import ServiceDown
from trionat.relay.client_tunnel import LocalServiceError

if TYPE_CHECKING:
    from trionat.address import Address
    from trionat.events import ClientEvent


async def test_an_outgoing_connection_with_the_services_port_is_no_service() -> None:
    """Its port is one that the kernel gives to such connections."""
    told: list[ClientEvent] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as outgoing:
            port = outgoing.getsockname()[1]
            await Forwarder((parse_service(str(port)),), 5, told.append).check()
    assert [type(event) for event in told] == [ServiceDown]


@pytest.mark.parametrize(
    ("number", "down"),
    [(errno.EADDRNOTAVAIL, False), (errno.EMFILE, False), (errno.ECONNREFUSED, True)],
)
async def test_our_own_shortage_is_not_the_services(
    number: int, down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local ports that are used up are too many to use up here."""

    async def dial(_: Address) -> socket.socket:
        await trio.lowlevel.checkpoint()
        raise OSError(number, "why")

    monkeypatch.setattr("trionat.client.forwarder.dial_service", dial)
    told: list[ClientEvent] = []
    with pytest.raises(LocalServiceError, match=r"local service 127\.0\.0\.1:8080.*: why"):
        await Forwarder((parse_service("8080"),), 5, told.append).open(0)
    assert len(told) == down
