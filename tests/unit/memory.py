"""Endpoints in memory, as programs that test with trionat have them."""

from __future__ import annotations

from trionat.testing.memory import (
    CAPACITY,
    MemoryEndpoint,
    echo,
    memory_pair,
    receive_all,
    receive_exactly,
    receive_some,
)

__all__ = [
    "CAPACITY",
    "MemoryEndpoint",
    "echo",
    "memory_pair",
    "receive_all",
    "receive_exactly",
    "receive_some",
]
