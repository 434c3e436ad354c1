"""The text that is served: made in a thread, and at most once a second, whoever asks and however often."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from trionat.server.exposition.collector import ServerCollector
from trionat.transport.certificate import validity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionat.config.server import ServerConfig
    from trionat.server.admin.commands import Commands

_FRESH: Final = 1.0
"""Seconds for which a text is given to everybody who asks."""

_OPEN_METRICS: Final = "application/openmetrics-text"
_FORMATS: Final = {True: f"{_OPEN_METRICS}; version=1.0.0", False: ""}
"""What an encoder is chosen by. What a peer sends is not looked at any closer, and not said back to it."""


@attrs.define(eq=False, kw_only=True)
class Exposition:
    """See the module. `store_answers` tells whether the store of users does; `certificate_ends` is as in `ServerCollector`."""

    commands: Commands
    store_answers: Callable[[], Awaitable[bool]]
    certificate_ends: float | None = None
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )
    _texts: dict[bool, tuple[str, bytes]] = attrs.field(init=False, factory=lambda: {})
    _made: float = attrs.field(init=False, default=float("-inf"))

    @classmethod
    async def open(
        cls,
        config: ServerConfig,
        commands: Commands,
        store_answers: Callable[[], Awaitable[bool]],
    ) -> Self:
        """Look at the certificate of the control port, which is in use until the server ends, whatever becomes of the file. One of trionat's own has no end."""
        ends = None
        if config.certificate is not None:
            pem = await trio.to_thread.run_sync(config.certificate.read_text)
            ends = validity(pem)[1].timestamp()
        return cls(commands=commands, store_answers=store_answers, certificate_ends=ends)

    async def render(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the text, in the format that the header `accept` asks for: OpenMetrics, or that of Prometheus."""
        is_open_metrics = _OPEN_METRICS in accept
        async with self._turn:
            if trio.current_time() - self._made >= _FRESH:
                self._texts.clear()
            if (text := self._texts.get(is_open_metrics)) is None:
                if not self._texts:
                    self._made = trio.current_time()
                text = self._texts[is_open_metrics] = await self._write(is_open_metrics)
        return text

    async def _write(self, is_open_metrics: bool) -> tuple[str, bytes]:
        collector = ServerCollector(
            readings=await self.commands.readings(),
            store_is_up=await self.store_answers(),
            certificate_ends=self.certificate_ends,
        )
        encode, content_type = choose_encoder(_FORMATS[is_open_metrics])
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        # Not the limiter of all threads, in which slow name servers may take every place.
        text = await trio.to_thread.run_sync(encode, registry, limiter=self._scribe)
        return content_type, text
