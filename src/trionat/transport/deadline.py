"""A deadline for a peer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from trionat.errors import PeerTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Give a peer `seconds` for the block, which waits for it.

    Raises:
        PeerTimeoutError: it took longer; the message says with `what`.
    """
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise PeerTimeoutError(f"the peer did not finish {what} within {seconds:g} s")
