"""The answer of a web server, as it goes out: with the headers that say what a browser may do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import Message, Send

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""


@attrs.define(eq=False)
class GuardedAnswer:
    """Its `send` takes the place of `target`. `policy` is the Content-Security-Policy; `has_begun` says that no other answer can be given any more."""

    target: Send
    policy: str
    has_begun: bool = attrs.field(init=False, default=False)

    async def send(self, message: Message) -> None:
        """Send a message of the answer, as ASGI has it."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", self.policy)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self.target(message)
