"""What a login may claim, and which chains of caveats are a ticket's."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.hostnames import RESERVED_LABELS
from trionat.protocol.ticket import MAX_CAVEAT, MAX_CAVEATS, TOKEN_BYTES, Ticket, narrow_token
from trionat.server.accounts.scope import MOST_PORTS, Only, Scope, read_caveat, until
from trionat.server.accounts.tickets import make_ticket, verify_ticket
from trionat.server.state_folder import StateFolder
from trionat.store.base import Limits, User

DOMAIN = "tunnel.example.com"
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)

patterns = st.sampled_from(["shop", "shop-*", "*", "*.example.org", "a.example.org", "xn--p1ai"])
onlys = st.builds(
    Only,
    names=st.lists(patterns, max_size=3).map(tuple),
    ports=st.lists(st.sampled_from([1, 60001, 60005, 65535]), max_size=4, unique=True).map(tuple),
)
moments = st.timedeltas(timedelta(), timedelta(days=365 * 8000)).map(
    datetime(1970, 1, 1, tzinfo=UTC).__add__
)
caveats = st.one_of(onlys.map(str), moments.map(until))
chains = st.lists(caveats, max_size=5).map(tuple)


def user(name: str = "alice", salt: bytes = b"s" * 16, **limits: object) -> User:
    return User(
        name=name,
        password="h",
        ticket_salt=salt,
        limits=Limits(**limits),  # type: ignore[arg-type]
    )


def state(key: bytes = bytes(32)) -> StateFolder:
    return StateFolder(folder=Path("unused"), fingerprint=bytes(32), ticket_key=key)


def ticket(of: User, key: bytes = bytes(32)) -> Ticket:
    return make_ticket(state(key), of, "example.com", 8007, pinned=True)


# --- the text of a caveat ---


@pytest.mark.parametrize(
    ("caveat", "text"),
    [
        (Only(names=("shop",)), "only names=shop"),
        (Only(ports=(60001, *range(60003, 60010))), "only ports=60001,60003-60009"),
        (
            Only(names=("shop-*", "*.example.org"), ports=(1,)),
            "only names=shop-*,*.example.org ports=1",
        ),
        (Only(), "only"),
        (Only(ports=tuple(range(1, MOST_PORTS + 1))), f"only ports=1-{MOST_PORTS}"),
    ],
)
def test_the_text_of_what_may_be_claimed(caveat: Only, text: str) -> None:
    assert str(caveat) == text
    assert read_caveat(text) == caveat


def test_the_text_of_an_end() -> None:
    assert until(NOON) == "until 2026-11-29T12:00:00Z"
    assert until(NOON + timedelta(seconds=1, microseconds=999_999)) == "until 2026-11-29T12:00:01Z"
    assert read_caveat("until 2026-11-29T12:00:00Z") == NOON


@given(onlys, moments)
def test_what_is_written_is_read(only: Only, moment: datetime) -> None:
    assert read_caveat(until(moment)) == moment.replace(microsecond=0)
    again = read_caveat(str(only))
    assert isinstance(again, Only)
    assert str(again) == str(only)
    assert (again.names, set(again.ports)) == (only.names, set(only.ports))


UNKNOWN = [
    "",
    " ",
    "only ",
    " only",
    "Only",
    "only names=",
    "only ports=",
    "only names=shop,",
    "only names=Shop",
    "only names=shop  ports=1",
    "only ports=1 names=shop",
    "only names=shop names=blog",
    "only names=203.0.113.7",
    "only names=**",
    "only names=*.*",
    "only ports=0",
    "only ports=65536",
    "only ports=1-1025",
    "only ports=1-65535,1-65535,1-65535,1-65535,1-65535,1-65535,1-65535,1-65535",
    "only ports=2-1",
    "only ports=1,2",
    "only ports=1,",
    "only ports=01",
    "only ports=-",
    "only colour=red",
    "only names=shop colour=red",
    "only names=shop;ports=1",
    "until",
    "until ",
    "until never",
    "until 2026-11-29",
    "until 2026-11-29T12:00Z",
    "until 2026-11-29T12:00:00",
    "until 2026-11-29T12:00:00.5Z",
    "until 2026-11-29T12:00:00+00:00",
    "until 2026-11-29t12:00:00z",
    "until 2026-13-29T12:00:00Z",
    "until 0000-01-01T00:00:00Z",
    "until 2026-11-29T25:00:00Z",
    "until 2026-11-29T12:00:00Z ",
    "from 2026-11-29T12:00:00Z",
    "names=shop",
]


@pytest.mark.parametrize("text", UNKNOWN, ids=repr)
def test_what_nobody_here_can_keep_to_is_refused(text: str) -> None:
    for around in ((), (str(Only(names=("shop",))), until(NOON))):
        with pytest.raises(
            ValueError, match=r"^the ticket has a restriction that is not known"
        ) as no:
            Scope.of(Limits(), (*around, text))
        assert type(no.value) is ValueError
        assert len(str(no.value).splitlines()) == 1


@given(st.text(max_size=MAX_CAVEAT) | st.builds(str.__add__, caveats, st.text(max_size=3)))
def test_any_text_is_a_caveat_that_is_written_the_same_or_is_refused(text: str) -> None:
    try:
        caveat = read_caveat(text)
    except ValueError as exc:
        assert type(exc) is ValueError  # noqa: PT017 - a UnicodeError would be one as well
    else:
        assert (str(caveat) if isinstance(caveat, Only) else until(caveat)) == text


# --- what it lets one claim ---


def allowed(scope: Scope, *names: str) -> list[str]:
    return [name for name in names if scope.refusal_of_name(name, DOMAIN) is None]


def test_without_patterns_an_account_has_what_is_right_below_the_domain() -> None:
    scope = Scope.of(Limits(), ())
    assert allowed(scope, "shop", f"shop.{DOMAIN}", "quiet-otter-41") == [
        "shop",
        f"shop.{DOMAIN}",
        "quiet-otter-41",
    ]
    others = (DOMAIN, f"a.b.{DOMAIN}", "shop.example.org", "example.com", f"shop.x{DOMAIN}")
    assert allowed(scope, *others) == []
    assert scope.refusal_of_name("shop.example.org", DOMAIN) == (
        "shop.example.org is not right below tunnel.example.com, and this account may have no other names: write shop alone for shop.tunnel.example.com, or have the server's operator allow it (trionat user limit NAME --names shop.example.org)"
    )
    assert allowed(scope, *RESERVED_LABELS) == []
    assert scope.refusal_of_name("www", DOMAIN) == (
        "www.tunnel.example.com is reserved: only an account that is limited to it by name may have it"
    )


def test_with_patterns_it_has_these_alone() -> None:
    scope = Scope.of(Limits(names=(f"shop-*.{DOMAIN}", "blog", "*.example.org", "www")), ())
    names = ("shop-1", "shop", "blog", f"blog.{DOMAIN}", "a.example.org", "example.org", "www")
    assert allowed(scope, *names) == [
        *("shop-1", "blog", f"blog.{DOMAIN}", "a.example.org", "www"),
    ]
    assert scope.refusal_of_name("shop", DOMAIN) == (
        "shop.tunnel.example.com is not one of the names that this account may have"
        " (shop-*.tunnel.example.com, blog, *.example.org, www)"
    )
    assert allowed(Scope.of(Limits(names=()), ()), "shop", "www") == []
    many = Scope.of(Limits(names=tuple(f"n{number}" for number in range(9))), ())
    assert str(many.refusal_of_name("x", DOMAIN)).endswith("(n0, n1, n2, n3, n4 and 4 more)")


def test_a_star_gives_nothing_that_is_reserved() -> None:
    for pattern in ("*", "w*", f"*.{DOMAIN}"):
        assert allowed(Scope.of(Limits(names=(pattern,)), ()), *RESERVED_LABELS) == []
    assert allowed(Scope.of(Limits(names=("*", f"www.{DOMAIN}")), ()), "www", "wpad") == ["www"]
    # The operator has said so, or not; a ticket says no more than its account.
    assert allowed(Scope.of(Limits(), ("only names=www",)), "www") == []
    # Of other domains only their owners know.
    assert allowed(Scope.of(Limits(names=("*.example.org",)), ()), "www.example.org") == [
        "www.example.org"
    ]


def test_a_ticket_has_no_more_than_its_account_and_than_each_caveat() -> None:
    shops = "only names=shop-*,blog ports=60001-60009"
    account = Limits(names=("shop-*", "wiki"), visit_ports=(60005, 60010), sessions=3)
    scope = Scope.of(account, (shops,))
    assert allowed(scope, "shop-1", "shop-2", "blog", "wiki") == ["shop-1", "shop-2"]
    assert scope.refusal_of_name("wiki", DOMAIN) == (
        "wiki.tunnel.example.com is not one of the names that this ticket is for (shop-*, blog)"
    )
    assert scope.limits == attrs.evolve(account, visit_ports=(60005,))
    assert scope.refusal_of_port(60005) is None
    assert scope.refusal_of_port(60010) == (
        "visit port 60010 is not one that this ticket may have (60005)"
    )
    narrower = Scope.of(account, (shops, "only names=shop-1,wiki"))
    assert allowed(narrower, "shop-1", "shop-2", "blog", "wiki") == ["shop-1"]
    assert narrower.limits.visit_ports == ()
    assert narrower.refusal_of_port(60005) == (
        "visit port 60005 is not one that this ticket may have (none)"
    )
    assert Scope.of(account, ("only ports=60005",)).refusal_of_name("shop-1", DOMAIN) == (
        "shop-1.tunnel.example.com is not one of the names that this ticket is for (none)"
    )


def test_a_ticket_that_only_ends_changes_nothing_else() -> None:
    for account in (Limits(), Limits(visit_ports=(1, 2), names=("a",))):
        scope = Scope.of(account, (until(NOON),))
        assert scope.limits == account
        assert (scope.who, scope.permits_nothing) == ("account", False)
        assert scope.refusal_of_port(1) is None
        assert allowed(scope, "a") == ["a"]
    bound = Scope.of(Limits(visit_ports=(1, 2)), (until(NOON),))
    assert bound.refusal_of_port(3) == "visit port 3 is not one that this account may have (1-2)"


def test_the_first_end_counts() -> None:
    scope = Scope.of(Limits(), (until(NOON + timedelta(days=1)), until(NOON)))
    assert scope.expires_at == NOON
    assert scope.is_expired(NOON)
    assert not scope.is_expired(NOON - timedelta(microseconds=1))
    assert not Scope.of(Limits(), ()).is_expired(NOON)


def test_whether_anything_is_left() -> None:
    for caveats, nothing in (
        ((), False),
        (("only",), True),
        (("only names=shop",), False),
        (("only ports=1",), False),
        (("only names=shop", "only ports=1"), True),
        (("only ports=1", "only ports=2"), True),
        (("only names=shop ports=1", "only ports=2"), True),
        (("only names=shop ports=1", "only names=shop ports=2"), False),
    ):
        assert Scope.of(Limits(), caveats).permits_nothing is nothing, caveats


@given(chains, caveats, st.sampled_from(["shop", "shop-1", "www", "b.example.org", "x.y"]))
def test_no_caveat_widens(chain: tuple[str, ...], more: str, name: str) -> None:
    for account in (Limits(), Limits(names=("*", "*.example.org", "www"), visit_ports=(1, 60001))):
        before, after = Scope.of(account, chain), Scope.of(account, (*chain, more))
        for port in (1, 60001, 60005, 60006, 65535):
            if before.refusal_of_port(port):
                assert after.refusal_of_port(port)
        if before.refusal_of_name(name, DOMAIN):
            assert after.refusal_of_name(name, DOMAIN)
        if before.is_expired(NOON):
            assert after.is_expired(NOON)


def test_a_narrowed_ticket_makes_another_client() -> None:
    """Nobody takes the place of one who may have more by calling himself the same."""
    shop, blog = "only names=shop", "only names=blog"
    keys = [
        Scope.of(Limits(), chain).key_of("laptop")
        for chain in ((), (until(NOON),), (shop,), (blog,), (shop, blog), (shop, "only"))
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "laptop"
    assert Scope.of(Limits(), (shop,)).key_of(keys[3]) not in keys
    later = until(NOON + timedelta(days=1))
    for chain in ((later,), (later, shop), (shop, until(NOON), later)):
        key = Scope.of(Limits(sessions=2), chain).key_of("laptop")
        assert key == keys[1 + (shop in chain)]


# --- whose chain it is ---


@given(chains, chains, st.binary(min_size=32, max_size=32))
def test_a_chain_is_accepted_by_the_server_whose_key_it_is_and_by_no_other(
    chain: tuple[str, ...], other: tuple[str, ...], key: bytes
) -> None:
    alice = user()
    narrowed = ticket(alice, key).narrow(*chain)
    again = Ticket.decode(narrowed.encode())
    assert verify_ticket(state(key), alice, again.token, again.caveats)
    for elsewhere in (bytes(32), key[::-1], key[:-1] + bytes([key[-1] ^ 1])):
        if elsewhere != key:
            assert not verify_ticket(state(elsewhere), alice, again.token, chain)
    # Another user's, the one after --renew, and the same name with another account's salt.
    for somebody in (user("bob"), user(salt=b"t" * 16), user(salt=b"")):
        assert not verify_ticket(state(key), somebody, again.token, chain)
    if other != chain:
        assert not verify_ticket(state(key), alice, again.token, other)


@given(st.lists(caveats, min_size=1, max_size=5), st.data())
def test_no_caveat_can_be_taken_away_moved_or_changed(
    chain: list[str], data: st.DataObject
) -> None:
    alice = user()
    token = ticket(alice).narrow(*chain).token
    place = data.draw(st.integers(0, len(chain) - 1))
    without = chain[:place] + chain[place + 1 :]
    moved = list(without)
    moved.insert(data.draw(st.integers(0, len(without))), chain[place])
    changed = list(chain)
    changed[place] = data.draw(caveats)
    cut = data.draw(st.integers(0, len(chain[place]) - 1))
    shortened = [*chain[:place], chain[place][:cut], *chain[place + 1 :]]
    for forged in (without, moved, changed, shortened, chain[:place], [*chain, chain[place]]):
        if forged != chain:
            assert not verify_ticket(state(), alice, token, forged)
    # With the token before in hand it would work; with only this one, nothing that follows from it does.
    for further in (
        narrow_token(token, chain),
        narrow_token(token, [chain[place]]),
        bytes(TOKEN_BYTES),
    ):
        for forged in (chain, without, []):
            assert not verify_ticket(state(), alice, further, forged)


def test_an_older_server_would_refuse_by_itself() -> None:
    """It knows no caveats, so it compares with the token of the whole ticket."""
    whole = ticket(user())
    narrowed = whole.narrow("only ports=60001")
    assert verify_ticket(state(), user(), whole.token)
    assert not verify_ticket(state(), user(), narrowed.token)
    assert not verify_ticket(state(), user(), whole.token, narrowed.caveats)


def test_the_longest_chain() -> None:
    chain = (until(NOON),) * MAX_CAVEATS
    narrowed = ticket(user()).narrow(*chain)
    assert verify_ticket(state(), user(), narrowed.token, chain)
    with pytest.raises(
        ValueError, match=re.escape("a ticket has room for 16 restrictions of 1024")
    ):
        narrowed.narrow(until(NOON))
