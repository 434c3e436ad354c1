"""The body of a request to a web server, as it comes in: counted, and with one deadline for all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive

MOST_PIECES: Final = 4096
"""Pieces of a body: each costs some 40 µs (measured), also one of a single byte. Of the longest body that may be, a KiB each; programs send more at once."""


@attrs.define(eq=False, kw_only=True)
class BoundedBody:
    """Its `receive` takes the place of `source`. A body has at most `most` bytes in at most `MOST_PIECES` pieces, and is there within `seconds` of now.

    `too_large` and `too_slow` make what is raised otherwise: each server says it in the words of its own API.
    """

    source: Receive
    most: int
    seconds: float
    too_large: Callable[[], Exception]
    too_slow: Callable[[], Exception]
    _bytes: int = attrs.field(init=False, default=0)
    _pieces: int = attrs.field(init=False, default=0)
    _deadline: float = attrs.field(init=False)
    _is_whole: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._deadline = trio.current_time() + self.seconds

    async def receive(self) -> Message:
        """Return the next message of the request, as ASGI has it; see the class for what is raised."""
        if self._is_whole:  # what comes now is the end of the connection
            return await self.source()
        try:
            with trio.fail_at(self._deadline):
                message = await self.source()
        except trio.TooSlowError:
            raise self.too_slow() from None
        self._bytes += len(message.get("body", b""))
        self._pieces += 1
        if self._bytes > self.most or self._pieces > MOST_PIECES:
            raise self.too_large()
        self._is_whole = not message.get("more_body", False)
        return message
