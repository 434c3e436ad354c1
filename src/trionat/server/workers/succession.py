"""How the workers of one server come after those of another: each gives what it has, and all of it becomes one estate; and the other way round, an estate is dealt to the workers.

`server/upgrade/succession.py` has what is the same where there are none.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError, StartupError
from trionat.log import get_logger
from trionat.server.registry.values import read_wish
from trionat.server.workers.process import State, not_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.server.console.console import Console
    from trionat.server.registry.table import ClaimTable
    from trionat.server.upgrade.estate import Estate
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.succession import Succession
    from trionat.server.upgrade.successor import Successor
    from trionat.server.upgrade.wire import Parcel
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Values
    from trionat.server.workers.process import WorkerProcess

log = get_logger(__name__)


@attrs.define(eq=False)
class Dealing:
    """Which worker gets which lease of another server: the one of the same word, to which the client's way leads already; else the one that has fewest by now. All of a group go to one."""

    words: Sequence[str]
    _counts: Counter[str] = attrs.field(init=False, factory=lambda: Counter())
    _groups: dict[LeaseKey, str] = attrs.field(init=False, factory=lambda: {})

    def word_for(self, values: Values) -> str:
        """Return the word of the worker."""
        wish = read_wish(values["wish"])
        word = str(values.get("worker"))
        if wish.ports_key in self._groups:
            word = self._groups[wish.ports_key]
        elif word not in self.words:
            word = min(self.words, key=self._counts.__getitem__)
        if wish.group is not None:
            self._groups[wish.ports_key] = word
        self._counts[word] += 1
        return word


@attrs.define(eq=False, kw_only=True)
class WorkersSuccession:
    """See the module. `succession` is that of the whole server, and `table` has the claims of the `workers`. `visitor_step` is as for the parent, and `console` there where it has one.

    `hand_over` is for who serves; who comes after it calls `inherit`, and then `take`. `is_handed_over` says that another process serves by now.
    """

    succession: Succession
    table: ClaimTable
    workers: Sequence[WorkerProcess]
    acceptor: VisitorAcceptor
    visitor_step: int
    console: Console | None
    is_handed_over: bool = attrs.field(init=False, default=False)
    _resting: trio.Event | None = attrs.field(init=False, default=None)
    _attempts: int = attrs.field(init=False, default=0)
    _heirs: dict[WorkerProcess, int | None] = attrs.field(init=False, factory=lambda: {})

    @property
    def is_resting(self) -> bool:
        """Whether another process is about to go on, so that no worker is to be started."""
        return self._resting is not None

    async def wait_awake(self) -> None:
        """Wait until it is known who goes on."""
        while self._resting is not None:
            await self._resting.wait()

    async def hand_over(self, successor: Successor) -> bool:
        """Give all that the workers have to the process that is ready to go on; tell whether it has taken it, else this one goes on."""
        began = trio.current_time()
        resting = self._resting = trio.Event()
        parcels: dict[str, Parcel] = {}
        self._attempts += 1
        try:
            try:
                await self._collect(parcels)
                estate, values = self._join_estates(parcels)
                await self.succession.give(successor, estate, values)
            finally:
                for parcel in parcels.values():
                    parcel.close()
        except StartupError as error:
            anew = await self.succession.fail(successor, error)
            self.acceptor.go_on(handed_over=False)
            self._wake(resting)
            for worker in self.workers:
                worker.go_on(self._attempts, anew=anew)
            return False
        self.is_handed_over = True
        self.succession.succeed(successor, estate, trio.current_time() - began)
        self.acceptor.go_on(handed_over=True)
        self._wake(resting)
        for worker in self.workers:
            if worker.word in parcels:
                worker.let_go()
            else:
                worker.cut_off()
        return True

    def _wake(self, resting: trio.Event) -> None:
        self._resting = None
        resting.set()

    async def _collect(self, parcels: dict[str, Parcel]) -> None:
        """Have all workers give what they have. What one has that ends meanwhile, or is killed as it hangs, is lost, as ever.

        Raises:
            StartupError: one that goes on does not give it.
        """
        problems: list[StartupError] = []

        async def ask(worker: WorkerProcess) -> None:
            try:
                parcels[worker.word] = await worker.give(self._attempts)
            except PeerError as error:
                if await worker.is_gone():
                    log.warning(
                        "a worker has ended before it has handed over what it has: its clients keep their ports alone",
                        worker=worker.word,
                        reason=str(error),
                    )
                else:
                    problems.append(
                        StartupError(f"worker {worker.word} does not give what it has: {error}")
                    )

        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                if worker.state is State.UP:
                    nursery.start_soon(ask, worker, name=f"ask {worker.word}")
                else:
                    worker.cut_off()
        if problems:
            raise problems[0]

    def _join_estates(self, parcels: dict[str, Parcel]) -> tuple[Estate, Values]:
        """Return what is handed over, and what belongs to it."""
        from trionat.server.upgrade.estate import (  # noqa: PLC0415 - seldom
            join_estates,
            write_claim_alone,
        )

        estate, now = join_estates(parcels), trio.current_time()
        for worker in self.workers:
            if worker.word not in parcels:
                estate.values["leases"] += [
                    write_claim_alone(claim, max(0.0, now - worker.away_since))
                    for claim in self.table.held_by(worker.word)
                ]
        next_visitor, next_session = next(self.acceptor.numbers), 1
        self.acceptor.numbers = count(next_visitor, self.visitor_step)
        numbers = [worker.next_numbers for worker in self.workers]
        numbers += [
            (parcel.values["next_visitor"], parcel.values["next_session"])
            for parcel in parcels.values()
        ]
        for visitor, session in numbers:
            next_visitor, next_session = max(next_visitor, visitor), max(next_session, session)
        return estate, {
            "next_visitor": next_visitor,
            "next_session": next_session,
            "logins": {} if self.console is None else self.console.logins.write(),
        }

    async def inherit(self, predecessor: Predecessor) -> None:
        """Deal to the workers what another process leaves, as far as that can be done before it is told. What one has that is lost now, the other process still has.

        Raises:
            StartupError: the other one goes on.
        """
        from trionat.server.upgrade.estate import split_estate  # noqa: PLC0415 - seldom

        parcel = await self.succession.inherit(predecessor)
        values = parcel.values
        next_visitor, next_session = values["next_visitor"], values["next_session"]
        number = next(self.acceptor.numbers)
        self.acceptor.numbers = count(
            not_below(next_visitor, number, self.visitor_step), self.visitor_step
        )
        if self.console is not None:
            self.console.logins.read(values.get("logins", {}))
        up = {worker.word: worker for worker in self.workers if worker.state is State.UP}
        for worker in self.workers:
            worker.take_numbers(next_visitor, next_session)
        parts = split_estate(parcel, Dealing(list(up)).word_for)
        taken: list[Values] = []

        async def deal(worker: WorkerProcess, part: Estate) -> None:
            self._heirs[worker] = worker.pid
            try:
                taken.append(await worker.inherit(part))
            except PeerError as error:
                raise StartupError(f"worker {worker.word} has not taken over: {error}") from error

        try:
            async with trio.open_nursery() as nursery:
                for word, part in parts.items():
                    nursery.start_soon(deal, up[word], part, name=f"deal to {word}")
        finally:
            parcel.close()
        log.info(
            "taken over from another process",
            pid=predecessor.pid,
            version=predecessor.version,
            clients=sum(each["clients"] for each in taken),
            visitors=sum(each["visitors"] for each in taken),
        )

    def take(self, predecessor: Predecessor) -> None:
        """Tell the other process that this one serves, and have the workers do it. Nobody was accepted yet.

        Raises:
            StartupError: the other one goes on.
        """
        for worker, pid in self._heirs.items():
            if worker.pid != pid:
                raise StartupError(
                    f"worker {worker.word} has ended with what it was given; the log says why"
                )
        predecessor.take()
        self._heirs.clear()
        for worker in self.workers:
            worker.open()
