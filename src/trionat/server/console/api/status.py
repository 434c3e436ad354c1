"""All that `trionat status` shows, in one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trionat.server.console.operation import Call, Nothing, Operation

if TYPE_CHECKING:
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.console.principal import Principal


async def _get(call: Call[Nothing, Nothing]) -> Snapshot:
    sample = await call.context.sampler.look()
    return _seen_by(call.principal, sample.snapshot)


def _seen_by(principal: Principal, snapshot: Snapshot) -> Snapshot:
    """Return what somebody may see of a snapshot: an administrator all, anybody else his own clients."""
    if principal.is_admin:
        return snapshot
    sessions = tuple(each for each in snapshot.sessions if principal.may_see(each.user))
    rate = sum((each.rate for each in sessions), 0.0)
    return attrs.evolve(
        snapshot,
        server=attrs.evolve(snapshot.server, ports_free=None, ports_held=None, rate=rate),
        sessions=sessions,
        queue=tuple(each for each in snapshot.queue if principal.may_see(each.user)),
        reserved=tuple(each for each in snapshot.reserved if principal.may_see(each.user)),
        refused={},
        banned=(),
        workers=(),
        cluster=None,
        certificates=(),
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/status",
        name="get_status",
        summary="All that trionat status --json tells, visitors too: one answer, which may be long; of an ordinary account's own clients only",
        answer=Any,
        handle=_get,
        is_long=True,
    ),
)
