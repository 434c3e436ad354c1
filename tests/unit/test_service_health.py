"""When a client tells that a service is down, and when not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionat.client.service_health import ServiceHealth
from trionat.config.service import parse_service
from trionat.events import ServiceDown, ServiceUp

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock

    from trionat.events import ClientEvent

WEB = parse_service("8080")


async def test_one_that_comes_and_goes(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One that serves every second visitor, twice a second: a line or two every ten seconds."""
    told: list[ClientEvent] = []
    health = ServiceHealth(WEB, told.append)
    for _ in range(100):
        health.failed("refused")
        health.refused(visitor=1)
        health.worked()
        await trio.sleep(0.5)
    assert len(told) == 10
    assert told[:2] == [
        ServiceDown(name=WEB.name, local=WEB.local, reason="refused"),
        ServiceUp(name=WEB.name, local=WEB.local),
    ]
    assert caplog.text.count("the local service is down") == 5
    assert caplog.text.count("visitor refused") <= 6


async def test_visitors_are_counted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    health = ServiceHealth(WEB, lambda _: None)
    health.failed("refused")
    for number in range(1, 101):
        health.refused(visitor=number, reason="refused")
        await trio.sleep(1)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in lines if line.startswith("visitor refused")] == [
        "visitor refused visitor=1 reason=refused",
        "visitor refused visitor=61 reason=refused refused=60",
    ]
    health.worked()
    assert "the local service is back service=127.0.0.1:8080 refused=39" in caplog.text
