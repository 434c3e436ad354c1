"""Goes round: every scenario on every chain, one chain right after the other, and all of it several times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import trio

from bench.chain import standing
from bench.product import ENCRYPTED, INSPECTED, UNENCRYPTED
from bench.program import FailedError, MissingError
from bench.rivals import (
    BORE,
    CHISEL,
    DIRECT,
    FRP,
    FRP_PLAIN,
    NAT,
    NGINX,
    NGINX_ENCRYPTED,
    RATHOLE,
    RATHOLE_ENCRYPTED,
    SSH,
)
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.chain import Chain
    from bench.results import Results
    from bench.scenarios import Effort, Scenario

T = TypeVar("T")

CHAINS: Final = (
    *(DIRECT, NGINX, RATHOLE, BORE, FRP_PLAIN, NAT, UNENCRYPTED),
    *(NGINX_ENCRYPTED, RATHOLE_ENCRYPTED, FRP, CHISEL, SSH, ENCRYPTED),
)
ASKED_FOR: Final = (INSPECTED,)
"""Chains that are measured only where they are named."""

_LONGEST: Final = 600.0
"""Seconds for one measurement; the slowest of a full run takes a tenth of it on two slow cores."""


async def run_suite(
    chains: Sequence[Chain], scenarios: Sequence[Scenario], effort: Effort, results: Results
) -> None:
    """Measure. Interleaved, so that the machine's noise hits all alike; each round begins with another chain."""
    present = [chain for chain in chains if await _stands(chain, results)]
    for number in range(effort.rounds):
        for scenario in scenarios:
            # What happens in seconds of outage is not a matter of noise.
            if scenario.cuttable and number > 0:
                continue
            for chain in _rotated(present, number):
                await _measure(number, scenario, chain, effort, results)


async def _stands(chain: Chain, results: Results) -> bool:
    """Tell whether a chain can be built here; note why not."""
    print(f"trying {chain.name}", flush=True)
    try:
        async with standing(chain):
            return True
    except* (MissingError, FailedError) as group:
        results.left_out[chain.name] = _reason(group)
        print(f"left out: {results.left_out[chain.name]}", flush=True)
    return False


async def _measure(
    number: int, scenario: Scenario, chain: Chain, effort: Effort, results: Results
) -> None:
    """Build the chain, measure once, and note the figures, or why there are none."""
    what = f"round {number + 1}, {scenario.name}, {chain.name}"
    try:
        with trio.fail_after(_LONGEST):
            site = standing(chain, scenario.round_trip, cuttable=scenario.cuttable)
            async with site as ends:
                if scenario.of_ends and not ends.public:
                    return
                figures = await scenario.run(ends, effort)
    except* (FailedError, MissingError, trio.TooSlowError, OSError) as group:
        results.failures.append(f"{what}: {_reason(group)}")
        print(results.failures[-1], flush=True)
    else:
        results.add(chain.name, number, figures)
        shown = (f"{m.title}: {m.write(figure, unit=True)}" for m, figure in figures.items())
        print(f"{what}: {'; '.join(shown)}", flush=True)


def _rotated(chains: Sequence[T], by: int) -> Iterator[T]:
    for place in range(len(chains)):
        yield chains[(place + by) % len(chains)]


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    """Return the first line of what went wrong first."""
    error = next(leaves(group))
    return next(iter(str(error).splitlines()), type(error).__name__)
