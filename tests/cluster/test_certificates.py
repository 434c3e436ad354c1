"""Certificates that nodes share through a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.made import Maker
from tests.registry.redis_world import redis_world
from trionat.server.certificates.store import CertificateStore
from trionat.server.cluster.certificates import SharedCertificates

if TYPE_CHECKING:
    from pathlib import Path

NAME = "shop.example.org"


@pytest.mark.limit(30)
async def test_who_comes_second_says_that_it_waits_and_gets_what_the_first_has_got(
    tmp_path: Path,
) -> None:
    waited = 0

    def waiting() -> None:
        nonlocal waited
        waited += 1

    async with redis_world([60001], 1) as world:
        nodes = [await world.start(name) for name in ("one", "two")]
        first, second = (
            SharedCertificates(node.link, node.seal, CertificateStore(tmp_path / node.config.node))
            for node in nodes
        )
        has_begun = trio.Event()

        async def order() -> None:
            async with first.lock(NAME, waiting):
                has_begun.set()
                while waited < 2:  # noqa: ASYNC110 - the other node looks once a second
                    await trio.sleep(0.05)
                await first.store.put(NAME, *Maker().chain(NAME))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(order)
            await has_begun.wait()
            async with second.lock(NAME, waiting):
                ours, theirs = (one.store.find_ordered(NAME) for one in (first, second))
        assert ours is not None
        assert theirs is not None
        assert theirs.certificate.pem == ours.certificate.pem
    assert waited >= 2
