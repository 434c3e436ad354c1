"""The one place that decides between what a peer did and what we did wrong."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from trionat.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from trionat.log import Logger


@contextmanager
def isolated(log: Logger, event: str, **values: object) -> Generator[None]:
    """Keep what goes wrong with one peer from everybody else.

    Their fault (`PeerError`) becomes one line at INFO, `event` with its reason. Ours becomes an ERROR with its traceback, so
    that a bug never vanishes, and ends this peer only. Cancellation passes through.
    """
    try:
        yield
    except* PeerError as group:
        for error in leaves(group):
            log.info(event, reason=str(error), **values)
    except* Exception as group:
        log.exception("internal error", exc_info=group, **values)


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Walk the exceptions in a group and in the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield error
