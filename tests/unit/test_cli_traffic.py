from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.unit.commands import Outcome, Trionat
from trionat.store.base import MOST_DAYS_AT_ONCE, Flush
from trionat.store.journal import Journal, save_journal

if TYPE_CHECKING:
    from collections.abc import Mapping

GB = 10**9


@pytest.fixture
def traffic(trionat: Trionat) -> Trionat:
    """`trionat traffic`, with two accounts, one of which has a quota."""
    trionat("add", "alice", stdin="x\n")
    trionat("add", "bob", stdin="x\n")
    trionat("limit", "bob", "--quota", "1.5Gi")
    return attrs.evolve(trionat, command="traffic")


def add(
    traffic: Trionat, number: int, month: str, amounts: Mapping[str, int], day: str | None = None
) -> None:
    flush = Flush(server="0" * 32, number=number, month=month, amounts=amounts)
    assert traffic.ask(lambda store: store.add_traffic(flush, day))


def test_the_days_of_a_month(traffic: Trionat) -> None:
    for number, (day, amounts) in enumerate(
        [
            ("2026-11-09", {"alice": 10 * GB, "bob": 5}),
            ("2026-11-30", {"alice": 1500}),
            ("2026-12-01", {"bob": 7}),
        ],
        1,
    ):
        add(traffic, number, day[:7], amounts, day)
    assert traffic("--days", "--month", "2026-11").out.splitlines() == [
        "2026-11-09  alice  10.0 GB",
        "2026-11-09  bob    5 B",
        "2026-11-30  alice  1.5 kB",
    ]
    assert traffic("bob", "--days", "--month", "2026-12", "--json").out == (
        '{"day": "2026-12-01", "user": "bob", "bytes": 7}\n'
    )
    none = traffic("--days", "--month", "2020-01")
    assert (none.out, none.err) == ("", "There is no traffic of a day in 2020-01.\n")


def test_there_may_be_more_days_than_the_store_tells_at_once(traffic: Trionat) -> None:
    many = {f"user {number}": number for number in range(MOST_DAYS_AT_ONCE + 1)}
    flush = Flush(server="0" * 32, number=1, month="2026-11", amounts=many)
    assert traffic.ask(lambda store: store.add_traffic(flush, "2026-11-09"))
    lines = traffic("--days", "--month", "2026-11", "--json").out.splitlines()
    assert {json.loads(line)["user"]: json.loads(line)["bytes"] for line in lines} == many
    assert len(lines) == len(many)


def test_the_most_come_first_with_this_month_beside_the_quota(traffic: Trionat) -> None:
    this_month = f"{datetime.now(UTC):%Y-%m}"
    add(traffic, 1, "2020-01", {"alice": 10 * GB, "anonymity": 5})
    add(traffic, 2, this_month, {"bob": 12 * GB + 345_000_000, "alice": 1500})
    assert traffic().out.splitlines() == [
        f"user        in all  {this_month}",
        "bob        12.3 GB  12.3 GB of 1.6 GB",
        "alice      10.0 GB  1.5 kB",
        "anonymity      5 B  0 B",
    ]
    assert traffic("--month", "2020-01").out.splitlines() == [
        "user        in all  2020-01",
        "bob        12.3 GB  0 B of 1.6 GB",
        "alice      10.0 GB  10.0 GB",
        "anonymity      5 B  5 B",
    ]
    assert len(traffic("alice").out.splitlines()) == 2
    assert json.loads(traffic("--json").out.splitlines()[0]) == {
        "user": "bob",
        "bytes": 12_345_000_000,
        "month": this_month,
        "month_bytes": 12_345_000_000,
        "monthly_quota": 1_610_612_736,
        "waiting": 0,
    }


def test_what_waits_for_the_store_is_told_apart(traffic: Trionat) -> None:
    """Whether it was tried already or not: nobody knows what became of it."""
    add(traffic, 1, "2020-01", {"alice": 7})
    journal = Journal().counted("2020-01", {"alice": 1000, "eve": 500}).attempt()
    save_journal(traffic.folder, journal.counted("2020-02", {"alice": 10}))
    assert traffic("--month", "2020-01").out.splitlines() == [
        "user   in all  2020-01",
        "alice     7 B  7 B",
        "eve       0 B  0 B",
        f"1.5 kB more wait in {traffic.folder}/traffic.json until a server adds them.",
    ]
    assert traffic("alice").out.splitlines()[-1].startswith("1.0 kB more wait")
    listed = {(row := json.loads(line))["user"]: row for line in traffic("--json").out.splitlines()}
    assert (listed["alice"]["waiting"], listed["eve"]["waiting"]) == (1010, 500)
    assert (listed["alice"]["bytes"], listed["eve"]["bytes"]) == (7, 0)


def test_what_the_store_refuses_is_told(traffic: Trionat) -> None:
    journal = Journal().counted("2020-01", {"eve\x1b": 500}).attempt().refused()
    save_journal(traffic.folder, journal.counted("2020-01", {"alice": 1}))
    waits = f"{traffic.folder}/traffic.json until a server adds them."
    refused = "The store refuses the traffic of 'eve\\x1b': the server's log says why."
    assert traffic().out.splitlines()[-2:] == [f"501 B more wait in {waits}", refused]
    assert traffic("alice").out.splitlines()[-1] == f"1 B more wait in {waits}"
    assert traffic("eve\x1b").out.splitlines()[-1] == refused


def test_nothing_yet(traffic: Trionat) -> None:
    assert traffic() == Outcome(0, "", "There is no traffic yet.\n")
    assert traffic("--json") == Outcome(0, "", "")
    assert traffic("bob", "--month", "2026-11").out.splitlines()[1] == "bob      0 B  0 B of 1.6 GB"


def test_what_is_wrong_is_told(traffic: Trionat) -> None:
    assert traffic.fails(2, "carol") == "there is no user 'carol', and no traffic of one"
    assert traffic.fails(2, "--month", "2026-13").startswith(
        "--month: '2026-13' is not a valid month: "
    )
    (traffic.folder / "traffic.json").write_text("{")
    assert "traffic.json: the traffic that waits for the store cannot be read" in traffic.fails(3)
    elsewhere = attrs.evolve(traffic, folder=traffic.folder / "nope")
    assert "there are no accounts here: is it the right folder?" in elsewhere.fails(3)
