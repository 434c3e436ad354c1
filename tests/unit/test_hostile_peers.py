"""Peers that keep to the protocol's letter and not to its spirit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.address import parse_host, parse_public_address
from trionat.cli.running import ExitCode, tell
from trionat.errors import PeerTimeoutError, RefusedError, RemoteProtocolError
from trionat.protocol.frames import Frame
from trionat.protocol.messages import SECRET_BYTES, Welcome, decode_message
from trionat.protocol.tunnel_frames import PROBE_FRAME, PROBED_FRAME, Open, TunnelReader
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.server_tunnel import ServerTunnel
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from tests.unit.conftest import Tidy
    from trionat.relay.stream import VisitorStream
    from trionat.transport.endpoint import Endpoint


async def refuse(_: Open) -> Endpoint:
    raise LocalServiceError("down")


def no_pairing(frame: Open, stream: VisitorStream) -> None:
    raise AssertionError(f"{frame} was paired with {stream}")


async def test_a_flood_of_the_smallest_frames_leaves_others_their_turn(tidy: Tidy) -> None:
    count = 20_000
    near, far = tidy.pair(capacity=count * len(PROBED_FRAME))
    await send_all(far, PROBED_FRAME * count)
    far.send_eof()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await ServerTunnel(near).receive()
        nursery.cancel_scope.cancel()
    assert turns > count // 100
    near.close()
    far.close()


def test_what_is_kept_is_copied_once() -> None:
    reader = TunnelReader()
    reader.feed(memoryview(bytearray(PROBE_FRAME * 3)))
    reader.next()
    reader.keep()
    kept = reader._data
    reader.next()
    reader.keep()
    assert reader._data is kept


async def test_a_refusal_that_is_never_answered_ends_the_tunnel(tidy: Tidy) -> None:
    near, far = tidy.pair()
    tunnel = ClientTunnel(near, refuse, no_pairing)
    await send_all(
        far, Open(visitor=1, service=0, host="v", port=1, visit_host="s", visit_port=2).encode()
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tunnel.receive)
        await trio.testing.wait_all_tasks_blocked()
        assert not tunnel.idle
        with pytest.raises(PeerTimeoutError, match="did not answer an ABORT"):
            for _ in range(20):
                tunnel.sweep()
        nursery.cancel_scope.cancel()
    near.close()
    far.close()


def test_a_server_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    welcome = Welcome(
        uid=1,
        secret=bytes(SECRET_BYTES),
        ports=(1,),
        host="\x1b]0;owned\x07",
        ping_interval=1,
        peer_timeout=2,
        max_tunnels=1,
    )
    with pytest.raises(RemoteProtocolError, match="WELCOME: host"):
        decode_message(Frame(Welcome.id, welcome.payload()))
    assert tell([RefusedError("auth-failed", "\x1b[2Jgone")]) is ExitCode.REFUSED
    assert capsys.readouterr().err == "trionat: \\x1b[2Jgone\n"


@pytest.mark.parametrize("host", ["x" * 64, "x" * 64 + ".example", ".".join(["x" * 60] * 5)])
def test_names_that_cannot_be_looked_up_are_no_hosts(host: str) -> None:
    for parse in (parse_host, parse_public_address):
        with pytest.raises(ValueError, match="is not a valid host"):
            parse(host)
