"""What is aimed at: how trionat should compare with the others, and what it should keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from bench import scenarios
from bench.product import ENCRYPTED, UNENCRYPTED
from bench.rivals import BORE, NGINX, NGINX_ENCRYPTED, RATHOLE

if TYPE_CHECKING:
    from bench.chain import Chain
    from bench.results import Measure, Results, Summary


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


def _compared(chain: Chain, measure: Measure, **bounds: float) -> list[Target]:
    rivals = {"nginx": NGINX, "nginx_tls": NGINX_ENCRYPTED, "rathole": RATHOLE, "bore": BORE}
    return [
        Target(chain=chain, measure=measure, bound=bound, other=rivals[rival])
        for rival, bound in bounds.items()
    ]


def _targets(chain: Chain) -> list[Target]:
    targets: list[Target] = []
    if chain is UNENCRYPTED:
        for measure in scenarios.BULK.values():
            targets += _compared(chain, measure, nginx=1.0, rathole=1.5)
        targets += _compared(chain, scenarios.AT_ONCE, nginx=0.75, rathole=1.0)
        targets += _compared(chain, scenarios.ALONE_P50, nginx=1.3)
        targets += _compared(chain, scenarios.CONNECTIONS, nginx=0.9, rathole=2.0, bore=2.0)
    else:
        for measure in scenarios.BULK.values():
            targets += _compared(chain, measure, nginx_tls=0.9)
        targets += _compared(chain, scenarios.AT_ONCE, nginx_tls=0.75)
        targets += _compared(chain, scenarios.CONNECTIONS, nginx_tls=1.5)
    limits = {
        scenarios.WARM: 1.1,
        scenarios.BURST_SLOWEST: 3.5 if chain.encrypted else 2.5,
        scenarios.TALK_RATIO: 5.0,
        scenarios.PUBLIC_REST: 45.0,
        scenarios.PRIVATE_REST: 45.0,
        scenarios.PUBLIC_VISITOR: 16.0,
        scenarios.PRIVATE_VISITOR: 16.0,
    }
    return targets + [Target(chain=chain, measure=m, bound=bound) for m, bound in limits.items()]


TARGETS: Final = (*_targets(ENCRYPTED), *_targets(UNENCRYPTED))
