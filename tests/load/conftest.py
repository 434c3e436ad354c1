"""Load: the same server, many of everything."""

from __future__ import annotations

from tests.e2e.conftest import echo_server

__all__ = ["echo_server"]
