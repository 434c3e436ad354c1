"""What a peer that knows no rules does with its connections, as moves that hypothesis can put together."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

from hypothesis import note
from hypothesis import strategies as st

from tests.fuzz.streams import control_frames, legacy_frames, spoilt, streams, tunnel_frames
from trionat.transport.endpoint import TLS_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.memory import MemoryEndpoint

Deed: TypeAlias = Literal["write", "read", "end", "close", "reset"]

deeds: st.SearchStrategy[Deed] = st.sampled_from(
    ["write", "write", "write", "write", "read", "end", "close", "reset"]
)
"""What may be done with a connection; mostly something is written."""

writings = st.one_of(
    control_frames,
    tunnel_frames,
    legacy_frames,
    spoilt(control_frames),
    spoilt(tunnel_frames),
    streams,
)

pauses = st.sampled_from([0.0, 0.0, 0.0, 0.3, 2.6, 9.0, 40.0])
"""Seconds between two moves: within a moment, a ping interval, a timeout, a reservation."""


def do(deed: Deed, endpoint: MemoryEndpoint, data: bytes) -> None:
    """Do it without waiting, as far as it can be done at all."""
    note(f"{deed} {data!r}" if deed == "write" else deed)
    with suppress(OSError):  # BlockingIOError as well
        match deed:
            case "write":
                endpoint.send(data)
            case "read":
                while endpoint.recv_into(memoryview(bytearray(TLS_RECORD_BYTES))):
                    pass
            case "end":
                endpoint.send_eof()
            case "close":
                endpoint.close()
            case "reset":
                endpoint.reset()


@contextmanager
def no_errors() -> Iterator[None]:
    """Fail where trionat logs an error, which by definition is its own fault."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    collector = Collector(logging.ERROR)
    logger = logging.getLogger("trionat")
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
    if records:
        error = records[0].exc_info[1] if records[0].exc_info else None
        raise AssertionError(records[0].getMessage()) from error
