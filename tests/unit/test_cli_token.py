"""`trionat token`, on the store of a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs
import pytest

from trionat.store.tokens import TokenScope, digest_token

if TYPE_CHECKING:
    from tests.unit.commands import Trionat
    from trionat.store.tokens import Token


@pytest.fixture
def token(trionat: Trionat) -> Trionat:
    """`trionat token`, with an administrator and another account."""
    trionat("add", "alice", "--admin", stdin="x\n")
    trionat("add", "bob", stdin="x\n")
    return attrs.evolve(trionat, command="token")


def user(token: Trionat, *args: str, stdin: str = "") -> None:
    assert attrs.evolve(token, command="user")(*args, stdin=stdin).code == 0


def find(token: Trionat, text: str) -> Token | None:
    digest = digest_token(text)
    return token.ask(lambda store: store.find_token(digest))


def test_a_token_is_printed_alone_and_kept_as_its_hash(token: Trionat) -> None:
    outcome = token("add", "grafana")
    assert outcome.code == 0
    assert outcome.err == "Whoever has it can see all of the server. It is shown only now.\n"
    text = outcome.out.split()[-1]
    assert outcome.out == f"{text}\n"
    found = find(token, text)
    assert found is not None
    assert (found.name, found.user, found.scope) == ("grafana", "alice", TokenScope.READ)
    assert (found.expires_at, found.last_used) == (None, None)
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert token("add", "grafana-2").out != outcome.out
    for file in token.folder.iterdir():
        assert text.encode() not in file.read_bytes()


def test_whose_it_is_what_for_and_until_when_can_be_said(token: Trionat) -> None:
    outcome = token(*("add", "ci", "--user", "bob", "--scope", "manage", "--expires", "2099-01-31"))
    assert outcome.err == (
        "Whoever has it can see and change what bob may, until 2099-02-01 00:00 UTC. It is shown only now.\n"
    )
    found = find(token, outcome.out.strip())
    assert found is not None
    assert (found.user, found.scope) == ("bob", TokenScope.MANAGE)
    assert found.expires_at == datetime(2099, 2, 1, tzinfo=UTC)
    assert "read /metrics, and nothing else" in token("add", "m", "--scope", "metrics").err
    user(token, "disable", "bob")
    assert token("add", "c", "--user", "bob").err.endswith(
        "It is of no use now: bob may not log in.\n"
    )


def test_where_it_is_not_clear_whose_it_is_one_has_to_say(token: Trionat) -> None:
    user(token, "admin", "bob", "on")
    assert token.fails(2, "add", "x").startswith("--user: there is not exactly one administrator")
    user(token, "admin", "bob", "off")
    user(token, "admin", "alice", "off")
    assert token.fails(2, "add", "x").startswith("--user: there is not exactly one administrator")
    user(token, "remove", "alice")
    assert token("add", "x").code == 0
    user(token, "remove", "bob")
    assert token.fails(2, "add", "x").startswith("--user: there are no accounts: ")


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["add", "a b"], "NAME: a token name is 1 to 64 characters"),
        (["add", ""], "NAME: a token name is 1 to 64 characters"),
        (["add", "x", "--scope", "all"], "--scope: 'all' is not a valid scope: write one of read, manage, metrics"),
        (["add", "x", "--scope", "metrics", "--user", "bob"], "--scope: /metrics tells of all users, so it is for administrators, and 'bob' is none"),
        (["add", "x", "--expires", "soon"], "--expires: 'soon' is not a valid time"),
        (["add", "x", "--expires", "2020-01-01"], "--expires: 2020-01-01 is over already"),
        (["add", "x", "--user", "carol"], "there is no user 'carol'"),
        (["add", "there"], "'alice' has a token 'there' already"),
        (["list", "--user", "carol"], "there is no user 'carol'"),
        (["revoke", "x"], "there is no token 'x'"),
        (["revoke", "there", "--user", "bob"], "there is no token 'there' of 'bob'"),
    ],
)  # fmt: skip
def test_wrong_input_changes_nothing(token: Trionat, args: list[str], reason: str) -> None:
    token("add", "there")
    before = token.ask(lambda store: store.list_tokens())
    assert token.fails(2, *args).startswith(reason)
    assert token.ask(lambda store: store.list_tokens()) == before


def test_the_list_shows_all_but_the_secret(token: Trionat) -> None:
    assert token("list").err == "There are no tokens: trionat token add NAME makes one.\n"
    token("add", "grafana")
    text = token("add", "ci", "--user", "bob", "--scope", "manage", "--expires", "2099-01-31").out
    ci = find(token, text.strip())
    assert ci is not None
    used = datetime(2026, 11, 29, 12, 34, tzinfo=UTC)
    token.ask(lambda store: store.touch_token(ci.token_id, used))
    outcome = token("list")
    assert outcome.out.splitlines() == [
        "grafana  alice  read    expires never  never used",
        "ci       bob    manage  expires 2099-02-01 00:00 UTC  used 2026-11-29 12:34 UTC",
    ]
    assert len(token("list", "--user", "bob").out.splitlines()) == 1
    listed = json.loads(token("list", "--user", "bob", "--json").out)
    assert listed == {
        "id": ci.token_id,
        "name": "ci",
        "user": "bob",
        "scope": "manage",
        "created_at": ci.created_at.isoformat(),
        "expires_at": "2099-02-01T00:00:00+00:00",
        "expired": False,
        "last_used": "2026-11-29T12:34:00+00:00",
    }


def test_a_token_is_revoked_by_its_name_or_id(token: Trionat) -> None:
    mine, other = token("add", "ci").out.strip(), token("add", "ci", "--user", "bob").out.strip()
    assert (
        token.fails(2, "revoke", "ci") == "--user: alice, bob have a token of that name: say whose"
    )
    assert token("revoke", "ci", "--user", "bob").out == "The token ci of bob is void.\n"
    assert find(token, other) is None
    found = find(token, mine)
    assert found is not None
    assert token("revoke", found.token_id).out == "The token ci of alice is void.\n"
    assert find(token, mine) is None
    assert token.fails(2, "revoke", mine) == "there is no token 'trn_********'"


def test_a_new_password_leaves_tokens_and_says_so(token: Trionat) -> None:
    text = token("add", "ci", "--user", "bob").out.strip()
    as_user = attrs.evolve(token, command="user")
    assert "1 token of bob for the API stays good: " in as_user("passwd", "bob", stdin="new\n").err
    assert find(token, text) is not None
    assert as_user("passwd", "alice", stdin="new\n").err == ""
    as_user("remove", "bob")
    assert find(token, text) is None
