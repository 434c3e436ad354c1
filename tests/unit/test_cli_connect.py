"""The arguments of `trionat connect`: what is a ticket is understood wherever it stands, and never shown."""

from __future__ import annotations

import socket
import threading

import pytest

from trionat.address import TCPAddress
from trionat.cli.connect import TextEvents, _split
from trionat.errors import ConfigError, ConnectionLostError, Problem
from trionat.events import Connected, Disconnected
from trionat.transport.tls import client_context, connect_tls

TICKET = "tn1_AR9H-XVDa5JzSecretSecret"


@pytest.mark.parametrize(
    ("arguments", "services"),
    [
        ([TICKET, "8080"], ["8080"]),
        (["8080", TICKET], ["8080"]),
        ([TICKET], []),
        (["a", TICKET, "b"], ["a", "b"]),
    ],
)
def test_a_ticket_anywhere(arguments: list[str], services: list[str]) -> None:
    assert _split(arguments) == (TICKET, services)


@pytest.mark.parametrize("service", ["8080", "tn:8080", "tunnel_1:80", "/run/tn1_x.sock"])
def test_what_is_no_ticket(service: str) -> None:
    assert _split([service]) == (None, [service])


def test_two_tickets_are_not_shown() -> None:
    with pytest.raises(ConfigError, match="2 tickets") as caught:
        _split([TICKET, "tn2_other", "8080"])
    assert "Secret" not in str(caught.value)


def test_no_message_shows_a_ticket() -> None:
    told = str(ConfigError(Problem("argument SERVICE", f"{TICKET!r} is no address")))
    assert told == "argument SERVICE: 'tn1_********' is no address"


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
