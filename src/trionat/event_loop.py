"""Which event loop a caller has, told in words where it is not Trio's."""

from __future__ import annotations

import sys

import trio

from trionat.errors import EventLoopError


def require_trio(caller: str, instead: str) -> None:
    """Check that this is called in a Trio program.

    Raises:
        EventLoopError: it is not; the message says that `caller` needs it, and what to write `instead`.
    """
    if trio.lowlevel.in_trio_task():
        return
    asyncio = sys.modules.get("asyncio")  # who runs under it has imported it
    where = "this is asyncio" if asyncio and _is_running(asyncio) else "this is another event loop"
    raise EventLoopError(
        f"{caller} runs under Trio, and {where}: write {instead} (docs/library.md)"
    )


def _is_running(asyncio: object) -> bool:
    get = getattr(asyncio, "_get_running_loop", None)
    return get is not None and get() is not None
