from __future__ import annotations

import base64
import hashlib
import hmac
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.protocol.ticket import (
    MAX_ADDRESSES,
    MAX_CAVEAT,
    MAX_CAVEATS,
    MAX_CAVEATS_TOGETHER,
    TOKEN_BYTES,
    Ticket,
    narrow_token,
    ticket_token,
)

TOKEN = bytes(range(TOKEN_BYTES))
HASH = bytes(range(32))
PREFIXES = ["tn1_", "tn2_", "tn3_"]

printable = st.characters(exclude_categories=("C", "Z"))
hosts = st.text(printable, min_size=1, max_size=60)
ports = st.integers(1, 65535)
caveats = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'),
    min_size=1,
    max_size=60,
)
chains = st.lists(caveats, max_size=6).map(tuple)
tickets = st.builds(
    lambda addresses, **fields: Ticket(
        host=addresses[0].host, port=addresses[0].port, others=tuple(addresses[1:]), **fields
    ),
    addresses=st.lists(
        st.builds(TCPAddress, hosts, ports), min_size=1, max_size=MAX_ADDRESSES, unique=True
    ),
    fingerprint=st.none() | st.binary(min_size=32, max_size=32),
    username=st.text(printable | st.just(" "), min_size=1, max_size=255),
    token=st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES),
    caveats=chains,
)


def ticket(**changes: object) -> Ticket:
    fields: dict[str, object] = {
        "host": "example.com",
        "port": 8007,
        "fingerprint": HASH,
        "username": "alice",
        "token": TOKEN,
    }
    return Ticket(**(fields | changes))  # type: ignore[arg-type]


def seal(body: bytes, prefix: str = "tn1_") -> str:
    """The text form of any body, with the right checksum."""
    checksum = hashlib.sha256(prefix.encode() + body).digest()[:4]
    return prefix + base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()


@given(tickets)
def test_round_trip(made: Ticket) -> None:
    assert Ticket.decode(made.encode()) == made


@given(tickets, st.data())
def test_one_character_changed_is_refused(made: Ticket, data: st.DataObject) -> None:
    text = made.encode()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[place]))
    with pytest.raises(ValueError, match="ticket"):
        Ticket.decode(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("fingerprint", [HASH, None], ids=["pinned", "by authority"])
@pytest.mark.parametrize("name", ["a", "al", "ali"])  # all three lengths of a last base64 group
def test_every_character_of_the_alphabet_at_every_place(
    fingerprint: bytes | None, name: str
) -> None:
    text = ticket(fingerprint=fingerprint, username=name).encode()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=. "
    for place in range(len(text)):
        for other in alphabet.replace(text[place], ""):
            with pytest.raises(ValueError, match="ticket"):
                Ticket.decode(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("around", ['""', "''", "``", "<>", "“”", "„“", "«»", '"', '" "', '<"">'])
def test_quotes_around_it_do_not_matter(around: str) -> None:
    half = (len(around) + 1) // 2
    for text in (ticket().encode(), f"{ticket().encode()[:50]}\n  {ticket().encode()[50:]}"):
        assert Ticket.decode(f" {around[:half]}{text}{around[half:]}\r\n") == ticket()
    with pytest.raises(ValueError, match="the ticket is damaged"):
        Ticket.decode(f"{ticket().encode()[:50]}{around[0]}{ticket().encode()[50:]}")


def test_cut_off_anywhere_is_refused() -> None:
    text = ticket().encode()
    for length in range(len(text)):
        with pytest.raises(ValueError, match="ticket"):
            Ticket.decode(text[:length])


def test_cut_off_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^the ticket is damaged: copy it again, whole$"):
        Ticket.decode(ticket().encode()[:-9])


@given(
    st.text()
    | st.sampled_from(PREFIXES).flatmap(lambda prefix: st.text().map(prefix.__add__))
    | st.builds(seal, st.binary(), st.sampled_from(PREFIXES))
)
def test_anything_is_a_ticket_or_a_value_error_of_one_line(text: str) -> None:
    try:
        made = Ticket.decode(text)
    except ValueError as exc:
        assert type(exc) is ValueError  # noqa: PT017 - a UnicodeError would be one as well
        assert len(str(exc).splitlines()) == 1  # noqa: PT017
    else:
        assert Ticket.decode(made.encode()) == made


def test_the_layout_is_as_documented() -> None:
    body = b"\x01" + (8007).to_bytes(2, "big") + TOKEN + HASH + b"\x0bexample.com" + b"alice"
    assert ticket().encode() == seal(body)
    body = b"\x00" + (8007).to_bytes(2, "big") + TOKEN + b"\x0bexample.com" + b"alice"
    assert ticket(fingerprint=None).encode() == seal(body)


OTHERS = (TCPAddress("2001:db8::1", 443), TCPAddress("b.example.com", 8007))
TWO = b"\x02\x1f\x47\x0bexample.com\x01\xbb\x0b2001:db8::1"


def test_the_layout_of_several_addresses_is_as_documented() -> None:
    made = ticket(others=OTHERS[:1])
    body = b"\x01\x00\x00" + TOKEN + HASH + TWO + b"alice"
    assert made.encode() == seal(body, "tn2_")
    assert made.addresses == (TCPAddress("example.com", 8007), OTHERS[0])
    assert Ticket.decode(ticket(others=OTHERS).encode()).others == OTHERS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x00\x00\x00" + TOKEN, id="no addresses"),
        pytest.param(b"\x00\x00\x00" + TOKEN + b"\x00bob", id="none"),
        pytest.param(b"\x00\x00\x00" + TOKEN + b"\x01\x00\x01\x01hbob", id="one"),
        pytest.param(b"\x00\x00\x00" + TOKEN + TWO[:-5], id="cut off"),
        pytest.param(b"\x00\x00\x01" + TOKEN + TWO + b"bob", id="a port where there is none"),
        pytest.param(
            b"\x00\x00\x00"
            + TOKEN
            + b"\x11"
            + b"".join(bytes((0, number, 1)) + b"h" for number in range(1, 18))
            + b"bob",
            id="too many",
        ),
        pytest.param(
            b"\x00\x00\x00" + TOKEN + b"\x02" + 2 * b"\x00\x01\x01h" + b"bob", id="twice the same"
        ),
        pytest.param(
            b"\x00\x00\x00" + TOKEN + TWO.replace(b"\x1f\x47", bytes(2)) + b"b", id="port 0"
        ),
    ],
)
def test_sealed_nonsense_of_several_addresses_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="ticket"):
        Ticket.decode(seal(body, "tn2_"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "damaged", id="empty"),
        pytest.param(b"\x00\x1f", "damaged", id="shorter than its head"),
        pytest.param(b"\x00\x1f\x47" + TOKEN, "damaged", id="no host"),
        pytest.param(b"\x01\x1f\x47" + TOKEN + b"short", "damaged", id="half a fingerprint"),
        pytest.param(b"\x00\x1f\x47" + TOKEN + b"\x01\xffbob", "damaged", id="host is no UTF-8"),
        pytest.param(b"\x00\x00\x00" + TOKEN + b"\x01hbob", "port", id="port 0"),
        pytest.param(b"\x00\x1f\x47" + TOKEN + b"\x00bob", "host", id="empty host"),
        pytest.param(b"\x00\x1f\x47" + TOKEN + b"\x02a\nbob", "host", id="line break in host"),
        pytest.param(b"\x00\x1f\x47" + TOKEN + b"\x09hbob", "user name", id="no user name"),
        pytest.param(b"\x00\x1f\x47" + TOKEN + b"\x01h\x1b[2J", "user name", id="escape sequence"),
        pytest.param(b"\x02\x1f\x47" + TOKEN + b"\x01hbob", "newer trionat", id="unknown flag"),
    ],
)
def test_sealed_nonsense_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Ticket.decode(seal(body))


@pytest.mark.parametrize("text", ["tn4_abc", "tn10_abc", " tn9_"])
def test_a_later_version_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="made by a newer trionat: update"):
        Ticket.decode(text)


@pytest.mark.parametrize("text", ["hello", "tn0_abc", "tn1", "TN1_abc", "8080"])
def test_other_text_is_no_ticket(text: str) -> None:
    with pytest.raises(ValueError, match=r"a ticket starts with tn$"):
        Ticket.decode(text)


@pytest.mark.parametrize("text", ["", " \n", "''"])
def test_nothing_is_told_as_such(text: str) -> None:
    with pytest.raises(ValueError, match="there is no ticket: this is empty"):
        Ticket.decode(text)


def test_wrapped_lines_and_blanks_round_it_do_not_matter() -> None:
    text = ticket().encode()
    assert Ticket.decode(f"  {text[:40]}\r\n {text[40:]}\n") == ticket()
    assert Ticket.decode(f"\ufeff{text}\u00a0\r\n") == ticket()


@pytest.mark.parametrize("character", ["\u200b", "\u200d", "\u00ad", "\ufeff", "\x1b", "\u2060"])
def test_what_cannot_be_seen_is_named_and_nothing_else_shown(character: str) -> None:
    text = ticket().encode()
    with pytest.raises(ValueError, match="has an invisible") as caught:
        Ticket.decode(f"{text[:6]}{character}{text[6:]}")
    assert str(caught.value) == (
        f"the ticket has an invisible character U+{ord(character):04X} at position 7: copy it again"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"host": ""},
        {"host": "a b"},
        {"host": "h" * 256},
        {"host": "\ud800"},
        {"port": 0},
        {"port": 65536},
        {"fingerprint": b"short"},
        {"username": ""},
        {"username": "a\nb"},
        {"username": "n" * 1021},
        {"token": b""},
        {"token": bytes(32)},
        {"others": (TCPAddress("h", 0),)},
        {"others": (TCPAddress("a b", 1),)},
        {"others": (TCPAddress("example.com", 8007),)},
        {"others": tuple(TCPAddress("h", port) for port in range(1, 17))},
    ],
    ids=str,
)
def test_what_the_text_cannot_hold_is_refused_at_once(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"ticket|fingerprint"):
        ticket(**changes)


def test_the_longest_ticket_can_be_read() -> None:
    longest = ticket(host="h" * 255, username="\U0001f511" * 255)
    assert Ticket.decode(longest.encode()) == longest
    others = tuple(TCPAddress("h" * 255, port) for port in range(1, MAX_ADDRESSES))
    longest = ticket(host="h" * 255, username="\U0001f511" * 255, others=others)
    assert Ticket.decode(longest.encode()) == longest
    narrowed = longest.narrow(*["c" * (MAX_CAVEATS_TOGETHER // MAX_CAVEATS)] * MAX_CAVEATS)
    assert Ticket.decode(narrowed.encode()) == narrowed


def test_the_token_is_not_shown() -> None:
    assert "token" not in repr(ticket())
    assert repr(TOKEN) not in repr(ticket())


def test_token_follows_from_key_name_and_salt_and_nothing_else() -> None:
    key, salt = b"k" * 32, b"s" * 16
    token = ticket_token(key, "alice", salt)
    assert len(token) == TOKEN_BYTES
    assert ticket_token(key, "alice", salt) == token
    others = {
        ticket_token(b"K" * 32, "alice", salt),
        ticket_token(key, "Alice", salt),
        ticket_token(key, "alice", b"S" * 16),
    }
    assert len(others | {token}) == 4


@given(st.text(printable), st.binary(), st.integers(0, 8))
def test_nothing_moves_between_name_and_salt(name: str, salt: bytes, moved: int) -> None:
    moved = min(moved, len(name))
    if moved:
        shifted = name[-moved:].encode() + salt
        assert ticket_token(b"k", name, salt) != ticket_token(b"k", name[:-moved], shifted)


# --- tickets that were narrowed ---


NARROWED = b"\x01\x1f\x47\x0bexample.com\x02\x0fonly names=shop\x1auntil 2026-11-29T12:00:00Z"
LINES = ("only names=shop", "until 2026-11-29T12:00:00Z")


def test_the_layout_of_a_narrowed_ticket_is_as_documented() -> None:
    """A known answer, from HMAC-SHA-256 as docs/protocol.md has it."""
    token = TOKEN
    for line in LINES:
        token = hmac.new(token, line.encode(), hashlib.sha256).digest()[:TOKEN_BYTES]
    made = ticket().narrow(*LINES)
    assert made == ticket().narrow(LINES[0]).narrow(LINES[1])
    assert made.encode() == seal(b"\x01\x00\x00" + token + HASH + NARROWED + b"alice", "tn3_")
    assert Ticket.decode(made.encode()) == made
    assert (made.token, made.caveats) == (token, LINES)
    assert ticket().narrow() == ticket()
    several = ticket(others=OTHERS).narrow("x")
    assert Ticket.decode(several.encode()) == several


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(TWO + b"\x00alice", id="none"),
        pytest.param(TWO, id="cut off before"),
        pytest.param(TWO + b"\x02\x01aalice", id="fewer than it says"),
        pytest.param(TWO + b"\x11" + b"\x01a" * 17 + b"alice", id="too many"),
        pytest.param(TWO + b"\x05" + (b"\xfe" + b"a" * 254) * 5 + b"alice", id="too long together"),
        pytest.param(TWO + b"\x01\x00alice", id="empty"),
        pytest.param(TWO + b"\x01\x01\nalice", id="a line end"),
        pytest.param(TWO + b'\x01\x01"alice', id="a quote"),
        pytest.param(TWO + b"\x01\x02\xc3\xa4alice", id="not ASCII"),
        pytest.param(TWO + b"\x01\x01\xffalice", id="not UTF-8"),
        pytest.param(b"\x00\x01\x01aalice", id="no address"),
    ],
)
def test_sealed_nonsense_of_a_narrowed_ticket_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="ticket"):
        Ticket.decode(seal(b"\x00\x00\x00" + TOKEN + body, "tn3_"))


@pytest.mark.parametrize(
    "lines",
    [
        [""],
        ["a" * (MAX_CAVEAT + 1)],
        ["a"] * (MAX_CAVEATS + 1),
        ["a" * 205] * 5,
        ["a\nb"],
        ['"'],
        ["\\"],
        ["\x7f"],
        ["ä"],
        ["\ud800"],
    ],
    ids=lambda lines: f"{len(lines)} of {ascii(lines[0])[:20]}",
)
def test_what_no_ticket_can_hold_narrows_none(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="restriction") as caught:
        ticket().narrow(*lines)
    assert type(caught.value) is ValueError


@given(chains, chains)
def test_narrowing_step_by_step_is_narrowing_at_once(
    first: tuple[str, ...], more: tuple[str, ...]
) -> None:
    assert ticket().narrow(*first).narrow(*more) == ticket().narrow(*first, *more)
    assert narrow_token(narrow_token(TOKEN, first), more) == narrow_token(TOKEN, first + more)


@given(st.lists(caveats, min_size=1, max_size=4, unique=True), chains)
def test_a_token_is_of_its_caveats_in_their_order(lines: list[str], other: tuple[str, ...]) -> None:
    """None can be left out, moved, cut, joined or replaced."""
    token = narrow_token(TOKEN, lines)
    assert len(token) == TOKEN_BYTES
    others = {*permutations(lines), other, ("".join(lines), *lines[1:])}
    others |= {tuple(lines[:number] + lines[number + 1 :]) for number in range(len(lines))}
    others |= {(*lines[:-1], lines[-1][:-1]), (*lines, lines[0])}
    for chain in others - {tuple(lines)}:
        assert narrow_token(TOKEN, chain) != token
    assert narrow_token(bytes(TOKEN_BYTES), lines) != token
