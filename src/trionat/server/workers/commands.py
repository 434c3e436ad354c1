"""What commands ask of a server with workers: all of them are asked, and their answers become one."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.server.admin.commands import lift_ban
from trionat.server.admin.kick import tell_others
from trionat.server.admin.messages import (
    Drained,
    Kicked,
    KickUser,
    Whereabouts,
    encode_request,
)
from trionat.server.admin.metrics import (
    view_banned,
    view_certificates,
    view_cluster,
    view_readings,
    view_server,
)
from trionat.server.admin.readings import Present
from trionat.server.admin.snapshot import Snapshot, WorkerView
from trionat.server.admin.task_tree import Branch, grow, main_task
from trionat.server.admin.whereabouts import look_for
from trionat.server.refusals import Bound
from trionat.server.workers.link import LinkLostError
from trionat.server.workers.process import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trionat.server.admin.messages import Kick
    from trionat.server.admin.readings import Readings
    from trionat.server.admin.snapshot import ServerView
    from trionat.server.workers.link import Values
    from trionat.server.workers.parent import Parent
    from trionat.server.workers.process import WorkerProcess

log = get_logger(__name__)

_PATIENCE: Final = 5.0
"""Seconds for a worker to answer: less than a command waits for the server."""


@attrs.define(eq=False)
class AllWorkers:
    """The `Commands` of a server with workers. One that does not answer is left out."""

    parent: Parent
    _reader: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )
    _started: float = attrs.field(init=False, factory=trio.current_time)

    async def _ask(self, question: Values) -> list[tuple[WorkerProcess, Values]]:
        """Ask all workers that are up, at once; return what they answer, in their order."""
        answers: dict[WorkerProcess, Values] = {}

        async def ask(worker: WorkerProcess) -> None:
            try:
                with trio.move_on_after(_PATIENCE):
                    answers[worker] = await worker.link.ask(question)
            except (LinkLostError, RefusedError) as error:
                log.debug("a worker does not answer", worker=worker.word, error=str(error))

        async with trio.open_nursery() as nursery:
            for worker in self.parent.workers:
                if worker.state is State.UP:
                    nursery.start_soon(ask, worker, name=f"ask {worker.word}")
        return [(worker, answers[worker]) for worker in self.parent.workers if worker in answers]

    async def snapshot(self) -> Snapshot:
        """See `Commands`."""
        parent = self.parent
        texts = [answer["status"] for _, answer in await self._ask({"what": "status"})]
        views = await trio.to_thread.run_sync(_read_snapshots, texts, limiter=self._reader)
        sessions = sorted(
            (session for view in views for session in view.sessions), key=lambda each: each.uid
        )
        return Snapshot(
            server=self._server(rate=sum((session.rate for session in sessions), 0.0)),
            sessions=tuple(sessions),
            queue=tuple(
                sorted(
                    (client for view in views for client in view.queue),
                    key=lambda each: (each.position, each.since),
                )
            ),
            reserved=tuple(each for view in views for each in view.reserved),
            refused=self._refused(view.refused for view in views),
            banned=await view_banned(parent.bans),
            cluster=None if parent.node is None else await view_cluster(parent.node),
            certificates=view_certificates(parent.certificates()),
            workers=self._workers(),
        )

    async def readings(self) -> Readings:
        """See `Commands`. Nobody is asked: workers have told within the last second, and what one has told stays when it ends."""
        parent = self.parent
        assert parent.tally is not None, "asked where metrics are on"  # noqa: S101 - for type checkers
        here = Present(handshakes=parent.tally.pending_handshakes)
        return view_readings(
            parent.tally,
            Present.together([here, *(worker.present for worker in parent.workers)]),
            server=self._server(rate=0.0),
            refused=self._refused([worker.refused for worker in parent.workers]),
            banned=len(await view_banned(parent.bans)),
            has_names=parent.config.domain is not None,
            certificates=view_certificates(parent.certificates()),
            quotas=dict(parent.accounts.quotas),
            cluster=None if parent.node is None else await view_cluster(parent.node),
            workers=self._workers(),
        )

    def _server(self, *, rate: float) -> ServerView:
        parent = self.parent
        return view_server(
            parent.ready,
            parent.config,
            self._started,
            parent.table.ports,
            rate=rate,
            stopping=parent.stopping.is_set(),
            drained=parent.drained,
        )

    def _refused(self, parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Add up what the parent has refused, workers that have ended, and those that are there."""
        parent = self.parent
        refused = Counter({bound.value: count for bound, count in parent.refusals.counts.items()})
        if parent.descriptors.refused:
            refused[Bound.DESCRIPTORS.value] += parent.descriptors.refused
        for part in parts:
            refused.update(part)
        return dict(refused)

    def _workers(self) -> tuple[WorkerView, ...]:
        return tuple(
            WorkerView(
                name=worker.word,
                state=worker.state.value,
                pid=worker.pid,
                sessions=len(worker.sessions),
                restarts=max(0, worker.starts - 1),
            )
            for worker in self.parent.workers
        )

    async def tasks(self) -> Branch:
        """See `Commands`; below the parent's own there is a branch for each worker."""
        own = await grow(main_task())
        others = [
            attrs.evolve(Branch.of(answer["tasks"]), name=f"worker {worker.word}")
            for worker, answer in await self._ask({"what": "tasks"})
        ]
        return Branch(f"parent {os.getpid()}", (own, *others))

    async def drain(self) -> Drained:
        """See `Commands`; a worker that is not up, or does not answer, has what its clients hold."""
        self.parent.drained = True
        handover = None if self.parent.member is None else self.parent.member.handover
        if handover is not None:
            handover.begin()
        answers = dict(await self._ask({"what": "drain clients"}))
        parts = [
            Drained.of(answers[worker]["drained"])
            if worker in answers
            else Drained(sessions=0, reserved=len(self.parent.table.held_by(worker.word)))
            for worker in self.parent.workers
        ]
        return Drained(
            sessions=sum(each.sessions for each in parts),
            moved=sum(each.moved for each in parts),
            visitors=sum(each.visitors for each in parts),
            reserved=sum(each.reserved for each in parts),
            others=tuple(map(str, self.parent.others or ())),
            waits_for=None if handover is None else handover.waits_for,
        )

    async def kick(self, request: Kick) -> Kicked:
        """See `Commands`; a user's clients are sent away from all nodes."""
        kicked = await self.kick_here(request)
        if isinstance(request, KickUser) and self.parent.node is not None:
            kicked = tell_others(self.parent.node, request, kicked)
        return kicked

    def where(self, name: str) -> Whereabouts:
        """See `Commands`."""
        return look_for(self.parent.node, name)

    def lift(self, network: str) -> bool:
        """See `Commands`."""
        return lift_ban(self.parent.bans, self.parent.node, network)

    async def kick_here(self, request: Kick) -> Kicked:
        """Send somebody away from this node."""
        question = {"what": "kick", "request": encode_request(request).decode()}
        kicked = [_read_kicked(answer) for _, answer in await self._ask(question)]
        return Kicked(
            sessions=tuple(sorted(uid for each in kicked for uid in each.sessions)),
            visitors=tuple(number for each in kicked for number in each.visitors),
            queued=sum(each.queued for each in kicked),
            reserved=tuple(sorted(port for each in kicked for port in each.reserved)),
            names=tuple(sorted(name for each in kicked for name in each.names)),
        )


def _read_snapshots(texts: Sequence[str]) -> list[Snapshot]:
    """In a thread, since there may be thousands of visitors in them."""
    return [Snapshot.of(json.loads(text)) for text in texts]


def _read_kicked(answer: Values) -> Kicked:
    return Kicked.of(answer["kicked"])
