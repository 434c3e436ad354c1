"""Messages over an endpoint, and the control link on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all
from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError
from trionat.protocol.dialect import Dialect
from trionat.protocol.frames import encode_frame
from trionat.protocol.legacy import Credentials, KeepAlive, UserInformation, encode
from trionat.protocol.messages import (
    Close,
    Demand,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    encode_message,
)
from trionat.transport.channel import Channel, LegacyChannel
from trionat.transport.control_link import ControlLink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy

LONG = Refused(code="c", text="é" * 1000)


@pytest.fixture
async def ends(tidy: Tidy) -> AsyncIterator[tuple[Channel, Channel]]:
    one, two = (Channel(end) for end in tidy.pair(capacity=100))
    yield one, two
    one.endpoint.close()
    two.endpoint.close()


async def test_messages_both_ways_through_little_room(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    messages: list[Message] = [LONG, Ping(1), Close(code="c", text=""), LONG, Demand(3)]
    received: dict[Channel, list[Message]] = {one: [], two: []}

    async def send(channel: Channel) -> None:
        for message in messages:
            await channel.send(message)

    async def receive(channel: Channel) -> None:
        for _ in messages:
            received[channel].append(await channel.receive())

    async with trio.open_nursery() as nursery:
        for channel in ends:
            nursery.start_soon(send, channel)
            nursery.start_soon(receive, channel)
    assert received == {one: messages, two: messages}
    assert not one.trailing
    assert not one.cut_short


@pytest.mark.parametrize("dialect", [Dialect.NAT_DOC, Dialect.NAT_V1])
async def test_legacy_messages_and_the_raw_bytes_behind_them(tidy: Tidy, dialect: Dialect) -> None:
    near, far = tidy.pair(capacity=100)
    client, server = LegacyChannel(near, dialect), LegacyChannel(far, dialect)
    credentials = Credentials(username="me", password="geheim" * 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, credentials)
        assert await server.receive() == credentials
    await server.send(KeepAlive())
    assert await client.receive() == KeepAlive()
    near.send(encode(UserInformation(1, 60000), dialect) + b"raw")
    assert await server.receive() == UserInformation(1, 60000)
    assert server.trailing == b"raw"
    near.close()
    far.close()


async def test_cancelled_receive_loses_nothing(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    wire = encode_message(Ping(5)) * 2
    for byte in wire[:-1]:
        one.endpoint.send(bytes([byte]))
        with trio.CancelScope() as scope:
            scope.cancel()
            await two.receive()
        if byte is not wire[0] and two.trailing:
            continue
        with trio.move_on_after(0):
            await two.receive()
    one.endpoint.send(wire[-1:])
    assert await two.receive() == Ping(5)


async def test_cancelled_send_says_whether_it_was_cut_short(
    ends: tuple[Channel, Channel],
) -> None:
    one, two = ends
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.send(Ping(1))  # there is room: it is sent all the same
    assert scope.cancelled_caught
    assert await two.receive() == Ping(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.send(LONG)
    assert one.cut_short


@pytest.mark.parametrize("rest", [b"", b"\0\0"], ids=["between messages", "in a message"])
async def test_the_end(ends: tuple[Channel, Channel], rest: bytes) -> None:
    one, two = ends
    one.endpoint.send(encode_message(Ping(1)) + rest)
    one.endpoint.send_eof()
    assert await two.receive() == Ping(1)
    with pytest.raises(ConnectionLostError):
        await two.receive()
    assert two.trailing == rest


async def test_reset(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    one.endpoint.reset()
    with pytest.raises(ConnectionLostError, match="reset"):
        await two.receive()
    with pytest.raises(ConnectionLostError):
        await two.send(Ping(1))


async def test_bound_of_the_first_frame_and_of_later_ones(tidy: Tidy) -> None:
    near, far = tidy.pair()
    channel = Channel(near)
    big = encode_frame(Hello.id, b"{" + b" " * 5000)
    far.send(big)
    with pytest.raises(RemoteProtocolError, match="5001 bytes"):
        await channel.receive()
    channel = Channel(near)
    channel.allow_control_frames()
    far.send(big)
    with pytest.raises(RemoteProtocolError, match="JSON"):
        await channel.receive()
    far.send(encode_frame(Hello.id, bytes(65537))[:100])
    with pytest.raises(RemoteProtocolError, match="65537 bytes"):
        await channel.receive()
    near.close()
    far.close()


async def test_a_chatty_peer_does_not_starve_others(tidy: Tidy) -> None:
    near, far = tidy.pair()
    channel = Channel(near)
    far.send(encode_message(Ping(1)) * 1000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            await channel.receive()
        nursery.cancel_scope.cancel()
    assert turns >= 50
    near.close()
    far.close()


# -- control links ----------------------------------------------------------------------------------------------------


async def test_two_links_keep_each_other_alive(tidy: Tidy, autojump_clock: MockClock) -> None:
    links = [ControlLink(Channel(end), "the peer", 2.5, 8) for end in tidy.pair()]
    with trio.move_on_after(1000) as scope:
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(link.run)
                nursery.start_soon(link.receive)
    assert scope.cancelled_caught
    for link in links:
        assert link.round_trip == 0
        link.channel.endpoint.close()


async def test_each_notices_the_others_silence(tidy: Tidy, autojump_clock: MockClock) -> None:
    near, far = tidy.pair()
    link = ControlLink(Channel(near), "the peer", 2.5, 8)
    started = trio.current_time()
    with pytest.RaisesGroup(pytest.RaisesExc(PeerTimeoutError, match="for 8 s")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            nursery.start_soon(link.receive)
    assert trio.current_time() - started == pytest.approx(8)
    near.close()
    far.close()


async def test_late_and_wrong_pongs_do_not_count_as_round_trips(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    near, far = tidy.pair()
    link = ControlLink(Channel(near), "the peer", 2.5, 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        nursery.start_soon(link.receive)
        await trio.sleep(3)
        await Channel(far).send(Pong(9))
        await trio.testing.wait_all_tasks_blocked()
        assert link.round_trip is None
        await Channel(far).send(Pong(1))
        await trio.testing.wait_all_tasks_blocked()
        assert link.round_trip == pytest.approx(0.5)
        nursery.cancel_scope.cancel()
    near.close()
    far.close()


async def test_a_peer_that_does_not_read_is_given_up(tidy: Tidy, autojump_clock: MockClock) -> None:
    near, far = tidy.pair(capacity=50)
    link = ControlLink(Channel(near), "the client", 2.5, 8)
    started = trio.current_time()
    with pytest.RaisesGroup(
        pytest.RaisesExc(PeerTimeoutError, match="the client does not read"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for number in range(1000):
                link.post(Demand(number))
                await trio.sleep(0.01)
    assert 8 <= trio.current_time() - started < 9
    assert link.channel.cut_short
    await link.say_last(Close(code="c", text="t"))  # not behind half a message
    near.close()
    assert len(await receive_all(far)) == 50
    far.close()


async def test_of_what_waits_only_the_latest_of_each_kind_goes_out(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    near, far = tidy.pair(capacity=20)
    link = ControlLink(Channel(near), "the client", 60, 120)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for number in range(100):
            link.post(Demand(number))
            link.post(Pong(number))
            await trio.testing.wait_all_tasks_blocked()
        reader = Channel(far)
        heard = [await reader.receive() for _ in range(4)]
        assert heard[:2] == [Demand(0), Pong(0)]
        assert set(heard[2:]) == {Demand(99), Pong(99)}
        nursery.cancel_scope.cancel()
    near.close()
    far.close()


async def test_last_word_is_said_even_when_cancelled_but_not_for_ever(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    for capacity, heard in ((1000, True), (10, False)):
        near, far = tidy.pair(capacity)
        link = ControlLink(Channel(near), "the peer", 2.5, 8)
        started = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.say_last(Close(code="c", text="t"))
        assert trio.current_time() - started <= 1
        near.close()
        if heard:
            assert await Channel(far).receive() == Close(code="c", text="t")
        far.close()
