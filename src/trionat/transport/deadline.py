"""A deadline for a peer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from trionat.errors import PeerTimeoutError

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def deadline(seconds: float, complaint: str) -> Generator[None]:
    """Give a peer `seconds` for the block, which waits for it.

    Raises:
        PeerTimeoutError: it took longer; `complaint` is the message.
    """
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise PeerTimeoutError(complaint)
