from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES, encode_frame
from trionat.protocol.messages import Refused, encode_message
from trionat.protocol.tunnel_frames import (
    DATA_BYTES,
    DATA_ID,
    END_FRAME,
    END_ID,
    PROBE_FRAME,
    PROBED_FRAME,
    SMALL_FRAME_BYTES,
    TEXT_BYTES,
    Abort,
    AbortReason,
    Ack,
    End,
    Forward,
    Open,
    Probe,
    Probed,
    Resume,
    Resumed,
    TunnelFrame,
    TunnelReader,
)

hosts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
positions = st.integers(0, 2**64 - 1)
opens = st.builds(
    Open,
    visitor=st.integers(0, 2**64 - 1),
    service=st.integers(0, 2**16 - 1),
    host=hosts,
    port=st.integers(0, 65535),
    visit_host=hosts,
    visit_port=st.integers(0, 65535),
)
forwards = st.builds(
    lambda opening, fence, name, with_tls: Forward(
        fence=fence, name=name, with_tls=with_tls, **attrs.asdict(opening)
    ),
    opens,
    positions,
    st.sampled_from(["", "shop.tunnel.example.com", "a" * 253]),
    st.booleans(),
)
resumes = st.builds(Resume, opens, positions, positions, st.integers(0, 2**32 - 1))
aborts = st.builds(
    Abort,
    st.integers(0, 2**64 - 1),
    st.sampled_from(AbortReason),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=TEXT_BYTES // 4),
)
# Bytes stand for one DATA frame.
events = st.lists(
    st.one_of(
        opens,
        forwards,
        resumes,
        aborts,
        st.builds(Resumed, positions),
        st.builds(Ack, positions, positions),
        st.just(End()),
        st.just(Probe()),
        st.just(Probed()),
        st.binary(min_size=1, max_size=60),
    ),
    max_size=12,
)

Event = TunnelFrame | bytes


def encode(event: Event) -> bytes:
    match event:
        case bytes():
            return encode_frame(DATA_ID, event)
        case Open() | Forward() | Resume() | Resumed() | Ack() | Abort():
            return event.encode()
        case End():
            return END_FRAME
        case Probe():
            return PROBE_FRAME
        case Probed():
            return PROBED_FRAME


def joined(found: list[Event]) -> list[Event]:
    """Neighbouring pieces of bytes as one: where DATA is cut says nothing."""
    result: list[Event] = []
    for event in found:
        if isinstance(event, bytes) and result and isinstance(last := result[-1], bytes):
            result[-1] = last + event
        else:
            result.append(event)
    return result


def read(pieces: list[bytes], *, keep: bool = False) -> list[Event]:
    """Feed the pieces out of one buffer that is written over each time; with `keep`, even in the middle of a piece."""
    reader = TunnelReader()
    found: list[Event] = []
    for piece in pieces:
        buffer = bytearray(piece)
        reader.feed(memoryview(buffer))
        while (event := reader.next()) is not None:
            found.append(bytes(event) if isinstance(event, memoryview) else event)
            if keep:
                reader.keep()
                buffer[:] = b"\xaa" * len(buffer)
        buffer[:] = b"\xaa" * len(buffer)
    return found


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(place % (len(stream) + 1) for place in cuts)
    return [
        stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)
    ]


@pytest.mark.parametrize("keep", [False, True], ids=["used up", "kept"])
@given(sent=events, cuts=st.lists(st.integers(0, 2000), max_size=30))
def test_whole_and_cut_and_byte_at_a_time_are_the_same(
    keep: bool, sent: list[Event], cuts: list[int]
) -> None:
    stream = b"".join(map(encode, sent))
    wanted = joined(sent)
    assert joined(read([stream], keep=keep)) == wanted
    assert joined(read(cut(stream, cuts), keep=keep)) == wanted
    assert joined(read([bytes([byte]) for byte in stream], keep=keep)) == wanted


def test_bytes_come_out_as_the_memory_that_went_in() -> None:
    buffer = bytearray(encode_frame(DATA_ID, b"abc"))
    reader = TunnelReader()
    reader.feed(memoryview(buffer))
    piece = reader.next()
    assert isinstance(piece, memoryview)
    buffer[HEADER_BYTES] = ord("x")
    assert bytes(piece) == b"xbc"


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_random_bytes_give_events_or_an_error_of_the_peer(stream: bytes, cuts: list[int]) -> None:
    try:
        read(cut(stream, cuts))
    except (RemoteProtocolError, RefusedError):
        return


@given(
    st.sampled_from(
        [DATA_ID, END_ID, Refused.id]
        + [kind.ID for kind in (Open, Resume, Resumed, Ack, Abort, Probe, Probed)]
    ),
    st.binary(max_size=100),
)
def test_random_payloads_give_events_or_an_error_of_the_peer(frame_id: int, payload: bytes) -> None:
    stream = encode_frame(frame_id, payload)
    try:
        found = read([stream])
    except (RemoteProtocolError, RefusedError):
        with pytest.raises((RemoteProtocolError, RefusedError)):
            read([bytes([byte]) for byte in stream])
        return
    assert joined(read([bytes([byte]) for byte in stream])) == joined(found)


def test_what_looks_like_a_header_in_the_middle_of_a_frame_is_none() -> None:
    abort = Abort(BIG_ENDIAN.unpack(PROBE_FRAME)[1], AbortReason.RESET, "\0\0\0\5\0\0\x9c\xa6")
    open_ = Open(
        visitor=(5 << 32) | DATA_ID, service=1, host="h", port=2, visit_host="", visit_port=3
    )
    for frame in (abort, open_):
        wire = frame.encode()
        assert read([wire[:HEADER_BYTES], wire[HEADER_BYTES:]]) == [frame]


def test_bounds_are_held_before_the_payload() -> None:
    for frame_id, longest in [(DATA_ID, DATA_BYTES), (Open.ID, SMALL_FRAME_BYTES)]:
        read([BIG_ENDIAN.pack(longest, frame_id)])
        for pieces in (1, HEADER_BYTES):
            header = BIG_ENDIAN.pack(longest + 1, frame_id)
            with pytest.raises(RemoteProtocolError, match=str(longest + 1)):
                read([header] if pieces == 1 else [bytes([byte]) for byte in header])


def test_data_without_bytes_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="DATA of 0 bytes"):
        read([encode_frame(DATA_ID, b"") * 30000])
    with pytest.raises(RemoteProtocolError, match="DATA of 0 bytes"):
        read([bytes([byte]) for byte in encode_frame(DATA_ID, b"")])


@pytest.mark.parametrize("frame_id", [0, 20002, 40001, 40004, 40011, 40100, 40110, 40112])
def test_unknown_frame(frame_id: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(frame_id)):
        read([encode_frame(frame_id, b"")])


@pytest.mark.parametrize("kind", [End, Probe, Probed], ids=lambda kind: kind.__name__)
def test_payload_where_there_must_be_none(kind: type[End | Probe | Probed]) -> None:
    with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
        read([encode_frame(kind.ID, b"x")])


def test_open_whose_parts_do_not_fit_together() -> None:
    good = Open(visitor=1, service=0, host="::1", port=2, visit_host="h", visit_port=3).encode()
    payload = good[HEADER_BYTES:]
    for bad in (b"", payload[:15], payload[:-1], payload + b"x", payload[:-1] + b"\xff"):
        with pytest.raises(RemoteProtocolError, match="OPEN"):
            Open.decode(bad)


OPEN_PAYLOAD = "0000000000000029000304d2ea600301" + b"::1h".hex()


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (
            Open(visitor=41, service=3, host="::1", port=1234, visit_host="h", visit_port=60000),
            "0000001400009ca5" + OPEN_PAYLOAD,
        ),
        (
            Resume(
                Open(
                    visitor=41, service=3, host="::1", port=1234, visit_host="h", visit_port=60000
                ),
                received=10,
                kept=2**40,
                attempt=2,
            ),
            "0000002800009cab000000000000000a000001000000000000000002" + OPEN_PAYLOAD,
        ),
        (
            Forward(
                fence=7,
                visitor=41,
                service=3,
                host="::1",
                port=1234,
                visit_host="h",
                visit_port=60000,
            ),
            "%08x00009caf00000000000000070000" % (10 + len(OPEN_PAYLOAD) // 2) + OPEN_PAYLOAD,
        ),
        (
            Forward(
                fence=7,
                name="a.bc",
                with_tls=True,
                visitor=41,
                service=3,
                host="::1",
                port=1234,
                visit_host="h",
                visit_port=60000,
            ),
            "%08x00009caf00000000000000070104" % (14 + len(OPEN_PAYLOAD) // 2)
            + b"a.bc".hex()
            + OPEN_PAYLOAD,
        ),
        (Resumed(700), "0000000800009cac00000000000002bc"),
        (Ack(41, 2**64 - 1), "0000001000009cad0000000000000029ffffffffffffffff"),
        (
            Abort(41, AbortReason.GONE, "no"),
            "0000000c00009ca800000000000000290006" + b"no".hex(),
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else type(value).__name__,
)
def test_every_byte_is_where_the_specification_has_it(
    frame: Open | Forward | Resume | Resumed | Ack | Abort, wire: str
) -> None:
    assert frame.encode().hex() == wire
    assert read([bytes.fromhex(wire)]) == [frame]


def test_resume_is_as_long_as_its_parts() -> None:
    open_ = Open(visitor=1, service=0, host="::1", port=2, visit_host="h", visit_port=3)
    payload = Resume(open_, 1, 2, 3).encode()[HEADER_BYTES:]
    for bad in (b"", payload[:19], payload[:20], payload[:-1], payload + b"x"):
        with pytest.raises(RemoteProtocolError, match=r"RESUME|OPEN"):
            Resume.decode(bad)


def test_forward_is_as_long_as_its_parts() -> None:
    open_ = Open(visitor=1, service=0, host="::1", port=2, visit_host="h", visit_port=3)
    payload = Forward(fence=9, name="a.bc", **attrs.asdict(open_)).encode()[HEADER_BYTES:]
    tls, name = payload[:8] + b"\x02" + payload[9:], payload[:10] + b"\xff" + payload[11:]
    for bad in (b"", payload[:9], payload[:12], payload[:-1], payload + b"x", tls, name):
        with pytest.raises(RemoteProtocolError, match=r"FORWARD|OPEN"):
            Forward.decode(bad)


@pytest.mark.parametrize(("kind", "right"), [(Resumed, 8), (Ack, 16)])
def test_position_of_a_wrong_length(kind: type[Resumed | Ack], right: int) -> None:
    for length in (0, right - 1, right + 1):
        with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
            kind.decode(bytes(length))
    kind.decode(bytes(right))


def test_abort_of_a_wrong_length() -> None:
    for length in (0, 9, 10 + TEXT_BYTES + 1):
        with pytest.raises(RemoteProtocolError, match="ABORT"):
            Abort.decode(bytes(length))


def test_abort_of_a_reason_from_the_future() -> None:
    payload = Abort(7, AbortReason.RESET).encode()[HEADER_BYTES:-1] + b"\x63"
    assert Abort.decode(payload) == Abort(7, AbortReason.OTHER)


@given(st.text(max_size=2000))
def test_any_text_makes_an_abort_that_can_be_read(text: str) -> None:
    frame = Abort(1, AbortReason.REFUSED, text).encode()
    assert len(frame) <= HEADER_BYTES + 10 + TEXT_BYTES
    Abort.decode(frame[HEADER_BYTES:])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_any_host_makes_frames_that_can_be_read(host: str) -> None:
    open_ = Open(visitor=1, service=0, host=host, port=2, visit_host=host, visit_port=3)
    for frame in (open_, Resume(open_, 2**64 - 1, 2**64 - 1, 2**32 - 1)):
        wire = frame.encode()
        assert len(wire) <= HEADER_BYTES + SMALL_FRAME_BYTES
        frame.decode(wire[HEADER_BYTES:])


def test_refused_instead_of_a_tunnel() -> None:
    with pytest.raises(RefusedError, match="too many") as caught:
        read([encode_message(Refused(code="unknown-session", text="too many"))])
    assert caught.value.code == "unknown-session"


def test_abort_that_names_a_path_which_is_not_unicode() -> None:
    frame = Abort(1, AbortReason.REFUSED, "/run/\udcff.sock is gone").encode()
    assert Abort.decode(frame[HEADER_BYTES:]).text == "/run/?.sock is gone"
