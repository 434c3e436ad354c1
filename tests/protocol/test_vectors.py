"""The legacy frames of the specification, good and bad, as far as the native server has to do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from trionat.errors import RemoteProtocolError
from trionat.protocol.dialect import LEGACY_FIRST_IDS, Dialect, detect_dialect
from trionat.protocol.frames import (
    BIG_ENDIAN,
    FIRST_FRAME_BYTES,
    LITTLE_ENDIAN,
    Frame,
    FrameReader,
    encode_frame,
)
from trionat.protocol.messages import decode_message

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors.json").read_text(encoding="utf-8")
)
HEADERS: Final = {"nat-doc": LITTLE_ENDIAN, "nat-v1": BIG_ENDIAN}
DIALECTS: Final = {"nat-doc": Dialect.NAT_DOC, "nat-v1": Dialect.NAT_V1}

good = pytest.mark.parametrize(
    "vector",
    VECTORS["frames"],
    ids=[f"{number} {v['dialect']} {v['name']}" for number, v in enumerate(VECTORS["frames"])],
)
bad = pytest.mark.parametrize(
    "vector", VECTORS["bad"], ids=[f"{v['dialect']} {v['why']}" for v in VECTORS["bad"]]
)


def test_vectors_are_all_there() -> None:
    assert len(VECTORS["frames"]) == 18
    assert len(VECTORS["bad"]) == 19


@good
def test_good_frame_reads_in_its_byte_order(vector: dict[str, Any]) -> None:
    header, wire = HEADERS[vector["dialect"]], bytes.fromhex(vector["frame_hex"])
    payload = bytes.fromhex(vector["payload_hex"])
    reader = FrameReader(header=header)
    for byte in wire:
        assert reader.next_frame() is None
        reader.feed(bytes([byte]))
    assert reader.next_frame() == Frame(vector["id"], payload)
    assert encode_frame(vector["id"], payload, header=header) == wire


@good
def test_good_frame_is_not_native(vector: dict[str, Any]) -> None:
    dialect = detect_dialect(bytes.fromhex(vector["frame_hex"]))
    if vector["id"] in LEGACY_FIRST_IDS:  # what a client may say first
        assert dialect is DIALECTS[vector["dialect"]]
    else:
        assert dialect is Dialect.UNKNOWN


@good
def test_good_frame_is_no_native_message(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=str(vector["id"])):
        decode_message(Frame(vector["id"], bytes.fromhex(vector["payload_hex"])))


@bad
def test_bad_bytes_are_not_native(vector: dict[str, Any]) -> None:
    wire = bytes.fromhex(vector["bytes_hex"])
    assert all(
        detect_dialect(wire[:length]) is not Dialect.NATIVE for length in range(len(wire) + 1)
    )


@bad
def test_bad_length_is_refused_before_the_payload(vector: dict[str, Any]) -> None:
    wire = bytes.fromhex(vector["bytes_hex"])
    for name, header in HEADERS.items():
        if len(wire) < header.size or (vector["dialect"] not in ("any", name)):
            continue
        length, message_id = header.unpack_from(wire)
        reader = FrameReader(header=header)
        reader.feed(wire[: header.size])
        if length > FIRST_FRAME_BYTES:
            with pytest.raises(RemoteProtocolError, match=str(message_id)):
                reader.next_frame()
        else:
            frame = reader.next_frame()
            assert frame is None or frame == Frame(message_id, b"")


def test_the_vectors_that_speak_of_a_length_have_a_bad_one() -> None:
    refused = 0
    for vector in VECTORS["bad"]:
        if "declared payload length" in vector["why"]:
            reader = FrameReader(header=HEADERS[vector["dialect"]])
            reader.feed(bytes.fromhex(vector["bytes_hex"]))
            with pytest.raises(RemoteProtocolError):
                reader.next_frame()
            refused += 1
    assert refused == 4
