"""How a user's limits are divided among the workers that have clients of it, anew every second.

Nobody gives more than its share, so all together never give more than the limit. Shares follow what was used: what one worker does not need
the others may give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.server.accounts.limits import Share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionat.store.base import Limits

_BUSY: Final = 0.8
"""Part of its share of the bandwidth from which on a worker counts as one that wants more."""

_SPARE: Final = 1.25
"""How much more than it has used a worker may use that does not want more: it may begin to at any time."""

_LEAST: Final = 0.1
"""Part of an even share that everybody gets, used or not."""


@attrs.frozen(kw_only=True)
class Usage:
    """What a worker has told last: visitors that are there, visitors that it has refused since, and bytes that it has moved, in a second."""

    visitors: int = 0
    refused: int = 0
    moved: int = 0


def deal(
    limits: Limits, usage: Mapping[str, Usage], before: Mapping[str, Share]
) -> dict[str, Share]:
    """Return the share of each worker that `usage` names; `before` are those of the last time."""
    visitors, bandwidth = limits.visitors, limits.bandwidth
    dealt_visitors = None if visitors is None else _visitors(visitors, usage)
    dealt_bandwidth = None if bandwidth is None else _bandwidth(bandwidth, usage, before)
    return {
        word: Share(
            visitors=None if dealt_visitors is None else dealt_visitors[word],
            bandwidth=None if dealt_bandwidth is None else dealt_bandwidth[word],
        )
        for word in usage
    }


def _visitors(most: int, usage: Mapping[str, Usage]) -> dict[str, int]:
    """Those that are there keep their places; the others go to who has refused somebody, or else to all."""
    shares = {word: used.visitors for word, used in usage.items()}
    rest = max(0, most - sum(shares.values()))
    wanting = [word for word, used in usage.items() if used.refused] or sorted(
        usage, key=lambda word: usage[word].visitors
    )
    for number, word in enumerate(wanting):
        shares[word] += rest // len(wanting) + (number < rest % len(wanting))
    return shares


def _bandwidth(
    most: int, usage: Mapping[str, Usage], before: Mapping[str, Share]
) -> dict[str, int]:
    """Who has used little gets that and some more; who has used all of its share gets an even part of the rest."""
    even = most / len(usage)
    wanted: dict[str, float] = {}
    for word, used in usage.items():
        share = before[word].bandwidth if word in before else None
        if share is None or used.moved < _BUSY * share:
            wanted[word] = min(even, max(_LEAST * even, _SPARE * used.moved))
    busy = [word for word in usage if word not in wanted]
    takers = busy or list(usage)
    part = (most - sum(wanted.values())) / len(takers)
    return {
        word: max(1, int(wanted.get(word, 0.0) + (part if word in takers else 0.0)))
        for word in usage
    }
