"""How a client connects to a server whose TLS is real."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from trionat.address import TCPAddress
from trionat.client.native.dialer import Server, ServerDialer
from trionat.errors import ConnectionLostError, IdentityError
from trionat.server.state_folder import lock_state, prepare_state
from trionat.transport.certificate import fingerprint, first_certificate
from trionat.transport.dial import reach
from trionat.transport.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock

    from trionat.address import Address


@contextmanager
def tls_server(folder: Path, *, answers: int) -> Iterator[tuple[TCPAddress, bytes]]:
    """Greets each of so many connections, and leaves those after them without an answer."""
    with lock_state(folder):
        state = prepare_state(folder, names=("localhost",), self_signed=True)
    context = server_context(state.certificate_file, state.key_file)
    shown = fingerprint(first_certificate(state.certificate_file.read_text()))
    held: list[socket.socket] = []

    def serve() -> None:
        for _ in range(answers):
            connection, _ = listening.accept()
            connection.settimeout(10)
            try:
                wrapped = context.wrap_socket(connection, server_side=True)
                wrapped.sendall(b"hello")
                held.append(wrapped)
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        yield TCPAddress("127.0.0.1", listening.getsockname()[1]), shown
        thread.join()
        for sock in held:
            sock.close()


def dialer_to(address: TCPAddress, folder: Path, pin: bytes | None) -> ServerDialer:
    server = Server(control=address, tunnel=address, username="alice", pin=pin)
    return ServerDialer(server, 1.5, lambda: folder / "client")


async def test_a_certificate_is_told_even_if_the_server_is_silent_then(tmp_path: Path) -> None:
    with tls_server(tmp_path, answers=1) as (address, _):
        with pytest.raises(
            IdentityError, match=r"check out: self-signed .*\. Give --fingerprint with"
        ):
            await dialer_to(address, tmp_path, None).connect(address)


async def test_a_port_where_something_else_listens_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = TCPAddress("localhost", listening.getsockname()[1])

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionLostError) as caught:
            await dialer_to(address, tmp_path, bytes(32)).connect(address)
        thread.join()
    assert str(caught.value).startswith(f"{address}: whatever answers there does not speak TLS")


async def test_who_does_not_answer_is_asked_anew_from_another_socket(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The address from which it was asked may not be ours any more."""
    begun: list[float] = []

    async def dial(address: Address) -> socket.socket:
        begun.append(trio.current_time())
        if len(begun) < 3:
            await trio.sleep_forever()
        return socket.socket()

    monkeypatch.setattr("trionat.transport.dial.dial", dial)
    (await reach(TCPAddress("server.example", 1), "192.0.2.1")).close()
    assert begun[2] - begun[0] < 7
    begun.clear()
    with trio.move_on_after(60):  # its name is being looked up, which takes as long as it takes
        await reach(TCPAddress("server.example", 1))
    assert len(begun) == 1


async def test_sessions_are_resumed(tmp_path: Path) -> None:
    with tls_server(tmp_path, answers=2) as (address, shown):
        dialer = dialer_to(address, tmp_path, shown)
        resumed: list[bool | None] = []
        for _ in range(2):
            endpoint = await dialer.connect(address)
            with trio.fail_after(5):
                room = memoryview(bytearray(1 << 14))
                while True:
                    try:
                        assert endpoint.recv_into(room) == 5
                        break
                    except BlockingIOError:
                        await endpoint.readable.wait()
            resumed.append(endpoint.tls.session_reused)
            dialer.remember_session(endpoint)
            endpoint.close()
    assert resumed == [False, True]
