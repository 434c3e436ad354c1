"""What a key and a chain have to be to be served."""

from __future__ import annotations

import contextlib
import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates.made import DAY, Maker, key_pem, make_key, with_version
from trionat.server.certificates.certificate import check_issued, read_pair, server_name

MAKER, MADE_AT = Maker(), time.time()
KEY, CHAIN = MAKER.chain("shop.example.org", "*.example.net", "203.0.113.7", "2001:db8::1")


ONE = read_pair(KEY, CHAIN)


def test_what_a_certificate_says() -> None:
    one = ONE
    assert one.names == {"shop.example.org", "*.example.net", "203.0.113.7", "2001:db8::1"}
    assert one.ends - MADE_AT == pytest.approx(90 * DAY, abs=60)
    assert read_pair(KEY + CHAIN, KEY + CHAIN) == one, "both in one file"


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("shop.example.org", True),
        ("a.example.net", True),
        ("a.b.example.net", False),
        ("example.net", False),
        ("203.0.113.7", True),
        ("203.0.113.8", False),
        ("2001:db8::1", True),
        ("example.org", False),
        ("", False),
    ],
)
def test_for_whom_it_is(name: str, covered: bool) -> None:
    assert read_pair(KEY, CHAIN).is_for(name) is covered


OTHER_KEY, OTHER_CHAIN = Maker().chain("shop.example.org")
LEAF = CHAIN[: CHAIN.index(b"-----END CERTIFICATE-----") + 26]
WITH_ODD_NAME = ssl.DER_cert_to_PEM_cert(  # an x400Address, which no library reads
    ssl.PEM_cert_to_DER_cert(LEAF.decode()).replace(b"\x82\x10shop.", b"\xa3\x10shop.")
).encode()


@pytest.mark.parametrize(
    ("key", "chain", "words"),
    [
        (OTHER_KEY, CHAIN, "the key is not the one of the certificate"),
        (b"", CHAIN, "no private key"),
        (CHAIN, CHAIN, "no private key"),
        (key_pem(make_key(), b"secret"), CHAIN, "no private key"),
        (KEY[:-60], CHAIN, "no private key"),
        (KEY, b"", "no certificate"),
        (KEY, KEY, "no certificate"),
        (KEY, CHAIN[:200], "no certificate"),
        (KEY, CHAIN.replace(b"M", b"N"), "no certificate"),
        (KEY, with_version(LEAF, 7), "no certificate"),
        (KEY, with_version(LEAF, 7) + MAKER.pem, "no certificate"),
        (KEY, LEAF + with_version(MAKER.pem, 7), "no certificate"),
        (KEY, WITH_ODD_NAME, "no certificate"),
        (KEY, LEAF + OTHER_CHAIN, "the chain is in disorder"),
        (KEY, LEAF + MAKER.pem * 10, "more than 10 certificates"),
        (KEY, CHAIN + b"\n" * 100_000, "more than 100,000 bytes"),
    ],
)
def test_what_is_refused(key: bytes, chain: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_pair(key, chain)


@given(st.binary(max_size=50), st.integers(0, len(CHAIN)), st.integers(0, 60))
def test_any_bytes_are_a_pair_or_refused(junk: bytes, place: int, cut: int) -> None:
    changed = CHAIN[:place] + junk + CHAIN[place + cut :]
    with contextlib.suppress(ValueError):
        assert read_pair(KEY, changed) == ONE, "what is behind the first one may change"


@pytest.mark.parametrize(
    ("names", "begins", "ends", "words"),
    [
        (["other.example.org"], None, None, "it is not for shop.example.org"),
        (["shop.example.org"], -9 * DAY, -DAY, "it has run out already"),
        (["shop.example.org"], 2 * DAY, 9 * DAY, "it is not valid yet"),
    ],
)
def test_what_is_not_what_was_ordered(
    names: list[str], begins: float | None, ends: float | None, words: str
) -> None:
    now = time.time()
    begins, ends = (None if moment is None else now + moment for moment in (begins, ends))
    pair = MAKER.chain(*names, begins=begins, ends=ends)
    with pytest.raises(ValueError, match=words):
        check_issued(read_pair(*pair), ["shop.example.org"], now)


def test_under_which_name_an_authority_looks_for_an_address() -> None:
    assert server_name("203.0.113.7") == "7.113.0.203.in-addr.arpa"
    assert server_name("2001:db8::1").endswith("8.b.d.0.1.0.0.2.ip6.arpa")
    assert server_name("shop.example.org") == "shop.example.org"
