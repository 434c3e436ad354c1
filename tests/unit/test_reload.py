"""Every key of the server that counts without a restart reaches who uses it."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.key import Effect, keys_of
from trionat.config.load import load
from trionat.config.reload import Reloader
from trionat.config.server import ServerConfig
from trionat.networks import parse_network
from trionat.server import app
from trionat.server.reload import ServerReload
from trionat.server.single import SingleProcess

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.config.load import Configuration

OTHERS = {
    "trusted_proxies": (parse_network("192.0.2.0/24"),),
    "other_servers": (TCPAddress("b.example", 8007),),
    "allow_visitors": (parse_network("127.0.0.0/8"),),
    "deny_visitors": (parse_network("192.0.2.0/24"),),
    "tunnel_encryption": "none",
    "visit_port_policy": "require",
    "log_level": "DEBUG",
    "console_hosts": ("console.example",),
    "max_tcp_conn_num": 2,
    "max_conn_num": 77,
    "public_https_port": 8443,
    "peer_timeout": 9.0,
}
ELSEWHERE = {"certificate", "certificate_key", "certificates_dir", "pages_dir", "visit_port"}
"""Shown by other tests: they need files, or are ports."""


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value + 0.5


async def test_every_live_key_is_in_force_after_a_reload(
    nothing_left: None, tmp_path: Path
) -> None:
    any_port = TCPAddress("127.0.0.1", 0)
    default = load("server", environ={})
    first = attrs.evolve(
        default.server,
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(free_port(), free_port()),
        state_dir=tmp_path,
        proxy_control_addr=any_port,
        proxy_visit_addr=any_port,
        domain="tunnel.example.com",
        http_addr=any_port,
        https_addr=any_port,
    )
    live = [
        key.field
        for key in keys_of(ServerConfig)
        if key.effect is not Effect.RESTART and key.field not in ELSEWHERE
    ]
    changes: dict[str, Any] = {
        field: OTHERS[field] if field in OTHERS else other(getattr(first, field)) for field in live
    }
    second = attrs.evolve(first, **changes)
    assert list(second.faults()) == []
    wanted = attrs.evolve(default, server=second)

    def read() -> Configuration:
        return wanted

    reloader = Reloader(read, attrs.evolve(default, server=first))
    async with trio.open_nursery() as nursery:
        job = partial(app.serve, first, acme=default.acme, reloader=reloader)
        await nursery.start(job)
        outcome = await reloader.reload()
        assert outcome.problems == ()
        assert outcome.restart == ()
        assert len(outcome.changed) + len(outcome.new_sessions) == len(live)
        reload = reloader.reloadable
        assert isinstance(reload, ServerReload)
        server = reload.server
        assert isinstance(server, SingleProcess)
        check(server, second)
        nursery.cancel_scope.cancel()


def check(server: SingleProcess, config: ServerConfig) -> None:
    """Look at each who has taken something out of the configuration."""
    context = server.context
    holders = {
        "server": server.config,
        "context": context.config,
        "leases": context.leases.config,
        "admission": context.admission.config,
        "acceptor": server._acceptor.config,
        "access": server._acceptor._policy.config,
    }
    for who, held in holders.items():
        same = attrs.evolve(held, http_addr=config.http_addr, https_addr=config.https_addr)
        assert same == config, who
    assert (server.bans.after, server.bans.time) == (config.ban_after, config.ban_time)
    handshakes = server._connections._acceptance.handshakes
    assert (handshakes.limit, handshakes.network_limit) == (
        config.max_handshakes,
        config.max_handshakes_per_address,
    )
    assert context.leases.free_slots == config.session_limit
    assert context.leases.send_memory.limit == config.resume_memory_total
    assert context.admission.elsewhere == config.other_servers
    assert [each.most_waiting for each in server._proxies] == [config.max_handshakes] * 2
    assert all("192.0.2.1" in each.trusted for each in server._proxies)
    assert server._frontend is not None
    listener = server._frontend._listener
    assert listener is not None
    assert listener.handshakes.limit == config.max_handshakes
    assert listener.dispatcher.config.plain_http is config.plain_http
    assert listener.dispatcher._limits.head_bytes == config.http_head_bytes


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
