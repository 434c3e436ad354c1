"""Any bytes, in any pieces, give messages or an error of the peer, never anything else, and never more memory than the bound."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS
from tests.fuzz.streams import FRAME_IDS, LEGACY, MESSAGES, streams
from trionat.protocol.frames import FIRST_FRAME_BYTES, encode_frame
from trionat.protocol.legacy import LegacyMessage
from trionat.protocol.messages import Hello, Message
from trionat.protocol.tunnel_frames import DATA_ID, SMALL_FRAME_BYTES, Abort, TunnelFrame


@pytest.mark.parametrize("name", DECODERS)
@example(size=b"\x03", stream=encode_frame(Hello.id, bytes(FIRST_FRAME_BYTES + 1)))
@example(size=b"\x03", stream=encode_frame(Abort.ID, bytes(SMALL_FRAME_BYTES + 1)))
@settings(max_examples=150, deadline=None)
@given(size=st.binary(min_size=1, max_size=1), stream=streams)
def test_any_bytes(name: str, size: bytes, stream: bytes) -> None:
    DECODERS[name](size + stream)


def test_samples_are_of_every_kind() -> None:
    """So that a new message is fuzzed as well."""
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    assert {type(message) for message in LEGACY} == set(get_args(LegacyMessage))
    assert set(FRAME_IDS) == {kind.ID for kind in get_args(TunnelFrame)} | {DATA_ID}
