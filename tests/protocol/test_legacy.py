"""The messages of the legacy dialects: the specification's vectors, and whatever else can be in a frame."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.errors import RemoteProtocolError
from trionat.protocol.dialect import LEGACY_FIRST_IDS, Dialect, detect_dialect
from trionat.protocol.frames import FIRST_FRAME_BYTES, Frame, FrameReader, encode_frame
from trionat.protocol.legacy import (
    HEADERS,
    NO_EXPIRY,
    AuthFail,
    AuthSuccess,
    ConnectionFull,
    Credentials,
    KeepAlive,
    LegacyMessage,
    NewConnection,
    Reason,
    Refusal,
    UserInformation,
    decode,
    encode,
)

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors.json").read_text(encoding="utf-8")
)
DIALECTS: Final = {"nat-doc": Dialect.NAT_DOC, "nat-v1": Dialect.NAT_V1}
WORDS: Final[dict[str, AuthSuccess | NewConnection | KeepAlive | ConnectionFull | AuthFail]] = {
    "USER_AUTHENTICATION_SUCCESSFULLY": AuthSuccess(),
    "NEW_CONNECTION": NewConnection(),
    "KEEP_ALIVE": KeepAlive(),
    "CONNECTION_IF_FULL": ConnectionFull(),
    "AUTH_FAIL": AuthFail(),
}

both = pytest.mark.parametrize("dialect", [Dialect.NAT_DOC, Dialect.NAT_V1])
i64 = st.integers(-(2**63), 2**63 - 1)
dialects = st.sampled_from([Dialect.NAT_DOC, Dialect.NAT_V1])
messages: st.SearchStrategy[LegacyMessage] = st.one_of(
    st.builds(
        Credentials, username=st.text(max_size=255), password=st.text(max_size=500), expiry=i64
    ),
    st.builds(UserInformation, i64, st.integers(1, 65535)),
    st.sampled_from(list(WORDS.values())),
    st.builds(Refusal, st.sampled_from(Reason), st.text(max_size=300)),
)


def meant(vector: dict[str, Any]) -> LegacyMessage:
    meaning = vector["meaning"]
    match vector["name"]:
        case "USER_REQUEST_AUTH":
            return Credentials(
                username=meaning["username"],
                password=meaning["password"],
                expiry=meaning["expire_unix"],
                uid=meaning["uid"] or 0,
            )
        case "USER_INFORMATION":
            return UserInformation(meaning["uid"], meaning["port"])
        case name:
            message = WORDS[name]
            assert meaning.get("text", "") == message.TEXT
            return message


def read(wire: bytes, dialect: Dialect) -> LegacyMessage | None:
    """Return what one frame says, or None where it is not complete."""
    reader = FrameReader(header=HEADERS[dialect])
    reader.feed(wire)
    frame = reader.next_frame()
    return None if frame is None else decode(frame, dialect)


@pytest.mark.parametrize(
    "vector",
    VECTORS["frames"],
    ids=[f"{number} {v['dialect']} {v['name']}" for number, v in enumerate(VECTORS["frames"])],
)
def test_good_vector_both_ways(vector: dict[str, Any]) -> None:
    wire, dialect = bytes.fromhex(vector["frame_hex"]), DIALECTS[vector["dialect"]]
    assert read(wire, dialect) == meant(vector)
    assert encode(meant(vector), dialect) == wire


@pytest.mark.parametrize(
    ("why", "error"),
    [
        ("declared payload length above any sane limit (4 GiB - 1)", "of 4294967295 bytes"),
        ("declared payload length 16 MiB on the first frame", "of 16777216 bytes"),
        ("negative username length", "not as long as its parts"),
        ("username length runs past the payload", "not as long as its parts"),
        ("username is not UTF-8", "the username is not UTF-8"),
        ("unknown message id as the first frame", "unknown message id 12345"),
        ("USER_INFORMATION with a truncated body", "USER_INFORMATION: the payload is not 12 bytes"),
        ("trailing bytes after a complete USER_REQUEST_AUTH payload", "bytes behind the last"),
    ],
)
@both
def test_bad_vector_gives_its_error(dialect: Dialect, why: str, error: str) -> None:
    (wire,) = [
        bytes.fromhex(vector["bytes_hex"])
        for vector in VECTORS["bad"]
        if vector["why"] == why and DIALECTS[vector["dialect"]] is dialect
    ]
    with pytest.raises(RemoteProtocolError, match=error):
        read(wire, dialect)


def test_bad_vectors_of_no_dialect_are_not_taken_for_one() -> None:
    wires = [bytes.fromhex(v["bytes_hex"]) for v in VECTORS["bad"] if v["dialect"] == "any"]
    assert len(wires) == 3
    for wire in wires:
        assert detect_dialect(wire) not in HEADERS


@given(messages, dialects)
def test_every_message_comes_back(message: LegacyMessage, dialect: Dialect) -> None:
    assert read(encode(message, dialect), dialect) == message


@given(messages, dialects)
def test_what_a_client_says_first_tells_its_dialect(
    message: LegacyMessage, dialect: Dialect
) -> None:
    wire = encode(message, dialect)
    detected = detect_dialect(wire)
    assert detected is (dialect if message.id in LEGACY_FIRST_IDS else Dialect.UNKNOWN)


@given(
    st.sampled_from([Credentials.id, UserInformation.id, NewConnection.id, *Reason, 0, 40001]),
    st.binary(max_size=100),
    dialects,
)
def test_any_payload_gives_a_message_or_a_protocol_error(
    message_id: int, payload: bytes, dialect: Dialect
) -> None:
    try:
        message = decode(Frame(message_id, payload), dialect)
    except RemoteProtocolError:
        return
    assert message.id == message_id
    if isinstance(message, Credentials | UserInformation):
        assert message.payload(dialect) == payload


@given(
    st.lists(st.one_of(messages, st.binary(max_size=40)), max_size=5),
    dialects,
    dialects,
    st.data(),
)
def test_any_bytes_in_any_pieces_give_the_same_messages_or_a_protocol_error(
    parts: list[LegacyMessage | bytes], written: Dialect, assumed: Dialect, data: st.DataObject
) -> None:
    wire = b"".join(part if isinstance(part, bytes) else encode(part, written) for part in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))

    def read_all(cuts: list[int]) -> tuple[list[LegacyMessage], str]:
        reader = FrameReader(header=HEADERS[assumed])
        found: list[LegacyMessage] = []
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
            reader.feed(wire[start:end])
            try:
                while (frame := reader.next_frame()) is not None:
                    found.append(decode(frame, assumed))
            except RemoteProtocolError as error:
                return found, str(error)
        return found, ""

    assert read_all(cuts) == read_all([])


@both
def test_reserved_refusals_have_their_texts(dialect: Dialect) -> None:
    texts = {
        30001: "user not exist.",
        30002: "user already exist!",
        30003: "user not expired.",
        30004: "The password is incorrect.",
    }
    assert {reason: Refusal.of(reason).text for reason in Reason} == texts
    for message_id, text in texts.items():
        wire = encode_frame(message_id, text.encode(), header=HEADERS[dialect])
        assert read(wire, dialect) == Refusal.of(Reason(message_id))


@both
def test_texts_for_people_are_not_looked_at(dialect: Dialect) -> None:
    assert decode(Frame(NewConnection.id, b"\xff, or so"), dialect) == NewConnection()
    assert decode(Frame(AuthFail.id, b"go away"), dialect) == AuthFail()
    refusal = decode(Frame(30001, b"\xff" + b"x" * 4000), dialect)
    assert isinstance(refusal, Refusal)
    assert len(refusal.text) == 1024


@both
@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_ports_that_are_none(dialect: Dialect, port: int) -> None:
    with pytest.raises(RemoteProtocolError, match="is not a valid port"):
        decode(Frame(UserInformation.id, struct.pack(">qi", 1, port)), dialect)


@both
def test_text_bounds(dialect: Dialect) -> None:
    longest = Credentials(username="ü" * 255, password="x" * 1024)
    assert len(encode(longest, dialect)) < FIRST_FRAME_BYTES
    assert read(encode(longest, dialect), dialect) == longest
    for message in (
        Credentials(username="x" * 256, password=""),
        Credentials(username="", password="x" * 1025),
    ):
        with pytest.raises(RemoteProtocolError, match="has more than"):
            read(encode(message, dialect), dialect)


def test_password_is_not_shown() -> None:
    assert "geheim" not in repr(Credentials(username="me", password="geheim"))
    assert Credentials(username="me", password="").expiry == NO_EXPIRY
