"""The server elsewhere that a command is about, where `trionat --server URL` names one."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trionat.cli.remote import Remote

FROM_AFAR: Final = (
    *("status", "traffic", "tasks", "kick", "unban", "drain", "user", "token"),
    "cluster where",
)
"""Those that can ask a server from afar."""

TARGET: Final[ContextVar[Remote | None]] = ContextVar("TARGET", default=None)
"""What was named on the command line, for the command behind it."""
