"""Any bytes, in any pieces, give messages or an error of the peer, never anything else, and never more memory than the bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS
from tests.fuzz.streams import streams


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None)
@given(size=st.binary(min_size=1, max_size=1), stream=streams)
def test_any_bytes(name: str, size: bytes, stream: bytes) -> None:
    DECODERS[name](size + stream)
