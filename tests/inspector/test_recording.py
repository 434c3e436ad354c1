"""What is kept of a visitor, and how much of all together."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e import services
from tests.e2e.running import wait_until
from trionat.address import TCPAddress
from trionat.client.inspector.recorder import RecordedEndpoint, Recorder, RecordingForwarder
from trionat.client.inspector.recording import MOST_PIECES, PIECE_BYTES, Track
from trionat.client.inspector.row import as_row
from trionat.config.service import parse_service
from trionat.relay.client_tunnel import LocalServiceError
from trionat.transport.endpoint import SocketEndpoint, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.address import Address
    from trionat.client.inspector.recording import Recording

SERVICE = parse_service("8080")
VISITOR = TCPAddress("192.0.2.7", 1234)


class Made:
    """A recorder, and endpoints that it records."""

    def __init__(self, limit: int = 1000, memory: int = 10_000, most: int = 10) -> None:
        self.recorder = Recorder(limit, memory=memory, most=most)
        self.sockets: list[socket.socket] = []

    def begin(self) -> Recording:
        return self.recorder.begin(0, SERVICE, VISITOR, None)

    def connect(self) -> tuple[RecordedEndpoint, socket.socket]:
        near, far = socket.socketpair()
        self.sockets += [near, far]
        far.settimeout(5)
        return RecordedEndpoint(SocketEndpoint(near), self.begin(), self.recorder), far

    def say(self, recording: Recording, data: bytes) -> None:
        """As the service."""
        taken = recording.add(recording.sent, memoryview(data))
        if taken:
            self.recorder.grow(recording, taken)

    def check(self) -> None:
        """What is counted is what there is."""
        assert self.recorder.held == sum(each.held for each in self.recorder.recordings.values())
        assert self.recorder.held <= self.recorder.memory


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    yield made
    made.check()
    for sock in made.sockets:
        sock.close()


async def test_both_directions_are_recorded_and_passed_on(made: Made) -> None:
    endpoint, far = made.connect()
    assert endpoint.send(b"question") == 8
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    room = memoryview(bytearray(100))
    assert endpoint.recv_into(room) == 6
    recording = endpoint.recording
    assert bytes(recording.received.data) == b"question"
    assert bytes(recording.sent.data) == b"answer"
    assert [(direction, start, end) for direction, start, end, _ in recording.pieces()] == [
        ("received", 0, 8),
        ("sent", 0, 6),
    ]
    assert recording.first_byte is not None
    endpoint.send_eof()
    assert far.recv(100) == b""
    assert recording.received.ended is not None
    far.close()
    assert endpoint.recv_into(room) == 0
    assert recording.sent.ended is not None
    assert recording.number in made.recorder.live
    endpoint.close()
    assert recording.number not in made.recorder.live
    made.recorder.note_closed(endpoint, "ended by both sides")
    assert recording.why == "ended by both sides"


async def test_what_was_not_taken_is_not_recorded(made: Made) -> None:
    """A full socket takes a part of it, and then nothing."""
    endpoint, far = made.connect()
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += endpoint.send(b"x" * 100_000)
    assert endpoint.recording.received.count == sent
    assert len(endpoint.recording.received.data) == 1000
    far.close()
    endpoint.reset()
    assert endpoint.recording.why == "reset"


def test_the_first_bytes_are_kept_and_all_are_counted() -> None:
    track = Track(10)
    for piece in (b"abcd", b"efgh", b"ijkl", b"mnop"):
        track.add(memoryview(piece), 1.0, apart=False)
    assert bytes(track.data) == b"abcdefghij"
    assert track.count == 16
    assert not track.is_whole


def test_who_writes_byte_by_byte_gets_no_time_stamp_for_each() -> None:
    track = Track(10**6)
    taken = sum(track.add(memoryview(b"x"), at / 1e5, apart=False) for at in range(10_000))
    assert len(track.times) < 120
    assert taken == track.held
    slow = Track(10**6)
    for at in range(MOST_PIECES + 100):
        slow.add(memoryview(b"x"), at * 1.0, apart=True)
    assert len(slow.times) == MOST_PIECES
    assert len(slow.data) == MOST_PIECES + 100
    assert slow.time_of(MOST_PIECES + 50) == MOST_PIECES - 1
    assert slow.time_of(5) == 5
    assert slow.time_of(10**6) is None


def test_the_oldest_make_room(made: Made) -> None:
    """Also one that is still there: of that one nothing is kept any more, but it is counted."""
    old, silent = made.begin(), made.begin()
    made.say(old, b"x" * 900)
    others = [made.begin() for _ in range(11)]
    for each in others:
        made.say(each, b"y" * 900)
    assert old.is_dropped
    assert not old.sent.data
    made.say(old, b"more")
    assert not old.sent.data
    assert old.sent.count == 904
    assert not silent.is_dropped
    made.say(silent, b"z")
    assert bytes(silent.sent.data) == b"z"
    assert len(others[-1].sent.data) == 900


def test_one_that_takes_all_of_the_memory_drops_itself() -> None:
    made = Made(limit=100_000)
    alone = made.begin()
    made.say(alone, b"x" * 50_000)
    assert alone.is_dropped
    made.check()


def test_only_so_many_that_have_left_are_listed(made: Made) -> None:
    open_one = made.begin()
    for _ in range(30):
        recording = made.begin()
        made.say(recording, b"x")
        made.recorder.end(recording, "closed")
    assert len(made.recorder.recordings) == 11
    assert open_one.number in made.recorder.recordings
    made.recorder.clear()
    assert list(made.recorder.recordings) == [open_one.number]
    made.check()


class Noted:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def note(self, number: int) -> None:
        self.numbers.append(number)


def test_watchers_hear_of_what_comes_goes_and_is_dropped(made: Made) -> None:
    watcher = Noted()
    made.recorder.watchers.add(watcher)
    first = made.begin()
    made.say(first, b"x" * 900)
    assert watcher.numbers == [first.number]
    for _ in range(11):
        made.say(made.begin(), b"y" * 900)
    assert watcher.numbers.count(first.number) == 2
    made.recorder.end(first, "closed")
    made.recorder.clear()
    assert watcher.numbers.count(first.number) == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3000)), max_size=60))
def test_memory_is_counted_right_whatever_happens(steps: list[tuple[int, int, int]]) -> None:
    made = Made()
    for what, which, size in steps:
        known = list(made.recorder.recordings.values())
        if what == 0 or not known:
            made.begin()
            continue
        recording = known[which % len(known)]
        if what == 1 and recording.ended is None:
            made.say(recording, b"x" * size)
        elif what == 2:
            made.recorder.end(recording, "closed")
        elif what == 3 and recording.ended is None:
            made.recorder.discard(recording)
        made.check()
    assert all(
        each.held <= 2 * (1000 + PIECE_BYTES * MOST_PIECES)
        for each in made.recorder.recordings.values()
    )


# -- at the forwarder --


async def test_a_service_that_is_down_is_a_recording_that_says_so() -> None:
    made = Made()
    port = services.free_low_port()
    forwarder = RecordingForwarder((parse_service(str(port)),), 5.0, recorder=made.recorder)
    with pytest.raises(LocalServiceError):
        await forwarder.open(0, VISITOR)
    (recording,) = made.recorder.recordings.values()
    assert "Connection refused" in recording.why
    assert recording.ended is not None
    with pytest.raises(LocalServiceError):
        await forwarder.open(1, VISITOR)


async def test_our_own_looks_at_a_service_are_no_visitors() -> None:
    made = Made()
    async with services.echo() as echo:
        forwarder = RecordingForwarder(
            (parse_service(str(echo.port)),), 5.0, recorder=made.recorder
        )
        await forwarder.check()
        await forwarder._try(0)
        assert not made.recorder.recordings
        endpoint = await forwarder.open(0, VISITOR)
        await send_all(endpoint, b"hello")
        endpoint.close()
    assert len(made.recorder.recordings) == 1


async def test_a_connection_that_is_given_up_before_it_is_there_is_no_visitor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its visitor begins anew, on a tunnel."""

    async def dial(_: Address) -> socket.socket:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr("trionat.client.forwarder.dial_at_once", lambda _: None)
    monkeypatch.setattr("trionat.client.forwarder.dial_service", dial)
    made = Made()
    forwarder = RecordingForwarder((SERVICE,), 5.0, recorder=made.recorder)
    with trio.move_on_after(0.01):
        await forwarder.open(0, VISITOR)
    assert not made.recorder.recordings
    assert not made.recorder.live


@pytest.mark.parametrize(
    ("received", "sent", "expected"),
    [
        (b"", b"", ("", "", None)),
        (b"GET /a?b HTTP/1.1\r\n", b"HTTP/1.1 404 N", ("HTTP", "GET /a?b", 404)),
        (b"GET /" + b"a" * 1000, b"", ("HTTP", "GET /" + "a" * 399, None)),
        (b"GET me a beer\r\n", b"", ("", "GET me a beer", None)),
        (b"", b"SSH-2.0-OpenSSH_9\r\n", ("SSH", "SSH-2.0-OpenSSH_9", None)),
        (b"", b"220 mail.example\r\n", ("", "220 mail.example", None)),
        (b"\x16\x03\x01\x00\x05", b"", ("TLS", "", None)),
        (b"PRI * HTTP/2.0\r\n\r\nSM", b"", ("HTTP/2", "", None)),
        (b"\x00\x01", b"\xff", ("", "", None)),
    ],
)
def test_the_list_says_what_it_is(
    received: bytes, sent: bytes, expected: tuple[str, str, int | None]
) -> None:
    made = Made()
    recording = made.begin()
    recording.add(recording.received, memoryview(received))
    recording.add(recording.sent, memoryview(sent))
    row = as_row(recording)
    assert (row["protocol"], row["title"], row["status"]) == expected
    assert row["address"] == str(VISITOR)
    made.recorder.end(recording, "closed")


async def test_a_slow_watcher_costs_a_number_for_each_visitor() -> None:
    """See `LiveList`."""
    from trionat.client.inspector.live import LiveList  # noqa: PLC0415

    made = Made(most=10_000)
    live = LiveList(made.recorder)
    heard: list[bytes] = []

    async def never(data: bytes) -> None:
        heard.append(data)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.tell, never)
        await wait_until(lambda: len(heard) > 0)
        for _ in range(1000):
            recording = made.begin()
            made.recorder.end(recording, "closed")
            made.recorder.end(recording, "really closed")
        (browser,) = made.recorder.watchers
        assert len(browser.changed) == 1000  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()
    assert not made.recorder.watchers
    assert live.browsers == 0
