"""A tunnel without frames under any interleaving: what is said at one end is heard at the other, and ends and resets go through."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from tests.fuzz.ends import TICKS, End, check_ends, check_joined, deeds, run_on, use_scratch
from tests.unit.conftest import Tidy
from trionat.protocol.conversation import Side
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.stream import VisitorStream

Choices = list[
    tuple[int, int, int]
]  # whose turn, which of its deeds, and how far Trio goes on behind it


@settings(max_examples=100, deadline=None)
@given(
    choices=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(0, TICKS)),
        min_size=10,
        max_size=40,
    ),
    capacities=st.tuples(*2 * [st.sampled_from([1, 10, 100, 100_000])]),
    side=st.sampled_from(Side),
    polite=st.booleans(),
)
def test_ends_hear_each_other(
    choices: Choices, capacities: tuple[int, int], side: Side, polite: bool
) -> None:
    tidy = Tidy()

    async def main() -> None:
        plain, one = tidy.pair(capacities[0])
        wire, two = tidy.pair(capacities[1])
        ends = End(one), End(two)
        tunnel = RawTunnel(wire, VisitorStream(1, plain), side)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel.run)
            for who, choice, ticks in choices:
                if ends[who].gone:
                    continue
                steps = list(deeds(f"end {who}", ends[who], polite=polite))
                name, step = steps[choice % len(steps)]
                note(name)
                step()
                use_scratch()
                await run_on(ticks)
                check_joined(*ends)
            await let_them_finish(tidy, ends, tunnel)
        assert (tunnel.stream.failure is None) == tunnel.stream.over
        event(tunnel.stream.end)
        for end in ends:
            end.endpoint.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    tidy.check()


async def let_them_finish(tidy: Tidy, ends: tuple[End, End], tunnel: RawTunnel) -> None:
    """Both hear, then end, and the tunnel notices what is left to notice; afterwards it is over."""
    for endpoint in tidy.endpoints:
        endpoint.capacity = endpoint.largest_read = 100_000
    await let_them_hear(ends)
    tunnel.sweep()
    await let_them_hear(ends)
    if tunnel.stream.failure is None:
        check_ends(*ends)
    for end in ends:
        if not end.gone and not end.ended and end.seen != "reset":
            end.end()
    await let_them_hear(ends)
    assert tunnel.stream.over or tunnel.stream.failure is not None


async def let_them_hear(ends: tuple[End, End]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    heard = True
    while heard:
        heard = False
        for end in ends:
            heard |= not end.gone and end.listen(10_000)
        check_joined(*ends)
        await trio.testing.wait_all_tasks_blocked()
    check_joined(*ends)


@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("who", [0, 1])
async def test_a_reset_is_no_end_although_the_other_direction_was_told_of_it(
    tidy: Tidy, who: int, attempt: int
) -> None:
    """The kernel tells of a reset once; whoever asks next is told that the stream has ended."""
    plain, one = tidy.pair()
    wire, two = tidy.pair()
    ends = End(one), End(two)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RawTunnel(wire, VisitorStream(1, plain), Side.SERVER).run)
        if attempt % 2:
            await trio.testing.wait_all_tasks_blocked()
        ends[who].reset()
        ends[1 - who].say(b"to be written where the reset is")
        await trio.testing.wait_all_tasks_blocked()
    ends[1 - who].listen(1)
    assert ends[1 - who].seen == "reset"
    ends[1 - who].endpoint.close()
