"""A server that does anything at all: the client's session goes on, or ends with an error of the peer, and nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from tests.fuzz.peers import Deed, deeds, do, no_errors, pauses, writings
from tests.unit.client_side import Host
from tests.unit.conftest import Tidy
from tests.unit.memory_server import forwarder
from tests.unit.test_client_session import session_at
from trionat.errors import PeerError
from trionat.protocol.messages import (
    CAPABILITIES,
    RESUME,
    SECRET_BYTES,
    Demand,
    Ping,
    Resumption,
    Welcome,
    encode_message,
)

if TYPE_CHECKING:
    from tests.unit.memory import MemoryEndpoint

MOST_TUNNELS = 6

Move: TypeAlias = "tuple[int, Deed, bytes, float]"

moves: st.SearchStrategy[list[Move]] = st.lists(
    st.tuples(st.integers(0, 10), deeds, writings, pauses), min_size=3, max_size=30
)

WELCOME = Welcome(
    uid=1,
    secret=bytes(SECRET_BYTES),
    ports=(60001,),
    host="public.example",
    ping_interval=2.5,
    peer_timeout=8,
    max_tunnels=MOST_TUNNELS,
)
RESUMES = attrs.evolve(
    WELCOME,
    capabilities=(*CAPABILITIES, RESUME),
    resumption=Resumption(lease="lease", wait=5, buffer=100),
)


async def ping(control: MemoryEndpoint) -> None:
    """Keep the session up, as far as it is up to us."""
    while True:
        await trio.sleep(2.5)
        do("write", control, encode_message(Ping(1)))


@settings(max_examples=40, deadline=None)
@given(
    moves=moves,
    welcome=st.sampled_from([WELCOME, RESUMES, RESUMES, None]),
    demand=st.sampled_from([0, 1, 3, 2**64 - 1]),
)
def test_a_rogue_server_costs_its_own_session_at_most(
    moves: list[Move], welcome: Welcome | None, demand: int
) -> None:
    tidy = Tidy()

    async def main() -> None:
        host = Host(tidy, Path("unused"))
        over = "stopped by the test"
        try:
            async with trio.open_nursery() as nursery:
                session = session_at(host, forwarder(tidy, nursery))
                session.waiting_streams.most = 10

                async def expire() -> None:
                    while True:
                        session.waiting_streams.expire()
                        await trio.sleep(1)

                nursery.start_soon(expire)

                async def run() -> None:
                    nonlocal over
                    try:
                        await session.run()
                    except* PeerError as group:
                        over = type(group.exceptions[0]).__name__

                nursery.start_soon(run)
                await trio.testing.wait_all_tasks_blocked()
                if welcome is not None:
                    login = encode_message(welcome) + encode_message(Demand(demand))
                    do("write", host.ends[0], login)
                    nursery.start_soon(ping, host.ends[0])
                for number, deed, data, pause in moves:
                    await trio.sleep(pause)
                    await trio.testing.wait_all_tasks_blocked()
                    tunnels = [end for end in host.ends[1:] if not end.peer.closed]
                    assert len(tunnels) <= MOST_TUNNELS
                    end = tunnels[number % len(tunnels)] if number and tunnels else host.ends[0]
                    note("on a tunnel" if end in tunnels else "on the control connection")
                    do(deed, end, data)
                nursery.cancel_scope.cancel()
        finally:
            session.waiting_streams.drop_all("the test ends")
            host.go()
        event(over)

    with no_errors():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    tidy.check()
