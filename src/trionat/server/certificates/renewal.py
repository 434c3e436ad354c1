"""The task that sees to it that every wanted name has a certificate that is valid: ordered when it is asked for first, and renewed in time.

It looks at all names once a minute, and when something has changed. What was decided is on the disk before an order is made, so whoever restarts the server, and
however often, does not come to the authority more often.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from trionat.errors import StartupError, TrionatError
from trionat.log import get_logger
from trionat.server.certificates.challenges import HTTP01, Challenges
from trionat.server.certificates.order import (
    MOST_WINDOWS,
    OrderError,
    ask_windows,
    order,
    wrong_with_name,
)
from trionat.server.certificates.schedule import (
    DAY,
    NEW_SHARE,
    RETRY_SHARE,
    USUAL_LOOK,
    Schedule,
    loud_at,
    most_of_account,
    renew_at,
)
from trionat.server.events.event import (
    certificate_expiring,
    certificate_failing,
    certificate_renewed,
)
from trionat.server.events.hub import Hub
from trionat.signals import Signal
from trionat.store.private_file import is_there, make_private_folder, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trionat.config.acme import AcmeConfig
    from trionat.server.certificates.store import CertificateStore, Entry

log = get_logger(__name__)

Lock: TypeAlias = "Callable[[str, Callable[[], None]], AbstractAsyncContextManager[object]]"

LOOK_INTERVAL: Final = 60.0
"""Seconds between two looks at all names; a clock that is set is noticed within it."""

_MOST_TOLD: Final = 20
"""Names that wait, at the start, in a line each."""

_OF_DNS: Final = frozenset({"dns", "connection"})
"""Codes of a failure where the name most likely leads nowhere, or elsewhere."""

MOST_AT_ONCE: Final = 2
"""Orders at once: each is a process of 40 MiB."""

MOST_WAITING: Final = 2
"""Orders that may wait beside those until another server, which may be dead, is done with the name. One that has waited goes on at once, as its lock runs out."""

SEEK_PAUSE: Final = 3600.0
"""Seconds after which a name that may not be ordered for is looked for again at the other servers, which costs no order."""


@attrs.frozen(kw_only=True)
class NameStatus:
    """How a name stands, for `status`.

    `state` is `valid`, `late` (valid, but it should have been renewed long ago: an error), `expired`, `missing`, `ordering` or `own` (the operator's files). Moments are
    seconds since 1970. `failures` in a row; `reason` is that of the last one, and `retry_at` when it is tried again.
    """

    name: str
    state: str
    ends: float | None = None
    renew_at: float | None = None
    failures: int = 0
    reason: str = ""
    retry_at: float | None = None


@attrs.define(eq=False, kw_only=True)
class Renewal:
    """See the module. `run` has to run.

    Args:
        config: The authority.
        store: Has been loaded.
        wanted: The names that may have a certificate now, in lower case, each with its user, or "" for those of the server itself. `in` has to be cheap: visitors ask for any name.
        challenges: Where the answers are served from.
        methods: The ways to answer that this server has, the best first; one that fails gives way to the next.
        lock: Held while a name is ordered for, so that of several servers one does it, and brings what another one has got. None: there are no others. It calls what it is given while another one has it, and has to give up by itself, with a `TrionatError`, not in a group.
        record: Returns the DNS record that leads a name here, for whoever has to make it.
        now: The time of day.
        events: Is told of certificates that were got, were not, and run out.
    """

    config: AcmeConfig
    store: CertificateStore
    wanted: Mapping[str, str]
    challenges: Challenges = attrs.field(factory=Challenges)
    methods: Sequence[str] = (HTTP01,)
    lock: Lock | None = None
    record: Callable[[str], str | None] = lambda _: None
    now: Callable[[], float] = time.time
    events: Hub = attrs.field(factory=Hub)
    _schedule: Schedule = attrs.field(init=False, factory=Schedule)
    _saving: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _asked: dict[str, None] = attrs.field(init=False, factory=lambda: {})
    _sought: dict[str, float] = attrs.field(init=False, factory=lambda: {})
    _ordering: set[str] = attrs.field(init=False, factory=lambda: set())
    _waiting: set[str] = attrs.field(init=False, factory=lambda: set())
    _removing: bool = attrs.field(init=False, default=False)
    _asking: bool = attrs.field(init=False, default=False)
    _told_ceilings: dict[str, float] = attrs.field(init=False, factory=lambda: {})
    _told_own: dict[str, float] = attrs.field(init=False, factory=lambda: {})
    _told_expiring: dict[str, float] = attrs.field(init=False, factory=lambda: {})
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _settled: Signal = attrs.field(init=False, factory=Signal)

    async def run(self) -> None:
        """Order and renew until cancelled.

        Raises:
            StartupError: The folder cannot be used.
        """
        self._schedule = await trio.to_thread.run_sync(self._read)
        self._tell_waiting()
        async with trio.open_nursery() as nursery:
            while True:
                self._look(nursery)
                with trio.move_on_after(LOOK_INTERVAL):
                    await self._changed.wait()

    def names_changed(self) -> None:
        """Look at the names now: some are wanted that were not."""
        self._changed.notify()

    async def wait_for(self, name: str) -> Entry:
        """Return the certificate for a name, and have it ordered where there is none. The caller sets the deadline.

        Raises:
            OrderError: There is none, and why. One that has failed a moment ago is not waited for.
        """
        name = name.lower()
        while (entry := self.store.find(name)) is None:
            if name not in self.wanted:
                raise OrderError("name", f"{name}: there is no such name here")
            now = self.now()
            record = self._schedule.records.get(name)
            if name not in self._ordering:
                if record is not None and record.wait(now):
                    raise OrderError(record.code, record.reason)
                ceiling = self._ceiling(name, now)
                if ceiling is not None and not self._may_seek(name, now):
                    raise OrderError("ceiling", ceiling)
                self._asked[name] = None
                self._changed.notify()
            await self._settled.wait()
        return entry

    def status(self) -> list[NameStatus]:
        """Return how each wanted name stands."""
        return [self._status(name) for name in sorted(self.wanted)]

    # --- which are due ---

    def _look(self, nursery: trio.Nursery) -> None:
        """Start what is due. Plain, so that nothing changes under it."""
        now, wanted = self.now(), list(self.wanted)
        for name in [name for name in self._asked if name not in self.wanted]:
            del self._asked[name]
            self._settled.notify()
        due = [name for name in self._asked if self._is_due(name, now)]
        due += [name for name in wanted if name not in self._asked and self._is_due(name, now)]
        for name in due:
            if len(self._ordering) - len(self._waiting) >= MOST_AT_ONCE:
                break
            ceiling = self._ceiling(name, now)
            if ceiling is not None and not self._may_seek(name, now):
                self._tell_ceiling(name, ceiling, now)
                continue
            self._ordering.add(name)
            nursery.start_soon(self._order, name, name=f"certificate for {name}")
        self._tell_own(wanted, now)
        gone = [
            name
            for name, entry in self.store.all_ordered().items()
            if entry.certificate.ends <= now and name not in self.wanted
        ]
        if gone and not self._removing:
            self._removing = True
            nursery.start_soon(self._remove, gone, name="certificates that have run out")
        unasked = [name for name in wanted if self._has_to_ask(name, now)][:MOST_WINDOWS]
        if unasked and not self._asking:
            self._asking = True
            nursery.start_soon(self._ask_windows, unasked, name="renewal windows")

    def _is_due(self, name: str, now: float) -> bool:
        if name in self._ordering or self.store.has_own(name):
            return False
        record = self._schedule.records.get(name)
        if record is not None and record.wait(now):
            return False
        entry = self.store.find_ordered(name)
        return entry is None or now >= self._renew_at(name, entry)

    def _ceiling(self, name: str, now: float) -> str | None:
        """Return why nothing is ordered for a name today; None where the ceilings leave room for it."""
        is_new, most = self.store.find_ordered(name) is None, self.config.orders_per_day
        record = self._schedule.records.get(name)
        failed = record is not None and record.failures > 0
        share = 1.0 if not is_new else RETRY_SHARE if failed else NEW_SHARE
        if self._schedule.orders_left(now, most, share) <= 0:
            return f"there were as many orders today as Acme.OrdersPerDay allows ({most})"
        account, of_account = self.wanted.get(name, ""), most_of_account(most)
        bound = of_account * (RETRY_SHARE if failed else 1.0)
        if is_new and account and self._schedule.orders_of_account(account, now) >= bound:
            return (
                f"the account {account} has had as many orders for new names today as one account may have"
                f" ({of_account}, which follows from Acme.OrdersPerDay)"
            )
        return None

    def _may_seek(self, name: str, now: float) -> bool:
        """Tell whether it is worth asking if another server has got one, whatever the ceiling leaves."""
        if self.lock is None:
            return False
        sought = self._sought.get(name)
        return sought is None or abs(now - sought) >= SEEK_PAUSE

    def _renew_at(self, name: str, entry: Entry) -> float:
        return renew_at(entry.certificate, self._schedule.wish(name, entry.certificate))

    def _has_to_ask(self, name: str, now: float) -> bool:
        entry = self.store.find_ordered(name)
        return (
            entry is not None
            and name not in self._ordering
            and not self.store.has_own(name)
            and self._schedule.has_to_ask(name, entry.certificate, now)
        )

    # --- doing it ---

    async def _order(self, name: str) -> None:
        method, before = self._method(name), self.store.find_ordered(name)
        try:
            try:
                async with self._locked(name):
                    self._waiting.discard(name)
                    await self._order_locked(name, method, before)
            except OrderError as error:
                self._fail(name, error.code, str(error), error.until)
            except TrionatError as error:  # the disk, or the lock
                self._fail(name, "here", str(error))
            except Exception as error:
                log.exception("the helper process for certificates has failed", name=name)
                self._fail(name, "here", str(error).strip().rpartition("\n")[2])
            await self._save()
        finally:
            self._ordering.discard(name)
            self._waiting.discard(name)
            self._asked.pop(name, None)
            self._settled.notify()
            self._changed.notify()

    def _locked(self, name: str) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self.lock is None else self.lock(name, partial(self._wait, name))

    def _wait(self, name: str) -> None:
        """Another server is at it: let others go before."""
        if name not in self._waiting and len(self._waiting) < MOST_WAITING:
            self._waiting.add(name)
            self._changed.notify()

    async def _order_locked(self, name: str, method: str, before: Entry | None) -> None:
        await self.store.refresh()
        entry = self.store.find_ordered(name)
        if entry is not None and entry is not before and self.now() < self._renew_at(name, entry):
            log.info("another server has got the certificate", name=name)
            self._schedule.succeed(name, "")
            return
        if (wrong := wrong_with_name(name)) is not None:
            raise OrderError("name", wrong)
        now = self.now()
        if (ceiling := self._ceiling(name, now)) is not None:
            self._note_sought(name, now)
            self._tell_ceiling(name, ceiling, now)
            return
        is_new = self.store.find_ordered(name) is None
        self._schedule.count_order(now, self.wanted.get(name, "") if is_new else "")
        await self._write_schedule()  # the order counts, and a disk that takes nothing costs none
        issued = await order(
            self.config,
            [name],
            folder=self.store.folder,
            challenges=self.challenges,
            method=method,
        )
        await self.store.put(name, issued.key, issued.chain)
        certificate, now = issued.certificate, self.now()
        self._schedule.succeed(name, method)
        self._schedule.note_window(
            name, certificate.ends, now, issued.window.renew, issued.window.again
        )
        log.info("got a certificate", name=name, ends=_written(certificate.ends))
        self.events.publish(certificate_renewed(name=name, ends=_written(certificate.ends)))

    def _note_sought(self, name: str, now: float) -> None:
        self._sought = {name: at for name, at in self._sought.items() if abs(now - at) < SEEK_PAUSE}
        self._sought[name] = now

    def _method(self, name: str) -> str:
        """Return how to answer next: as it has worked before, or else, after each failure, in the next way that there is."""
        record = self._schedule.record(name)
        ways = sorted(self.methods, key=lambda way: way != record.method)
        return ways[record.failures % len(ways)]

    def _fail(self, name: str, code: str, reason: str, until: float | None = None) -> None:
        now = self.now()
        record = self._schedule.fail(name, now, code, reason, until)
        entry = self.store.find_ordered(name)
        values = {"name": name, "reason": reason, "next_try": f"in {record.pause:.0f} s"}
        if code in _OF_DNS and (wanted := self.record(name)) is not None:
            values["record"] = wanted
        if entry is None:
            log.warning("no certificate", **values)
        elif now < loud_at(entry.certificate):
            log.warning("a certificate was not renewed", **values)
        else:
            ends = _written(entry.certificate.ends)
            log.error("a certificate runs out, since it is not renewed", ends=ends, **values)
            self._tell_expiring(name, ends, reason, now)
        if self.events.is_on:
            self.events.publish(
                certificate_failing(
                    name=name,
                    code=code,
                    reason=reason,
                    failures=record.failures,
                    next_try=values["next_try"],
                    ends=None if entry is None else _written(entry.certificate.ends),
                )
            )

    def _tell_expiring(self, name: str, ends: str, reason: str, now: float) -> None:
        """Tell `events` once a day."""
        told = {name: at for name, at in self._told_expiring.items() if abs(now - at) < DAY}
        self._told_expiring = told
        if name not in told:
            told[name] = now
            self.events.publish(
                certificate_expiring(name=name, ends=ends, own=False, reason=reason)
            )

    def _tell_ceiling(self, name: str, ceiling: str, now: float) -> None:
        """Tell once a day of each ceiling that is reached."""
        self._settled.notify()  # who waits for it looks, and sees that it will not come
        if abs(now - self._told_ceilings.get(ceiling, -DAY)) < DAY:
            return
        told = {words: at for words, at in self._told_ceilings.items() if abs(now - at) < DAY}
        self._told_ceilings = told | {ceiling: now}
        entry = self.store.find_ordered(name)
        tell = log.warning
        if entry is not None and now >= loud_at(entry.certificate):
            tell = log.error
        tell("no certificate is ordered for now", name=name, reason=ceiling)

    def _tell_own(self, wanted: Collection[str], now: float) -> None:
        """Tell once a day of a certificate of the operator's that runs out: nobody but he renews it."""
        told = {name: at for name, at in self._told_own.items() if abs(now - at) < DAY}
        for name in wanted:
            entry = self.store.find(name) if self.store.has_own(name) else None
            if entry is None or now < loud_at(entry.certificate):
                continue
            file = str(entry.files.chain)
            if file not in told:
                told[file] = now
                ends = _written(entry.certificate.ends)
                log.error("a certificate of yours runs out", file=file, name=name, ends=ends)
                self.events.publish(
                    certificate_expiring(
                        name=name, ends=ends, own=True, reason="nobody but you renews it"
                    )
                )
        self._told_own = told

    async def _ask_windows(self, names: list[str]) -> None:
        """Ask the authority when to renew. It is a hint: where it fails, the rest of a certificate's life goes by the rule."""
        entries = {name: self.store.find_ordered(name) for name in names}
        certificates = {name: entry.certificate for name, entry in entries.items() if entry}
        try:
            windows = await ask_windows(
                self.config, list(certificates.values()), folder=self.store.folder
            )
        except (OrderError, StartupError) as error:
            log.debug("the authority was not asked when to renew", reason=str(error))
            windows = []
        except Exception:
            log.exception("the helper process for certificates has failed")
            windows = []
        now = self.now()
        for number, (name, certificate) in enumerate(certificates.items()):
            if number < len(windows):
                window = windows[number]
                wish, again = window.renew, window.again
            else:  # as it was
                wish, again = self._schedule.wish(name, certificate), now + USUAL_LOOK
            self._schedule.note_window(name, certificate.ends, now, wish, again)
        await self._save()
        self._asking = False
        self._changed.notify()

    async def _remove(self, names: list[str]) -> None:
        """Let go of certificates that have run out and that nobody wants any more, or there would be more each day."""
        for name in names:
            try:
                await self.store.remove(name)
            except StartupError as error:
                log.debug("a certificate that has run out stays", reason=str(error))
        self._removing = False

    # --- what is remembered ---

    @property
    def _file(self) -> Path:
        return self.store.folder / "schedule.json"

    def _read(self) -> Schedule:
        make_private_folder(self.store.folder)
        if not is_there(self._file):
            return Schedule()
        try:
            return Schedule.read(read_private(self._file))
        except ValueError as error:
            log.warning("begins anew", file=str(self._file), reason=str(error))
            return Schedule()

    def _tell_waiting(self) -> None:
        """Tell at the start which names have to wait, since nothing else would say so until they are tried."""
        now = self.now()
        records = sorted(self._schedule.records.items())
        waiting = [(name, record) for name, record in records if record.wait(now)]
        for name, record in waiting[:_MOST_TOLD]:
            log.info(
                "waits before it is ordered again, since it has failed",
                name=name,
                until=_written_to_the_minute(record.failed_at + record.pause),
                reason=record.reason,
            )
        if len(waiting) > _MOST_TOLD:
            log.info(
                "more names wait before they are ordered again", names=len(waiting) - _MOST_TOLD
            )

    async def _write_schedule(self) -> None:
        async with self._saving:
            self._schedule.forget(self.wanted, self.now())
            content = self._schedule.write()
            await trio.to_thread.run_sync(write_private, self._file, content)

    async def _save(self) -> None:
        try:
            await self._write_schedule()
        except StartupError as error:
            log.warning("cannot remember when certificates are due", reason=str(error))

    def _status(self, name: str) -> NameStatus:
        record, now = self._schedule.records.get(name), self.now()
        if self.store.has_own(name):
            entry = self.store.find(name)
            ends = None if entry is None else entry.certificate.ends
            return NameStatus(name=name, state="own", ends=ends)
        entry = self.store.find_ordered(name)
        if name in self._ordering:
            state = "ordering"
        elif entry is None:
            state = "missing"
        elif entry.certificate.ends <= now:
            state = "expired"
        elif now >= max(loud_at(entry.certificate), self._renew_at(name, entry) + 1):
            state = "late"
        else:
            state = "valid"
        failing = record is not None and record.failures > 0
        return NameStatus(
            name=name,
            state=state,
            ends=None if entry is None else entry.certificate.ends,
            renew_at=None if entry is None else self._renew_at(name, entry),
            failures=record.failures if record is not None else 0,
            reason=record.reason if record is not None else "",
            retry_at=record.failed_at + record.pause if record is not None and failing else None,
        )


def _written(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def _written_to_the_minute(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
