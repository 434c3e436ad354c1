"""The journal of traffic: what a crash leaves behind is all there, and has the number under which it was tried."""

from __future__ import annotations

import json
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionat.errors import StartupError
from trionat.store.journal import FILE_NAME, Journal, load_journal, save_journal

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.store.base import Flush


def some_journal() -> Journal:
    journal = Journal().counted("2026-11", {"alice": 5, "été": 2**62}).attempt()
    return journal.counted("2026-11", {"alice": 1}).counted("2026-12", {"bob": 2})


def test_a_journal_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    for journal in (
        Journal(),
        some_journal(),
        some_journal().settled(),
        some_journal().renamed(),
        some_journal().refused(),
        some_journal().refused().refused(),
    ):
        save_journal(tmp_path, journal)
        assert load_journal(tmp_path) == journal
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_where_there_is_none_a_server_gets_a_name_of_its_own(tmp_path: Path) -> None:
    one, other = load_journal(tmp_path), load_journal(tmp_path)
    assert attrs.evolve(one, server=other.server) == other == Journal(server=other.server)
    assert one.server != other.server
    assert len(one.server) == 32
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_keeps_number_and_amounts_until_it_is_settled() -> None:
    journal = Journal().counted("2026-11", {"alice": 1, "bob": 2}).attempt()
    first = journal.attempted
    assert first is not None
    assert (first.server, first.number, first.month) == (journal.server, 1, "2026-11")
    assert first.amounts == {"alice": 1, "bob": 2}
    journal = journal.counted("2026-11", {"alice": 10}).attempt()
    assert journal.attempted is first
    assert journal.unsettled() == {"alice": 11, "bob": 2}
    journal = journal.settled().attempt()
    second = journal.attempted
    assert second is not None
    assert (second.number, second.amounts) == (2, {"alice": 10})
    journal = journal.settled()
    assert journal.attempt() is journal
    assert (journal.number, journal.unsettled()) == (2, {})


def test_each_month_is_a_flush_and_the_oldest_goes_first() -> None:
    journal = Journal().counted("2027-01", {"alice": 1}).counted("2026-12", {"alice": 2})
    assert journal.unsettled("2027-01") == {"alice": 1}
    journal = journal.attempt()
    assert journal.attempted is not None
    assert (journal.attempted.month, journal.waiting) == ("2026-12", {"2027-01": {"alice": 1}})
    assert journal.unsettled("2026-12") == {"alice": 2}
    assert journal.unsettled("2027-01") == {"alice": 1}
    assert journal.unsettled("2027-02") == {}


def test_under_a_new_name_nothing_is_left_out() -> None:
    journal = some_journal()
    new = journal.renamed()
    assert new.server != journal.server
    assert new.unsettled() == journal.unsettled()
    assert new.attempted is not None
    assert (new.attempted.server, new.attempted.number, new.number) == (new.server, 1, 1)
    assert Journal(number=7).renamed().number == 0


def test_a_flush_that_is_refused_is_divided_until_its_bad_part_is_found() -> None:
    amounts = {"a": 1, "b": 2, "bad": 3, "d": 4, "e": 5}
    journal = Journal().counted("2026-11", amounts).attempt()
    tried: list[list[str]] = []
    stored: Counter[str] = Counter()
    while (flush := journal.attempted) is not None:
        assert flush.number == journal.number == len(tried) + 1  # each attempt has its own
        assert flush.month == "2026-11"
        assert Counter(journal.unsettled()) + stored == Counter(amounts)
        tried.append(list(flush.amounts))
        if "bad" in flush.amounts:
            journal = journal.refused().attempt()
        else:
            stored.update(flush.amounts)
            journal = journal.settled().attempt()
    assert tried == [
        ["a", "b", "bad", "d", "e"],
        ["a", "b"],
        ["bad", "d", "e"],
        ["bad"],
        ["d", "e"],
    ]
    assert journal.set_aside == {"2026-11": {"bad": 3}}
    assert journal.waiting == {}


def test_who_was_refused_troubles_no_flush_of_others_until_it_is_tried_again() -> None:
    journal = Journal().counted("2026-11", {"bad": 3}).attempt().refused()
    journal = journal.counted("2026-12", {"bad": 4, "alice": 5}).counted("2026-11", {"bad": 1})
    assert journal.set_aside == {"2026-11": {"bad": 4}, "2026-12": {"bad": 4}}
    assert journal.waiting == {"2026-12": {"alice": 5}}
    assert journal.refused_users == {"bad"}
    assert journal.unsettled() == {"bad": 8, "alice": 5}
    assert journal.unsettled("2026-11") == {"bad": 4}
    assert journal.renamed().unsettled() == journal.unsettled()
    again = journal.retried()
    assert again.waiting == {"2026-11": {"bad": 4}, "2026-12": {"alice": 5, "bad": 4}}
    assert again.set_aside == {}
    assert again.retried() is again


def test_a_journal_with_nothing_set_aside_is_one_that_older_programs_read(tmp_path: Path) -> None:
    save_journal(tmp_path, some_journal())
    content = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert content["version"] == 1
    assert set(content) == {"version", "server", "number", "attempted", "waiting"}
    save_journal(tmp_path, some_journal().settled().attempt().refused())
    content = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert content["version"] == 2  # or they would throw it away
    assert content["set_aside"] == {"2026-11": {"alice": 1}}


@attrs.define(eq=False)
class Model:
    """A store, a disk and a server that works as `server/accounts/traffic.py` does; `bad` is whom the store refuses."""

    bad: set[str] = attrs.field(factory=set)
    last: Counter[str] = attrs.field(factory=Counter)
    """The number of each server's last flush."""
    stored: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    disk: Journal = attrs.field(factory=Journal)
    journal: Journal = attrs.field(factory=Journal)

    def add(self, flush: Flush) -> bool | None:
        """Add a flush; None where it is refused."""
        if self.last[flush.server] >= flush.number:
            return False
        if self.bad & flush.amounts.keys():
            return None
        self.last[flush.server] = flush.number
        self.stored.update({(flush.month, user): n for user, n in flush.amounts.items()})
        return True

    def step(self, fate: Fate) -> bool:
        """Bring one flush to the store; False where there is none, or its fate is not known."""
        self.journal = self.journal.attempt()
        self.disk = self.journal
        flush = self.journal.attempted
        if flush is None:
            return False
        if fate == "down":
            return False
        added = self.add(flush)
        if fate == "answer lost":
            return False
        self.journal = self.journal.refused() if added is None else self.journal.settled()
        return True


Fate: TypeAlias = Literal["answered", "answer lost", "down"]
USERS = ["a", "b", "c", "d", "e"]

actions = st.one_of(
    st.tuples(
        st.just("count"),
        st.sampled_from(["2026-11", "2026-12"]),
        st.dictionaries(st.sampled_from(USERS), st.integers(1, 100)),
    ),
    st.tuples(
        st.just("flush"),
        st.lists(st.sampled_from(["answered", "answered", "answer lost", "down"]), max_size=6),
    ),
    st.tuples(st.just("kill")),
    st.tuples(st.just("spoil"), st.sets(st.sampled_from(USERS))),
    st.tuples(st.just("retry")),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(actions, max_size=30))
def test_every_byte_is_once_in_the_store_or_set_aside(history: list[Any]) -> None:
    """Whatever the store refuses, whatever answer is lost, and whenever the server is killed."""
    model = Model()
    counted: Counter[tuple[str, str]] = Counter()
    for action in history:
        match action:
            case ("count", month, amounts):
                model.journal = model.journal.counted(month, amounts)
                counted.update({(month, user): n for user, n in amounts.items()})
                model.disk = model.journal
            case ("flush", fates):
                for fate in fates:
                    model.step(fate)
            case ("spoil", bad):
                model.bad = bad
            case ("kill",):  # of the last answer, nothing was written down
                model.journal = model.disk
            case ("retry",):
                model.journal = model.journal.retried()
            case _:
                raise AssertionError(action)
    for _ in range(100):  # it comes to an end
        if not model.step("answered"):
            break
    else:
        pytest.fail("it goes on for ever")
    aside = Counter(
        {
            (month, user): n
            for month, amounts in model.journal.set_aside.items()
            for user, n in amounts.items()
        }
    )
    assert model.stored + aside == counted
    assert model.journal.waiting == {}

    model.bad = set()  # the table is mended
    model.journal = model.journal.retried()
    while model.step("answered"):
        pass
    assert model.stored == counted
    assert model.journal.unsettled() == {}


def test_nothing_counted_changes_nothing() -> None:
    journal = some_journal()
    assert journal.counted("2026-11", {}) is journal


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},  # without what is set aside
        {"version": 3},
        {"version": 2, "set_aside": {"2026-11": {"alice": -1}}},
        {"version": 2, "set_aside": {"2026-13": {"alice": 1}}},
        {"version": 2, "set_aside": None},
        {"version": None},
        {"server": "A" * 32},
        {"server": "a" * 31},
        {"server": 5},
        {"number": 0},
        {"number": -1},
        {"number": 1.0},
        {"number": True},
        {"attempted": {"month": "2026-11"}},
        {"attempted": {"month": "2026-13", "amounts": {}}},
        {"attempted": {"month": 202611, "amounts": {}}},
        {"attempted": {"month": "2026-11", "amounts": {"alice": -1}}},
        {"attempted": {"month": "2026-11", "amounts": {"alice": "1"}}},
        {"attempted": "now"},
        {"waiting": None},
        {"waiting": []},
        {"waiting": {"2026-11": 5}},
        {"waiting": {"2026-11 ": {"alice": 1}}},
        {"waiting": {"2026-11": {"alice": 0.5}}},
    ],
)  # fmt: skip
def test_a_damaged_journal_is_an_error_and_stays(tmp_path: Path, change: dict[str, Any]) -> None:
    save_journal(tmp_path, some_journal())
    file = tmp_path / FILE_NAME
    content = json.dumps({**json.loads(file.read_bytes()), **change})
    check_damaged(file, content)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "{}", "[" * 100_000, "\xff"])
def test_what_is_no_journal_is_an_error_and_stays(tmp_path: Path, content: str) -> None:
    check_damaged(tmp_path / FILE_NAME, content)


def check_damaged(file: Path, content: str) -> None:
    file.write_text(content, encoding="latin-1")
    with pytest.raises(StartupError) as caught:
        load_journal(file.parent)
    assert str(caught.value).startswith(f"{file}: the traffic that waits for the store cannot be")
    assert "\n" not in str(caught.value)
    assert "restore the file, or move it away" in str(caught.value)
    assert file.read_text(encoding="latin-1") == content


def test_a_journal_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot write"):
        save_journal(tmp_path / "missing", some_journal())
    folder = tmp_path / FILE_NAME
    folder.mkdir()
    (folder / "file").touch()
    with pytest.raises(StartupError, match="cannot write"):
        save_journal(tmp_path, some_journal())
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    with pytest.raises(StartupError, match="cannot read"):
        load_journal(tmp_path)
