"""Names that are looked up, and a name server that hangs."""

from __future__ import annotations

import socket
import threading

import pytest
import trio

from trionat.address import TCPAddress
from trionat.client.forwarder import Forwarder
from trionat.config.service import parse_service
from trionat.errors import ConnectionLostError
from trionat.relay.client_tunnel import LocalServiceError
from trionat.transport.dial import dial, dial_service, reach
from trionat.transport.names import NameResolver


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have the system's resolver hang at every name but one, until the event is set."""
    over = threading.Event()
    real = socket.getaddrinfo

    def look_up(host: str | bytes, *arguments: object, **more: object) -> object:
        if host == b"well.example" or host == "well.example":
            return real("127.0.0.1", *arguments, **more)  # type: ignore[arg-type]
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Trio asks first whether it is numeric
            return real(host, *arguments, **more)  # type: ignore[arg-type]
        over.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return over


async def test_a_name_that_hangs_harms_no_other(hanging: threading.Event) -> None:
    """A hundred tries at it, of which nobody waits for the end: other names and `localhost` answer as ever."""
    trio.socket.set_custom_hostname_resolver(NameResolver())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(give_up_soon, TCPAddress("hangs.example", port))
                await trio.sleep(0.2)
                for host in ("localhost", "LOCALHOST.", "well.example"):
                    with trio.fail_after(2):
                        (await dial(TCPAddress(host, port))).close()
                assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        finally:
            hanging.set()


async def give_up_soon(address: TCPAddress) -> None:
    with trio.move_on_after(0.5):
        await dial(address)


async def test_a_service_that_listens_on_ipv6_only() -> None:
    """As Vite does, where `localhost` is ::1 first."""
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            (await dial_service(TCPAddress(host, port))).close()
        with pytest.raises(ConnectionRefusedError):  # a server of ours is at one address only
            await dial(TCPAddress("127.0.0.1", port))


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await dial_service(TCPAddress("127.0.0.1", port))


async def test_a_name_where_nobody_listens(hanging: threading.Event) -> None:
    """A server and a service are told of in the system's words, whether they go by a name or by a number."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    for host in ("well.example", "localhost", "127.0.0.1"):
        address = TCPAddress(host, port)
        with pytest.raises(ConnectionLostError) as caught:
            await reach(address)
        assert str(caught.value) == f"cannot reach {address}: Connection refused"
        with pytest.raises(LocalServiceError) as caught_locally:
            await Forwarder((parse_service(str(address)),), 5.0).open(0)
        expected = f"the local service {address} cannot be reached: Connection refused"
        assert str(caught_locally.value) == expected
