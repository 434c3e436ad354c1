"""Whether the local services are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionat.doctor.finding import Finding, fine, wrong
from trionat.transport.dial import dial_service

if TYPE_CHECKING:
    from trionat.address import Address


async def check_service(local: Address, patience: float) -> list[Finding]:
    """Connect to it as a visitor's tunnel would, and leave; `patience` is in seconds."""
    began = trio.current_time()
    try:
        with trio.fail_after(patience):
            (await dial_service(local)).close()
    except trio.TooSlowError:
        return [
            wrong(
                f"{local} does not answer within {patience:g} s",
                "it hangs, or a firewall is before it: visitors are refused until it answers",
            )
        ]
    except OSError as error:
        return [
            wrong(
                f"{local}: {error.strerror or error}",
                "start that service, or correct its address: visitors are refused until it is there",
            )
        ]
    return [fine(f"{local} answers after {1000 * (trio.current_time() - began):.0f} ms")]
