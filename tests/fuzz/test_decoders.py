"""Any bytes, in any pieces, give messages or an error of the peer, never anything else, and never more memory than the bound."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS
from tests.fuzz.streams import streams
from trionat.protocol.frames import FIRST_FRAME_BYTES, encode_frame
from trionat.protocol.messages import Hello
from trionat.protocol.tunnel import SMALL_FRAME_BYTES, Abort


@pytest.mark.parametrize("name", DECODERS)
@example(size=b"\x03", stream=encode_frame(Hello.id, bytes(FIRST_FRAME_BYTES + 1)))
@example(size=b"\x03", stream=encode_frame(Abort.ID, bytes(SMALL_FRAME_BYTES + 1)))
@settings(max_examples=150, deadline=None)
@given(size=st.binary(min_size=1, max_size=1), stream=streams)
def test_any_bytes(name: str, size: bytes, stream: bytes) -> None:
    DECODERS[name](size + stream)
