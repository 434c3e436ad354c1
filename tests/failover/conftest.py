"""Failover: workers, nodes, servers and clients that share a port are killed, frozen, drained, cut off and replaced by new processes, while visitors come and go."""

from __future__ import annotations

from tests.e2e.conftest import (
    echo_server,
    http_server,
    pair,
    redis_server,
    ssh_server,
    websocket_server,
)

__all__ = ["echo_server", "http_server", "pair", "redis_server", "ssh_server", "websocket_server"]
