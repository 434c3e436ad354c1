"""Tunnels that die while they are idle: the next visitor does not notice, or at most has to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask
from tests.faults.load import THOROUGH
from tests.faults.proxy import Passage, Proxy, proxied

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = [pytest.mark.limit(60), pytest.mark.slow]

NOTICED_WITHIN = {"close": 0.0, "reset": 0.0, "freeze": 6.0}
"""Seconds until another tunnel has the visitor: at once, or when the one that it was given has not answered a probe. The others owe an answer then
as well, and are not tried."""
SLACK = 2.0


CASES = [(how, which) for how in NOTICED_WITHIN for which in ("last", "all")]


@pytest.mark.parametrize(("how", "which"), CASES if THOROUGH else [("freeze", "all")])
async def test_next_visitor(how: str, which: str, echo_server: Service, tmp_path: Path) -> None:
    port = services.free_low_port()
    async with running.server(tmp_path / "s", "--public-addr", f"{services.HOST}:{port}") as server:
        proxy = Proxy(server.control, port)
        async with (
            proxied(proxy),
            running.client(tmp_path / "c", server.ticket, echo_server) as client,
        ):
            async with await client.visit() as visitor:
                assert await ask(visitor, b"before") == b"before"
            await trio.sleep(3)  # silence
            _control, *tunnels = proxy.passages
            assert tunnels
            for tunnel in tunnels if which == "all" else tunnels[:1]:
                getattr(Passage, how)(tunnel)
            async with await client.visit() as visitor:
                began = trio.current_time()
                assert await ask(visitor, b"after") == b"after"
                print(f"{how} {which} of {len(tunnels)}: {trio.current_time() - began:.1f} s")
                assert trio.current_time() - began < NOTICED_WITHIN[how] + SLACK
