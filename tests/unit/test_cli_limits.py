from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import attrs
import pytest

from trionat.server.state_folder import database_file
from trionat.store.base import Limits

if TYPE_CHECKING:
    from tests.unit.commands import Trionat

ALL = [
    *("--visit-ports", "60020,60000-60009,60003"),
    *("--names", "Shop-*.tunnel.example.com, blog,blog"),
    *("--sessions", "2", "--visitors", "50"),
    *("--bandwidth", "10M", "--quota", "1.5Gi"),
    *("--allow-visitors", "192.0.2.0/24, 2001:db8::/32", "--deny-visitors", "192.0.2.7"),
]
SHOWN = """\
alice:
  visit ports     60000-60009, 60020
  names           shop-*.tunnel.example.com, blog
  sessions        2
  visitors        50
  bandwidth       10M bytes a second
  quota           1536Mi bytes a month
  allow visitors  192.0.2.0/24, 2001:db8::/32
  deny visitors   192.0.2.7
"""


@pytest.fixture(autouse=True)
def _alice(trionat: Trionat) -> None:
    trionat("add", "alice", stdin="x\n")


def limits(trionat: Trionat) -> Limits:
    user = trionat.user("alice")
    assert user is not None
    return user.limits


def test_limits_are_set_shown_and_listed(trionat: Trionat) -> None:
    trionat("add", "bob", stdin="x\n")
    outcome = trionat("limit", "alice", *ALL)
    assert (outcome.code, outcome.out, outcome.err) == (0, SHOWN, "")
    assert limits(trionat) == Limits(
        visit_ports=(*range(60000, 60010), 60020),
        names=("shop-*.tunnel.example.com", "blog"),
        sessions=2,
        visitors=50,
        bandwidth=10_000_000,
        monthly_quota=1_610_612_736,
        allow_visitors=("192.0.2.0/24", "2001:db8::/32"),
        deny_visitors=("192.0.2.7",),
    )
    assert trionat("limit", "alice").out == SHOWN
    alice, its_limits, bob = trionat("list").out.splitlines()
    assert alice.startswith("alice  added ")
    assert its_limits == (
        "       limits: visit ports 60000-60009, 60020,"
        " names shop-*.tunnel.example.com, blog, sessions 2, visitors 50,"
        " bandwidth 10M bytes a second, quota 1536Mi bytes a month,"
        " allow visitors 192.0.2.0/24, 2001:db8::/32, deny visitors 192.0.2.7"
    )
    assert bob.startswith("bob    added ")
    listed = [json.loads(line)["limits"] for line in trionat("list", "--json").out.splitlines()]
    assert listed == [
        {
            "visit_ports": [*range(60000, 60010), 60020],
            "sessions": 2,
            "visitors": 50,
            "bandwidth": 10_000_000,
            "monthly_quota": 1_610_612_736,
            "allow_visitors": ["192.0.2.0/24", "2001:db8::/32"],
            "deny_visitors": ["192.0.2.7"],
            "names": ["shop-*.tunnel.example.com", "blog"],
        },
        dict.fromkeys(attrs.asdict(Limits())),
    ]


def test_what_is_not_said_stays_and_none_lifts(trionat: Trionat) -> None:
    trionat("limit", "alice", *ALL)
    before = limits(trionat)
    trionat("limit", "alice", "--sessions", "3")
    assert limits(trionat) == attrs.evolve(before, sessions=3)
    nothing = [word if word.startswith("--") else "none" for word in ALL]
    outcome = trionat("limit", "alice", *nothing)
    assert limits(trionat) == Limits()
    assert outcome.out.splitlines()[1:] == [
        "  visit ports     all",
        "  names           any right below the server's domain",
        "  sessions        no limit",
        "  visitors        no limit",
        "  bandwidth       no limit",
        "  quota           no limit",
        "  allow visitors  everybody",
        "  deny visitors   nobody",
    ]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["bob", "--sessions", "1"], "there is no user 'bob'"),
        (["bob"], "there is no user 'bob'"),
        (["alice", "--visit-ports", "0"], "--visit-ports: '0' is not 1 to 1024 ports from 1 to"),
        (["alice", "--visit-ports", "1-1025"], "--visit-ports: '1-1025' is not 1 to 1024 ports"),
        (["alice", "--visit-ports", "x"], "--visit-ports: 'x' is not a valid port: write a number"),
        (["alice", "--visit-ports", ""], "--visit-ports: '' is not a valid port: write a number"),
        (
            ["alice", "--names", "203.0.113.7"],
            "--names: '203.0.113.7' is an IP address: write a name",
        ),
        (["alice", "--names", "a,,b"], "--names: '' is not a valid pattern of names: there is"),
        (["alice", "--names", "*.*"], "--names: '*.*' is not a valid pattern of names: it ends"),
        (
            ["alice", "--names", ",".join(f"n{number}" for number in range(65))],
            "--names: 65 patterns of names are too many: give at most 64",
        ),
        (["alice", "--sessions", "0"], "--sessions: '0' is not a whole number from 1 to 1000000"),
        (["alice", "--visitors", "x"], "--visitors: 'x' is not a whole number from 1 to 1000000"),
        (
            ["alice", "--bandwidth", "fast"],
            "--bandwidth: 'fast' is not a valid amount: write a number",
        ),
        (
            ["alice", "--allow-visitors", "x"],
            "--allow-visitors: 'x' is not a valid network: write it like",
        ),
        (
            ["alice", "--deny-visitors", "192.0.2.1/24"],
            "--deny-visitors: '192.0.2.1/24' is not a valid network: did you mean 192.0.2.0/24?",
        ),
        (["alice", "--quota", "0"], "--quota: '0' is not a valid amount: write a number above 0"),
    ],
)
def test_wrong_input_changes_nothing(trionat: Trionat, args: list[str], reason: str) -> None:
    trionat("limit", "alice", "--sessions", "7", "--quota", "1G")
    before = trionat.user("alice")
    assert trionat.fails(2, "limit", *args).startswith(reason)
    assert trionat.fails(2, "limit", "alice", "--visitors", "5", "--quota", "x")
    assert trionat.user("alice") == before


def test_damaged_limits_can_be_replaced_as_a_whole(trionat: Trionat) -> None:
    """As people can make them who write into the database."""
    with sqlite3.connect(database_file(trionat.folder)) as connection:
        connection.execute("update users set limits = 'none'")
    connection.close()
    trionat("add", "bob", stdin="x\n")
    damage = "the limits of 'alice' in the store are damaged: set all of them anew with trionat user limit"
    for args in (["limit", "alice"], ["limit", "alice", "--sessions", "2"]):
        assert trionat.fails(2, *args) == damage
    alice, its_damage, bob = trionat("list").out.splitlines()
    assert (alice.split()[0], bob.split()[0]) == ("alice", "bob")
    assert its_damage == f"       cannot log in: {damage}"
    listed = [json.loads(line) for line in trionat("list", "--json").out.splitlines()]
    assert [user["damage"] for user in listed] == [damage, None]
    assert trionat("ticket", "alice", "--public-addr", "h:1").code == 0
    assert trionat("limit", "alice", *ALL).out == SHOWN
    assert trionat("limit", "alice").out == SHOWN
    assert trionat("list").out.count("cannot log in") == 0
    assert trionat.fails(2, "limit", "carol", *ALL) == "there is no user 'carol'"
