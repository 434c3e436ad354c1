"""The task that orders and renews: on a clock of the test for days and weeks, and with a real authority."""

from __future__ import annotations

import logging
import os
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from tests.certificates.conftest import listening
from tests.certificates.front import Request, Response, front, problem
from tests.certificates.made import DAY, Maker
from tests.events.listening import reading
from trionat.config.acme import AcmeConfig
from trionat.errors import RegistryAwayError
from trionat.server.certificates import renewal as renewal_module
from trionat.server.certificates.certificate import read_pair
from trionat.server.certificates.challenges import ALPN01, HTTP01, Challenges
from trionat.server.certificates.order import Issued, OrderError, Window
from trionat.server.certificates.renewal import Renewal
from trionat.server.certificates.store import CertificateStore
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.certificates.pebble import Pebble
    from trionat.server.certificates.certificate import Certificate

MAKER = Maker()
START = 1_800_000_000.0


@attrs.define(eq=False)
class Authority:
    """What stands for the helper process where the clock is the test's. `orders` are those that were made: when, since the start, for which name, and how."""

    takes: float = 1.0
    life: float = 90 * DAY
    wish: Callable[[Certificate], float | None] = lambda _: None
    failure: OrderError | Exception | None = None
    orders: list[tuple[float, str, str]] = attrs.field(factory=lambda: [])
    asked: list[float] = attrs.field(factory=lambda: [])

    async def order(self, config: Any, names: Sequence[str], *, method: str, **_: Any) -> Issued:
        moment = trio.current_time()
        self.orders.append((round(moment - BEGAN[0], 3), names[0], method))
        await trio.sleep(self.takes)
        if self.failure is not None:
            raise self.failure
        key, chain = MAKER.chain(*names, begins=now(), ends=now() + self.life)
        certificate = read_pair(key, chain)
        window = Window(self.wish(certificate), None)
        return Issued(certificate=certificate, key=key, chain=chain, window=window)

    async def ask_windows(
        self, config: Any, certificates: Sequence[Certificate], **_: Any
    ) -> list[Window]:
        self.asked.append(trio.current_time() - BEGAN[0])
        return [Window(self.wish(one), None) for one in certificates]

    @property
    def moments(self) -> list[float]:
        return [moment for moment, _, _ in self.orders]


BEGAN = [0.0]


def now() -> float:
    return START + trio.current_time() - BEGAN[0]


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> Authority:
    """Threads would run while the clock jumps, so what they do is done at once; weeks of it are not forced to the disk."""
    made = Authority()
    BEGAN[0] = 0.0
    monkeypatch.setattr(renewal_module, "order", made.order)
    monkeypatch.setattr(renewal_module, "ask_windows", made.ask_windows)

    async def at_once(function: Any, *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return made


@pytest.fixture
def big_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look three times an hour, since a day of looks each minute takes half a second."""
    monkeypatch.setattr(renewal_module, "LOOK_INTERVAL", 1200.0)


@asynccontextmanager
async def renewing(folder: Path, *names: str, **settings: Any) -> AsyncIterator[Renewal]:
    """Run one on a folder, as a start of the server does."""
    store = CertificateStore(folder, own_folder=settings.pop("own", None))
    await store.load()
    most = settings.pop("most", 300)
    wanted = settings.pop("wanted", dict.fromkeys(names, ""))
    renewal = Renewal(
        config=AcmeConfig(orders_per_day=most),
        store=store,
        wanted=wanted,
        now=now,
        **settings,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewal.run)
        await trio.testing.wait_all_tasks_blocked()
        yield renewal
        nursery.cancel_scope.cancel()


FAILED = OrderError("dns", "https://authority: the DNS record cannot be found")


@pytest.mark.usefixtures("big_steps")
async def test_names_are_ordered_at_once_two_at_a_time(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    async with renewing(tmp_path, "a.example", "b.example", "c.example") as renewal:
        for name in ("a.example", "b.example", "c.example"):
            entry = await renewal.wait_for(name.upper())
            assert entry.certificate.names == {name}
        assert sorted(authority.moments) == [0, 0, 1]
        await trio.sleep(5 * DAY)
        assert len(authority.orders) == 3
        assert [one.state for one in renewal.status()] == ["valid"] * 3
    async with renewing(tmp_path, "a.example", "b.example", "c.example"):
        await trio.sleep(5 * DAY)
        assert len(authority.orders) == 3, "after a restart"


async def test_who_asks_for_a_name_goes_first_and_all_are_woken(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    names = {f"n{number}.example": "" for number in range(10)}
    authority.takes = 10
    woken: list[float] = []

    async def wait(renewal: Renewal) -> None:
        await renewal.wait_for("asked.example")
        woken.append(now() - START)

    async with renewing(tmp_path, wanted=names) as renewal:
        names["asked.example"] = ""
        for _ in range(20):
            nursery.start_soon(wait, renewal)
        await trio.sleep(25)
    assert woken == [20.0] * 20
    assert [name for _, name, _ in authority.orders].index("asked.example") in {2, 3}


async def test_a_name_that_fails_waits_longer_each_time_also_after_restarts(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    authority.failure, authority.takes = FAILED, 0
    for _ in range(30):
        async with renewing(tmp_path, "a.example"):
            await trio.sleep(500)
    minutes = [moment / 60 for moment in authority.moments]
    expected = [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert minutes[: len(expected)] == pytest.approx(expected, abs=len(expected))
    pauses = (1, 2, 4, 8, 16, 32, 60, 60)
    for (before, after), pause in zip(pairwise(minutes), pauses, strict=False):
        assert pause <= after - before <= pause + 1.1
    assert len(caplog.records) == len(authority.orders)
    assert "the DNS record cannot be found" in str(caplog.records[0].msg)


async def test_a_start_tells_which_names_wait_and_until_when(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority.failure, authority.takes = FAILED, 0
    async with renewing(tmp_path, "a.example"):
        await trio.sleep(70)  # it has failed twice, and waits for two minutes
    caplog.set_level(logging.INFO, "trionat")
    caplog.clear()
    async with renewing(tmp_path, "a.example"):
        [told] = [str(record.msg) for record in caplog.records if "waits before" in str(record.msg)]
    assert 'name=a.example until="2027-01-15 08:03 UTC"' in told.replace("'", '"')
    assert "the DNS record cannot be found" in told


@pytest.mark.parametrize(
    ("code", "told"), [("dns", True), ("connection", True), ("rateLimited", False)]
)
async def test_each_failure_for_want_of_a_record_says_which_one_it_is(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    code: str,
    told: bool,
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    authority.takes, authority.failure = 0, OrderError(code, "Could not resolve URL")
    async with renewing(tmp_path, "a.example", record=lambda name: f"{name}. A 203.0.113.7"):
        await trio.sleep(70)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert ("a.example. A 203.0.113.7" in str(record.msg)) == told


async def test_who_waits_hears_of_a_failure_and_the_next_one_at_once(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    authority.failure = FAILED
    async with renewing(tmp_path, "a.example") as renewal:
        with pytest.raises(OrderError, match="cannot be found"):
            await renewal.wait_for("a.example")
        before = now()
        with pytest.raises(OrderError, match="cannot be found") as caught:
            await renewal.wait_for("a.example")
        assert caught.value.code == "dns"
        assert now() == before
        assert len(authority.orders) == 1
        (status,) = renewal.status()
        assert (status.state, status.failures) == ("missing", 1)
        assert status.retry_at == now() + 60
        authority.failure = None
        await trio.sleep(61)
        await trio.sleep(61)
        await renewal.wait_for("a.example")
        (status,) = renewal.status()
        assert (status.state, status.failures, status.reason) == ("valid", 0, "")


@pytest.mark.usefixtures("big_steps")
async def test_only_wanted_names_are_ordered(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = {"a.example": "", "b.example": ""}
    authority.takes = 10
    async with renewing(tmp_path, wanted=wanted) as renewal:
        with pytest.raises(OrderError, match="there is no such name here"):
            await renewal.wait_for("evil.example")
        wanted["late.example"] = ""
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(OrderError, match="there is no such name here"):
                    await renewal.wait_for("late.example")

            nursery.start_soon(wait)
            await trio.sleep(1)
            del wanted["late.example"]
            renewal.names_changed()
        assert now() - START < 10
        await trio.sleep(100)
        assert {name for _, name, _ in authority.orders} == {"a.example", "b.example"}
        del wanted["a.example"]
        await trio.sleep(85 * DAY)
        assert len(authority.orders) == 3, "whose name has gone is not renewed"
        assert set(renewal.store.all_ordered()) == {"a.example", "b.example"}
        await trio.sleep(6 * DAY)
        assert set(renewal.store.all_ordered()) == {"b.example"}, "it has run out"


async def test_a_name_that_can_have_none_costs_no_helper(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    async with renewing(tmp_path, "*.example.org") as renewal:
        with pytest.raises(OrderError, match="wildcard cannot be ordered here"):
            await renewal.wait_for("*.example.org")
    assert not authority.orders


@pytest.mark.usefixtures("big_steps")
async def test_orders_of_a_day_have_a_ceiling_also_after_a_restart(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    names = [f"n{number}.example" for number in range(20)]
    for _ in range(5):
        async with renewing(tmp_path, *names, most=10) as renewal:
            await trio.sleep(3000)
            waiting = [name for name in names if renewal.store.find(name) is None]
            assert len(waiting) == 12
            with pytest.raises(OrderError, match=r"as Acme\.OrdersPerDay allows"):
                await renewal.wait_for(waiting[0])
    assert len(authority.orders) == 8, "the last fifth is for renewals"
    assert len([one for one in caplog.records if "ceiling" in str(one.msg)]) <= 5
    async with renewing(tmp_path, *names, most=10):
        await trio.sleep(2 * DAY)
    assert len(authority.orders) == 20


@pytest.mark.usefixtures("big_steps")
async def test_an_account_that_takes_one_name_after_the_other_leaves_orders_to_the_others(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    wanted: dict[str, str] = {}
    for start in range(2):  # a restart changes nothing
        async with renewing(tmp_path, wanted=wanted, most=60) as renewal:
            for number in range(6 if start == 0 else 0):
                wanted[f"m{number}.example"] = "mallory"
                await renewal.wait_for(f"m{number}.example")
                del wanted[f"m{number}.example"]
            wanted["more.example"] = "mallory"
            words = "the account mallory has had .* new names today as one account may have .6,"
            with pytest.raises(OrderError, match=words) as caught:
                await renewal.wait_for("more.example")
            assert caught.value.code == "ceiling"
            await trio.sleep(3000)
            assert len(authority.orders) == 6 + start
            wanted[f"a{start}.example"] = "alice"
            await renewal.wait_for(f"a{start}.example")
            (record,) = caplog.records
            assert "no certificate is ordered for now" in str(record.msg)
            caplog.clear()
    async with renewing(tmp_path, wanted=wanted, most=60) as renewal:
        await trio.sleep(DAY)
        assert renewal.store.find("more.example") is not None


@pytest.mark.usefixtures("big_steps")
async def test_renewals_and_the_domain_are_not_bounded_by_account(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = {f"n{number}.example": "alice" for number in range(10)}
    async with renewing(tmp_path, wanted=wanted, most=20) as renewal:
        await trio.sleep(3000)
        assert len(authority.orders) == 5
        wanted |= {f"d{number}.example": "" for number in range(3)}
        await trio.sleep(3000)
        assert len(authority.orders) == 8
        await trio.sleep(58 * DAY)
        assert len(authority.orders) == 13
        await trio.sleep(3 * DAY)
        assert len(authority.orders) == 13 + 8 + 5, "those of the first day, and the second's"
        assert {one.state for one in renewal.status()} == {"valid"}


@pytest.mark.usefixtures("big_steps")
async def test_names_of_an_account_that_always_fail_leave_room_for_its_new_ones(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = {"n1.example": "alice", "n2.example": "alice"}
    authority.failure, authority.takes = FAILED, 0
    async with renewing(tmp_path, wanted=wanted, most=100) as renewal:
        await trio.sleep(DAY / 2)
        assert len(authority.orders) == 5, "half of them"
        authority.failure = None
        wanted["new.example"] = "alice"
        await renewal.wait_for("new.example")


@pytest.mark.usefixtures("big_steps")
async def test_names_that_always_fail_leave_room_for_new_ones(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = {f"n{number}.example": "" for number in range(5)}
    authority.failure, authority.takes = FAILED, 0
    async with renewing(tmp_path, wanted=wanted, most=20) as renewal:
        await trio.sleep(DAY / 2)
        assert len(authority.orders) == 10, "half of them"
        authority.failure = None
        wanted["new.example"] = ""
        await renewal.wait_for("new.example")


@pytest.mark.usefixtures("big_steps")
async def test_renewal_is_at_two_thirds_or_when_the_authority_wishes(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    async with renewing(tmp_path, "a.example"):
        await trio.sleep(100 * DAY)
        assert [round(moment / DAY, 2) for moment in authority.moments] == [0, 60]
        authority.wish = lambda one: one.begins + 45 * DAY
        await trio.sleep(10 * DAY)
        assert [round(moment / DAY, 1) for moment in authority.moments] == [0, 60, 105]
    assert len(authority.asked) >= 110, "at least once a day"


@pytest.mark.usefixtures("big_steps")
async def test_an_authority_that_always_says_now_gets_one_order_in_six_hours(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    authority.wish = lambda _: 0.0
    async with renewing(tmp_path, "a.example"):
        await trio.sleep(2 * DAY)
    assert 7 <= len(authority.orders) <= 9


@pytest.mark.usefixtures("big_steps")
@pytest.mark.parametrize(("life", "loud"), [(90 * DAY, 21 * DAY), (6 * DAY, 2 * DAY)])
async def test_a_failing_renewal_is_an_error_before_it_hurts(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    expected_errors: list[logging.LogRecord],
    life: float,
    loud: float,
) -> None:
    authority.life = life
    async with renewing(tmp_path, "a.example") as renewal:
        first = await renewal.wait_for("a.example")
        authority.failure = FAILED
        await trio.sleep(life - loud - 3700)
        assert not expected_errors
        await trio.sleep(4 * 3700)
        assert expected_errors
        assert "a certificate runs out" in str(expected_errors[0].msg)
        assert "the DNS record cannot be found" in str(expected_errors[0].msg)
        assert [one.state for one in renewal.status()] == ["late"]
        assert renewal.store.find("a.example") is first, "the one before goes on"
        await trio.sleep(loud)
        assert [one.state for one in renewal.status()] == ["expired"]
        authority.failure = None
        await trio.sleep(2 * 3700)
        assert [one.state for one in renewal.status()] == ["valid"]


@pytest.mark.usefixtures("big_steps", "expected_errors")
async def test_events_tell_what_came_of_certificates(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    hub = Hub("here", now=now)
    with reading(hub) as reader:
        async with renewing(tmp_path, "a.example", events=hub) as renewal:
            await renewal.wait_for("a.example")
            authority.failure = FAILED
            await trio.sleep(90 * DAY - DAY)
            authority.failure = None
            await trio.sleep(DAY)
        events = await reader.take(10_000)
    types = [event.type for event in events]
    assert types[0] == types[-1] == "certificate.renewed"
    assert types.count("certificate.renewed") == 2
    assert 15 <= types.count("certificate.expiring") <= 21, "once a day, of the last 21"
    assert types.count("certificate.failing") > 5
    failing = next(event.data for event in events if event.type == "certificate.failing")
    assert (failing["name"], failing["code"], failing["failures"]) == ("a.example", "dns", 1)
    assert failing["ends"] == events[0].data["ends"]


@pytest.mark.usefixtures("big_steps")
async def test_the_operator_s_own_is_not_ordered_and_told_when_it_runs_out(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    expected_errors: list[logging.LogRecord],
) -> None:
    key, chain = MAKER.chain("*.example.org", begins=START, ends=START + 90 * DAY)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.key").write_bytes(key)
    (tmp_path / "own" / "a.crt").write_bytes(chain)
    own = tmp_path / "own"
    async with renewing(tmp_path / "state", "a.example.org", "b.example.org", own=own) as renewal:
        await renewal.wait_for("a.example.org")
        await trio.sleep(68 * DAY)
        assert [one.state for one in renewal.status()] == ["own", "own"]
        assert not expected_errors
        await trio.sleep(5 * DAY)
        assert 4 <= len(expected_errors) <= 5, "once a day for the file"
        assert "a certificate of yours runs out" in str(expected_errors[0].msg)
    assert not authority.orders


@pytest.mark.usefixtures("big_steps")
async def test_each_failure_tries_the_next_way_and_what_worked_comes_first(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    authority.failure, authority.takes = FAILED, 0
    async with renewing(tmp_path, "a.example", methods=(HTTP01, ALPN01)):
        await trio.sleep(3000)
        assert len(authority.orders) == 3
        authority.failure = None
        await trio.sleep(1300)
        ways = [way for _, _, way in authority.orders]
        assert ways == [HTTP01, ALPN01, HTTP01, ALPN01]
        await trio.sleep(61 * DAY)
        assert authority.orders[-1][2] == ALPN01


@pytest.mark.usefixtures("big_steps")
async def test_of_two_servers_under_a_lock_one_orders(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    lock = trio.Lock()
    authority.takes = 30
    async with (
        renewing(tmp_path, "a.example", lock=lambda *_: lock) as here,
        renewing(tmp_path, "a.example", lock=lambda *_: lock) as there,
    ):
        for one in (here, there):
            assert (await one.wait_for("a.example")).certificate.names == {"a.example"}
        assert len(authority.orders) == 1
        await trio.sleep(61 * DAY)
        assert len(authority.orders) == 2


def bringing(
    stores: list[CertificateStore], brought: set[str], asked: list[str]
) -> Callable[[str, Callable[[], None]], AbstractAsyncContextManager[None]]:
    """Return a lock that brings the certificates of these names, as that of a cluster does."""

    @asynccontextmanager
    async def lock(name: str, waiting: Callable[[], None]) -> AsyncIterator[None]:
        asked.append(name)
        if name in brought:
            await stores[0].put(name, *MAKER.chain(name, begins=now(), ends=now() + 90 * DAY))
        yield

    return lock


async def test_what_another_server_has_got_costs_no_order(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    names = {f"n{number}.example": "" for number in range(30)}
    stores: list[CertificateStore] = []
    wanted: dict[str, str] = {}
    lock = bringing(stores, set(names), [])
    async with renewing(tmp_path, wanted=wanted, lock=lock, most=10) as renewal:
        stores.append(renewal.store)
        wanted.update(names)
        renewal.names_changed()
        for name in names:
            await renewal.wait_for(name)
        assert not authority.orders
        wanted["new.example"] = ""
        await renewal.wait_for("new.example")
        assert len(authority.orders) == 1


@pytest.mark.usefixtures("big_steps")
async def test_what_another_server_has_got_is_taken_whatever_the_ceiling_leaves(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    theirs = {f"n{number}.example": "" for number in range(10)}
    wanted, brought = {"a.example": "", "b.example": ""}, set(theirs)
    stores: list[CertificateStore] = []
    asked: list[str] = []
    lock = bringing(stores, brought, asked)
    async with renewing(tmp_path, wanted=wanted, lock=lock, most=1) as renewal:
        stores.append(renewal.store)
        await trio.sleep(3000)
        assert len(authority.orders) == 1
        wanted.update(theirs)
        for name in theirs:
            await renewal.wait_for(name)
        assert len(authority.orders) == 1
        (waiting,) = (name for name in wanted if renewal.store.find(name) is None)
        with pytest.raises(OrderError, match=r"as Acme\.OrdersPerDay allows"):
            await renewal.wait_for(waiting)
        await trio.sleep(6 * 3600)
        assert 6 <= asked.count(waiting) <= 8, "once an hour"
        brought.add(waiting)
        await trio.sleep(3600 + 1200)
        assert renewal.store.find(waiting) is not None
        assert len(authority.orders) == 1


async def test_two_that_begin_at_once_do_not_both_take_the_last_order(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = {f"n{number}.example": "" for number in range(6)}
    async with renewing(tmp_path, wanted=wanted, most=1) as renewal:
        await trio.sleep(3000)
        assert len(authority.orders) == 1
        (name, *_) = (name for name in wanted if renewal.store.find(name) is None)
        with pytest.raises(OrderError, match=r"as Acme\.OrdersPerDay allows"):
            await renewal.wait_for(name)
        assert {one.failures for one in renewal.status()} == {0}


async def test_who_waits_for_another_server_keeps_nobody_waiting(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """A node has died while it ordered for two names: its locks run out after five minutes."""
    wanted = dict.fromkeys(("dead1.example", "dead2.example"), "")

    @asynccontextmanager
    async def lock(name: str, waiting: Callable[[], None]) -> AsyncIterator[None]:
        while name.startswith("dead") and now() - START < 300:
            waiting()
            await trio.sleep(1)
        yield

    async with renewing(tmp_path, wanted=wanted, lock=lock) as renewal:
        wanted |= {f"n{number}.example": "" for number in range(6)}
        renewal.names_changed()
        for name in list(wanted):
            await renewal.wait_for(name)
        await trio.testing.wait_all_tasks_blocked()
        assert not renewal._waiting
    moments = {name: moment for moment, name, _ in authority.orders}
    assert {moments.pop(name) for name in ("dead1.example", "dead2.example")} == {300}
    assert sorted(moments.values()) == [0, 0, 1, 1, 2, 2]


async def test_no_more_than_two_wait_for_other_servers_beside_those_at_work(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    waited: set[str] = set()

    @asynccontextmanager
    async def lock(name: str, waiting: Callable[[], None]) -> AsyncIterator[None]:
        waited.add(name)
        waiting()
        await trio.sleep(10 * DAY)
        yield

    async with renewing(tmp_path, *(f"n{number}.example" for number in range(9)), lock=lock):
        await trio.sleep(3000)
        assert len(waited) == 4


async def test_a_lock_that_cannot_be_had_is_a_failure_like_others(
    tmp_path: Path, authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    @asynccontextmanager
    async def away(name: str, waiting: Callable[[], None]) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if name:
            raise RegistryAwayError("Redis is away")
        yield

    async with renewing(tmp_path, "a.example", lock=away) as renewal:
        with pytest.raises(OrderError, match="Redis is away"):
            await renewal.wait_for("a.example")
    assert not authority.orders


async def test_a_bug_is_told_and_costs_that_name_only(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    expected_errors: list[logging.LogRecord],
) -> None:
    authority.failure = ValueError("a bug")
    async with renewing(tmp_path, "a.example") as renewal:
        with pytest.raises(OrderError, match="a bug"):
            await renewal.wait_for("a.example")
        (record,) = expected_errors
        assert record.exc_info is not None
        authority.failure = None
        await trio.sleep(61)
        await trio.sleep(61)
        await renewal.wait_for("a.example")


@pytest.mark.usefixtures("big_steps")
async def test_a_clock_that_is_set_does_no_harm(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shift = [0.0]
    authority.failure = FAILED
    async with renewing(tmp_path, "a.example") as renewal:
        monkeypatch.setattr(renewal, "now", lambda: now() + shift[0])
        await trio.sleep(1000)
        for years in (-20, 0, 20, -20, 0):
            shift[0] = years * 365 * DAY
            await trio.sleep(DAY)
        assert 5 * 10 < len(authority.orders) < 5 * 30, "once an hour, and each day at most so many"
        authority.failure = None
        await trio.sleep(2 * 3600)
        assert renewal.store.find("a.example") is not None


@pytest.mark.usefixtures("big_steps")
async def test_a_disk_that_takes_nothing_costs_no_order(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    async with renewing(tmp_path, "a.example") as renewal:
        await renewal.wait_for("a.example")
        (tmp_path / "schedule.json").unlink()
        (tmp_path / "schedule.json").mkdir()
        await trio.sleep(62 * DAY)
        assert len(authority.orders) == 1
        (status,) = renewal.status()
        assert "schedule.json: cannot write" in status.reason


async def test_a_damaged_schedule_is_begun_anew(
    tmp_path: Path,
    authority: Authority,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "schedule.json").write_bytes(b'{"orders": 7}')
    async with renewing(tmp_path, "a.example") as renewal:
        await renewal.wait_for("a.example")
    assert "it is damaged" in str(caplog.records[0].msg)


# --- with a real authority ---


@pytest.mark.limit(60)
async def test_ordered_renewed_and_kept_at_a_real_authority(
    tmp_path: Path, pebble: Pebble, expected_errors: list[logging.LogRecord]
) -> None:
    store, challenges = CertificateStore(tmp_path), Challenges()
    await store.load()
    refuse, shift = [False], [0.0]

    async def change(request: Request) -> Response:
        response = await request.forward()
        if refuse[0] and request.path == "/order-plz" and response.status < 400:
            return problem("rateLimited", "too many", 429, **{"retry-after": "90000"})
        return response

    async with (
        listening(pebble, challenges),
        front(pebble, change) as config,
        trio.open_nursery() as nursery,
    ):
        renewal = Renewal(
            config=config,
            store=store,
            wanted={"shop.example.org": ""},
            challenges=challenges,
            now=lambda: time.time() + shift[0],
        )
        nursery.start_soon(renewal.run)
        first = await renewal.wait_for("shop.example.org")
        (status,) = renewal.status()
        assert status.renew_at is not None
        shift[0] = status.renew_at - time.time() + 60
        renewal.names_changed()
        while (second := store.find("shop.example.org")) is first:
            await store.changed.wait()
        assert second is not None
        assert second.certificate.pem != first.certificate.pem
        refuse[0] = True
        shift[0] = second.certificate.ends - time.time() - DAY
        renewal.names_changed()
        while not expected_errors or renewal.status()[0].state == "ordering":  # noqa: ASYNC110 - the log tells nobody
            await trio.sleep(0.05)
        (record,) = expected_errors
        assert "it has had too many requests of us: until 20" in str(record.msg)
        assert store.find("shop.example.org") is second
        (status,) = renewal.status()
        assert (status.state, status.failures) == ("late", 1)
        nursery.cancel_scope.cancel()
