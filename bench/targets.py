"""What is aimed at: how trionat should compare with the others, and what it should keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from bench import scenarios
from bench.product import ENCRYPTED, INSPECTED, UNENCRYPTED
from bench.rivals import BORE, CHISEL, FRP, NGINX, NGINX_ENCRYPTED, RATHOLE
from bench.scenarios import Effort

if TYPE_CHECKING:
    from bench.chain import Chain
    from bench.results import Measure, Results, Summary


_CUT_LIMIT: Final = Effort().cut_seconds + 1
"""Seconds: nothing but the cut itself, and one to find each other again."""


@attrs.frozen(kw_only=True)
class Target:
    """A bound for a measure of a chain, or, with `other`, for its ratio to the same measure of another chain."""

    chain: Chain
    measure: Measure
    bound: float
    other: Chain | None = None

    def figure(self, results: Results) -> Summary | None:
        """Return what is compared with the bound; None if it was not measured."""
        if self.other is None:
            return results.summary(self.measure, self.chain.name)
        return results.ratio(self.measure, self.chain.name, self.other.name)

    def reached(self, results: Results) -> bool | None:
        """Tell whether the median keeps to the bound; None if it was not measured."""
        if (figure := self.figure(results)) is None:
            return None
        if self.measure.more_is_better:
            return figure.median >= self.bound
        return figure.median <= self.bound


_RIVALS: Final = {
    "trionat": ENCRYPTED,
    "nginx": NGINX,
    "nginx_tls": NGINX_ENCRYPTED,
    "rathole": RATHOLE,
    "bore": BORE,
    "frp": FRP,
    "chisel": CHISEL,
}


def _compared(chain: Chain, measure: Measure, **bounds: float) -> list[Target]:
    return [
        Target(chain=chain, measure=measure, bound=bound, other=_RIVALS[rival])
        for rival, bound in bounds.items()
    ]


def _targets(chain: Chain) -> list[Target]:
    targets: list[Target] = []
    if chain is UNENCRYPTED:
        for measure in scenarios.BULK.values():
            targets += _compared(chain, measure, nginx=1.0)
        targets += _compared(chain, scenarios.AT_ONCE, nginx=0.6, rathole=0.65)
        targets += _compared(chain, scenarios.ALONE_P50, nginx=1.3)
        targets += _compared(chain, scenarios.CONNECTIONS, nginx=0.5, bore=0.75)
    else:
        for measure in scenarios.BULK.values():
            targets += _compared(chain, measure, nginx_tls=0.9)
        targets += _compared(chain, scenarios.AT_ONCE, nginx_tls=0.6, frp=0.8)
        targets += _compared(chain, scenarios.CONNECTIONS, nginx_tls=2.5, frp=1.3, chisel=0.9)
    limits = {
        scenarios.WARM: 1.1,
        scenarios.BURST_SLOWEST: 2.0,
        scenarios.TALK_RATIO: 5.0,
        scenarios.PUBLIC_REST: 40.5,
        scenarios.PRIVATE_REST: 36.5,
        scenarios.PUBLIC_VISITOR: 27.5 if chain.encrypted else 14.5,
        scenarios.PRIVATE_VISITOR: 36.5 if chain.encrypted else 15.5,
    }
    for cut in (scenarios.CUT, scenarios.SILENCE):
        limits |= dict.fromkeys(cut.measures, _CUT_LIMIT)
    return targets + [Target(chain=chain, measure=m, bound=bound) for m, bound in limits.items()]


def _inspected() -> list[Target]:
    bulk = [_compared(INSPECTED, measure, trionat=0.9) for measure in scenarios.BULK.values()]
    return [target for targets in bulk for target in targets]


TARGETS: Final = (*_targets(ENCRYPTED), *_targets(UNENCRYPTED), *_inspected())
