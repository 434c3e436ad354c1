from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.protocol.dialect import Dialect, detect_dialect
from trionat.protocol.frames import FIRST_FRAME_BYTES, LITTLE_ENDIAN


@pytest.mark.parametrize(
    ("first", "dialect"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", Dialect.NATIVE),
        (b"\x16\x03\x03", Dialect.NATIVE),
        (b"\x16\x03\x04", Dialect.NATIVE),
        (b"\x16\x03\x05\x00\x00\x00\x00\x00", Dialect.UNKNOWN),
        (b"\x16\x03\x00\x00\x00\x00\x00\x00", Dialect.UNKNOWN),  # SSL 3.0
        (b"\x16\x00\x00\x00\x61\xea\x00\x00", Dialect.NAT_DOC),  # credentials of 22 bytes
        (b"\x16\x02\x00\x00\x61\xea\x00\x00", Dialect.NAT_DOC),
        (b"\x16\x03\x00\x00\x61\xea\x00\x00", Dialect.NAT_DOC),  # of 790 bytes
        (b"\x16\x05\x01\x02\x00\x01\x00\x01", Dialect.UNKNOWN),
        (b"\x00\x00\x00\x30\x00\x00\x9c\xae", Dialect.PLAIN_TUNNEL),
        (b"\x00\x00\x00\x31\x00\x00\x9c\xae", Dialect.UNKNOWN),
        (b"\x00\x00\x00\x29\x00\x00\xea\x61", Dialect.NAT_V1),
        (b"\x00\x00\x00\x0c\x00\x00\x4e\x22", Dialect.NAT_V1),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00", Dialect.UNKNOWN),
        (b"SSH-2.0-OpenSSH", Dialect.SSH),
        (b"GET / HTTP/1.1", Dialect.HTTP),
        (b"OPTIONS * HTTP/1.1", Dialect.HTTP),
        (b"GETAWAY HTTP", Dialect.UNKNOWN),
        (b"PROXY TCP4 192.0.2.7", Dialect.PROXY),
        (b"\r\n\r\n\0\r\nQUIT\n\x21", Dialect.PROXY),
        (b"PROXYING", Dialect.UNKNOWN),
        (b"\r\n\r\n\r\n\r\n", Dialect.UNKNOWN),
    ],
)
def test_first_bytes(first: bytes, dialect: Dialect) -> None:
    assert detect_dialect(first) is dialect


@given(st.binary(min_size=8, max_size=30))
def test_eight_bytes_always_decide(first: bytes) -> None:
    assert detect_dialect(first) is detect_dialect(first + b"and more") is not None


@given(st.binary(max_size=20))
def test_what_fewer_bytes_tell_stays_true(first: bytes) -> None:
    told = [detect_dialect(first[:length]) for length in range(len(first) + 1)]
    decided = [dialect for dialect in told if dialect is not None]
    assert len(set(decided)) <= 1
    assert told == [None] * (len(told) - len(decided)) + decided


@given(st.integers(0, FIRST_FRAME_BYTES), st.sampled_from([60001, 20002]))
def test_no_legacy_length_is_taken_for_tls(length: int, message_id: int) -> None:
    assert detect_dialect(LITTLE_ENDIAN.pack(length, message_id)) is Dialect.NAT_DOC
