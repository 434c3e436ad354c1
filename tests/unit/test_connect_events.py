"""What `trionat connect` tells a person of connections that fail."""

from __future__ import annotations

import socket
import threading

import pytest

from trionat.address import TCPAddress
from trionat.cli.connect import TextEvents
from trionat.errors import ConnectionLostError
from trionat.events import Connected, Disconnected, Draining, PublicService
from trionat.transport.tls import client_context, connect_tls


def test_a_failure_that_comes_again_and_again_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A first connection that never was is not "disconnected"; a loss is; a hundred tries are seven lines."""
    show = TextEvents()
    for _ in range(100):
        show(Disconnected(reason="cannot reach it", retry_in=5.0))
    assert caplog.messages == [
        "cannot connect reason='cannot reach it' retry_in=5.0",
        *(
            f"cannot connect reason='cannot reach it' tries={tries} retry_in=5.0"
            for tries in (2, 4, 8, 16, 32, 64)
        ),
    ]
    caplog.clear()
    show(
        Connected(
            uid=1,
            services=(),
            server=TCPAddress("127.0.0.1", 1),
            tunnel=TCPAddress("127.0.0.1", 1),
            username="alice",
            encrypted=True,
        )
    )
    show(Disconnected(reason="cannot reach it", retry_in=0.0))
    show(Disconnected(reason="something else", retry_in=0.5))
    assert [message.split(" reason")[0] for message in caplog.messages] == [
        "disconnected",
        "cannot connect",
    ]


def test_the_seconds_left_of_a_ban_make_no_new_reason(caplog: pytest.LogCaptureFixture) -> None:
    show = TextEvents()
    for left in range(300, 0, -3):
        reason = f"no password is tried for another {left} s"
        show(Disconnected(reason=reason, retry_in=3.0))
    assert len(caplog.messages) == 7
    show(Disconnected(reason="cannot reach 192.0.2.1:8007", retry_in=3.0))
    show(Disconnected(reason="cannot reach 192.0.2.1:8008", retry_in=3.0))
    assert len(caplog.messages) == 9


def test_a_server_that_lets_its_clients_go(caplog: pytest.LogCaptureFixture) -> None:
    """For the client a drain is as a stop, so it does not say which of them it is."""
    TextEvents()(Draining(5.0))
    assert caplog.messages == ["the server stops or is drained: visitors may finish seconds=5.0"]


@pytest.mark.parametrize(
    ("host", "told"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.0.2.1", False)],
)
def test_a_code_that_no_phone_can_use(
    host: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    local, public = TCPAddress("127.0.0.1", 8080), TCPAddress(host, 60000)
    event = Connected(
        uid=1,
        services=(PublicService(name="", local=local, public=public),),
        server=TCPAddress("127.0.0.1", 1),
        tunnel=TCPAddress("127.0.0.1", 1),
        username="alice",
        encrypted=True,
    )
    TextEvents(qr=True)(event)
    out = capsys.readouterr().out
    assert "▀" in out
    assert ("\nno phone gets there: a loopback address\n" in out) is told


async def test_a_port_where_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer_once, args=(listening,), daemon=True).start()
        sock = socket.create_connection(listening.getsockname())
        with pytest.raises(ConnectionLostError, match="does not speak TLS, so it is no trionat"):
            await connect_tls(sock, client_context(pinned=True), "127.0.0.1")


def answer_once(listening: socket.socket) -> None:
    """As sshd does: speak first."""
    connection, _ = listening.accept()
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    connection.recv(4096)
    connection.close()
