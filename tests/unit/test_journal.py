"""The journal of traffic: what a crash leaves behind is all there, and has the number under which it was tried."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from trionat.errors import StartupError
from trionat.store.journal import FILE_NAME, Journal, load_journal, save_journal

if TYPE_CHECKING:
    from pathlib import Path


def some_journal() -> Journal:
    journal = Journal().counted("2026-11", {"alice": 5, "été": 2**62}).attempt()
    return journal.counted("2026-11", {"alice": 1}).counted("2026-12", {"bob": 2})


def test_a_journal_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    for journal in (Journal(), some_journal(), some_journal().settled(), some_journal().renamed()):
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


def test_nothing_counted_changes_nothing() -> None:
    journal = some_journal()
    assert journal.counted("2026-11", {}) is journal


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
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
