"""A Redis in which somebody else writes: each piece of nonsense is one line, and everything else goes on."""

from __future__ import annotations

import base64
import logging
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.scale import Wire
from tests.cluster.test_node import PORTS, claim, cut, wait_for, wish
from tests.redis_server import RedisServer, running_redis
from tests.registry.redis_world import (
    SEAL,
    RedisWorld,
    config,
    identity,
    redis_world,
)
from trionat.address import TCPAddress
from trionat.errors import RefusedError, RegistryAwayError
from trionat.server.cluster.membership import look_at_nodes
from trionat.server.cluster.redis_link import require_library
from trionat.server.cluster.scripts import CHANNEL, HIGHEST_FENCE, KEYS, PREFIX
from trionat.server.cluster.seal import Seal
from trionat.server.cluster.table import readable
from trionat.server.registry.claim import TakenError
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from trionat.server.cluster.node import Node

pytestmark = pytest.mark.limit(40)


@pytest.fixture
async def world() -> AsyncIterator[RedisWorld]:
    async with redis_world(PORTS, len(PORTS)) as world:
        yield world


@asynccontextmanager
async def wire_to(server: RedisServer) -> AsyncIterator[Wire]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        yield Wire(stream)


async def write(world: RedisWorld, *commands: Sequence[object]) -> None:
    async with wire_to(world.server) as wire:
        await wire.ask(*commands)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _all_know(nodes: Sequence[Node], port: int) -> bool:
    return all(port in each.table.by_point for each in nodes)


def _nobody_knows(nodes: Sequence[Node], port: int) -> bool:
    return all(port not in each.table.by_point for each in nodes)


async def goes_on(world: RedisWorld, *nodes: Node) -> None:
    """Nobody has lost the link to Redis, and claims are granted, told and given back."""
    for number, node in enumerate(nodes):
        held = await node.registry.claim(wish(f"goes on {number}"))
        assert held is not None
        await wait_for(partial(_all_know, nodes, held.ports[0]))
        node.registry.release(held)
        await wait_for(partial(_nobody_knows, nodes, held.ports[0]))
    assert all(node.away is None for node in nodes)


# -- values ---------------------------------------------------------------------------------------------------------------

LONG = b"x" * 100_000


@pytest.mark.parametrize(
    "command",
    [
        ("ZADD", PREFIX + "bans", "inf", "192.0.2.1"),
        ("ZADD", PREFIX + "bans", "9e300", "192.0.2.1"),
        ("ZADD", PREFIX + "bans", "9999999999999", "two words"),
        ("ZADD", PREFIX + "bans", "9999999999999", b"\xff\xfe"),
        ("ZADD", PREFIX + "bans", "9999999999999", LONG),
        ("HSET", PREFIX + "figures", "one", "[1e999, Infinity]"),
        ("HSET", PREFIX + "figures", "one", "[" * 60_000),
        ("HSET", PREFIX + "nodes", "x y", LONG),
        ("HSET", PREFIX + "nodes", b"\xff", "ff ff 127.0.0.1:1"),
        ("HSET", PREFIX + "claims", b"\xff", "one ff 1 1 60002"),
        ("HSET", PREFIX + "claims", LONG, LONG),
        ("HSET", PREFIX + "claims", '["user", "with a blank"]', "one ff 1 1 60002"),
        ("HSET", PREFIX + "claims", r'["\ud800","half"]', "one ff 1 1 60002"),
        ("HSET", PREFIX + "cluster", "settle", "inf"),
        ("HSET", PREFIX + "cluster", "settle", "nan"),
        ("HSET", PREFIX + "cluster", "settle", "999999999999999"),
        ("HSET", PREFIX + "cluster", "last", "999999999999999", "since", "-1"),
        ("SET", PREFIX + "seq", "nonsense"),
        ("SET", PREFIX + "seq", "9223372036854775807"),
        ("SET", PREFIX + "seq", "-5"),
        ("SET", PREFIX + "fence", "nonsense"),
        ("SET", PREFIX + "fence", "inf"),
        ("SET", PREFIX + "fence", "9223372036854775807"),
        ("SET", PREFIX + "fence", str(HIGHEST_FENCE)),
        ("ZADD", PREFIX + "dead", "-inf", LONG),
        ("ZADD", PREFIX + "dead", "inf", "ff"),
        ("SADD", PREFIX + "user:user", LONG, b"\xff", "nonsense"),
        ("HSET", PREFIX + "failures", "192.0.2.9", "inf 1"),
        ("HSET", PREFIX + "failures", "192.0.2.9", "1.0 99999999999999999999"),
    ],
    ids=range(29),
)
async def test_a_value_that_is_nonsense(
    world: RedisWorld, command: tuple[str | bytes, ...]
) -> None:
    """It neither takes a node away, nor keeps one from coming."""
    one = await world.start("one")
    held = await claim(one, "a", 60001)
    banned: list[str] = []
    one.on_ban = lambda network, _: banned.append(network)
    await write(world, command)
    await one.registry.evict(held.key, "reason")
    one.note_failure("192.0.2.9", 5, 60, 600)
    two = await world.start("two")
    await wait_for(lambda: one.away is None and two.away is None)
    await goes_on(world, one, two)
    assert {each.name for each in await one.ask_nodes()} <= {"one", "two"}
    assert list(two.table.by_point) == [60001]
    assert two.table.by_point[60001].fence == held.fence
    limited = attrs.evolve(wish("b", 60002), limits=Limits(sessions=2))
    new = await two.registry.claim(limited)
    assert new is not None
    assert held.fence < new.fence < HIGHEST_FENCE
    assert banned in ([], ["192.0.2.1"])


async def test_a_beat_of_the_future(world: RedisWorld) -> None:
    """Whoever has it is nobody, or has another clock: it is gone after as long as everybody else."""
    one = await world.start("one")
    await write(
        world,
        ("HSET", PREFIX + "nodes", "ghost", "ff ff 127.0.0.1:1"),
        ("ZADD", PREFIX + "beats", "inf", "ghost"),
        ("ZADD", PREFIX + "beats", "9999999999999", "one"),
        ("HSET", PREFIX + "claims", '["user","x"]', "ghost ff 1 1 60002"),
        ("HSET", PREFIX + "points", "60002", '["user","x"]'),
    )
    cut(one)
    # The table is read before the new connection may be asked.
    await wait_for(lambda: "ghost" in one.table.nodes and one.away is None)
    await one.registry.evict(("user", "x"), "its client has come")
    await wait_for(lambda: "ghost" not in one.table.nodes, within=12)
    assert one.away is None


async def test_a_fence_that_nobody_can_have(
    world: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not believed; else every claim that comes would have to be higher, even in another Redis."""
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60001)
    await wait_for(lambda: 60001 in two.table.by_point and one._seq == two._seq)
    number = one._seq + 1
    await write(
        world,
        ("SET", PREFIX + "seq", number),
        ("PUBLISH", CHANNEL, f'{number} claim two ff {HIGHEST_FENCE} 60002 ["user","b"]'),
    )
    await wait_for(lambda: one._seq == two._seq == number)
    assert one.table.highest == held.fence
    assert 60002 not in one.table.by_point
    assert "was passed over" in lines(caplog)[0]
    new = await claim(two, "b", 60002)
    assert held.fence < new.fence < held.fence + 10
    await goes_on(world, one, two)


async def test_numbers_that_go_back_or_ahead(world: RedisWorld) -> None:
    """All of the table is read anew: what was told meanwhile may be lost."""
    one, two = await world.start("one"), await world.start("two")
    await write(world, ("SET", PREFIX + "seq", "1"))
    held = await claim(one, "a", 60001)
    await wait_for(lambda: 60001 in two.table.by_point, within=8)
    await write(world, ("PUBLISH", CHANNEL, "999999999 claim x"))
    one.registry.release(held)
    await wait_for(lambda: 60001 not in two.table.by_point, within=8)


# -- news -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        b"0 ban x y",
        b"0 ban inf 192.0.2.1",
        b"0 ban 60000 nobody's",
        b"0 ban 60000 " + b"1" * 60,
        b"0 later what",
        b"0 kick " + b"00" * 40,
        b"0 kick zz",
        b"0 evict one 1 1 [",
        b"0 " + b"x" * 100_000,
        b"\xff\xff",
        b"0 node \x1b[31m ff 127.0.0.1:1",
    ],
    ids=range(11),
)
async def test_a_message_that_is_nonsense_is_one_line_and_costs_no_link(
    world: RedisWorld, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one = await world.start("one")
    one.on_ban = lambda network, _: pytest.fail(network)
    one.on_kick = lambda request: pytest.fail(repr(request))
    generation = one.link._scope
    await write(world, ("PUBLISH", CHANNEL, message), ("PUBLISH", CHANNEL, message))
    await goes_on(world, one)
    assert one.link._scope is generation
    [line] = lines(caplog)
    assert "something in the cluster's Redis was passed over" in line
    assert line.isprintable()
    assert len(line) < 400


async def test_a_message_of_a_newer_version_is_named(
    world: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    one = await world.start("one")
    number = one._seq + 1
    await write(
        world,
        ("SET", PREFIX + "seq", number),
        ("PUBLISH", CHANNEL, f"{number} rename one two"),
    )
    await wait_for(lambda: one._seq == number)
    assert "a newer version may know 'rename'" in lines(caplog)[0]
    await goes_on(world, one)


async def test_a_kick_that_is_told_twice(world: RedisWorld) -> None:
    """Sealed as it is, whoever hears it could send it again, whenever he likes."""
    one, two = await world.start("one"), await world.start("two")
    kicked: list[bytes] = []
    two.on_kick = kicked.append
    heard: list[bytes] = []
    take = two.link.on_news

    def hear(message: bytes) -> None:
        heard.append(message)
        take(message)

    two.link.on_news = hear
    assert one.kick(b"request") == 1
    await wait_for(lambda: kicked == [b"request"])
    await write(world, ("PUBLISH", CHANNEL, heard[-1]), ("PUBLISH", CHANNEL, heard[-1]))
    await wait_for(lambda: len(heard) >= 3)
    assert kicked == [b"request"]
    old = SEAL.close("trionat kick 1", f"ff {time.time() - 3600:.0f} request".encode())
    await write(world, ("PUBLISH", CHANNEL, b"0 kick " + old.hex().encode()))
    await wait_for(lambda: len(heard) >= 4)
    assert kicked == [b"request"]
    await goes_on(world, one, two)


async def test_figures_that_no_node_has_told(world: RedisWorld) -> None:
    """Clients of a drained node go where these say, with their passwords."""
    one, two = await world.start("one"), await world.start("two")
    one.public, two.public = TCPAddress("one.example", 8007), TCPAddress("two.example", 8007)
    with trio.fail_after(10):
        while await one.find_others() != (two.public,):  # noqa: ASYNC110 - figures are as old as a beat
            await trio.sleep(0.1)
    world.nodes["two"][1].cancel()  # it would tell the truth again
    async with wire_to(world.server) as writer:
        (theirs,) = await writer.ask(("HGET", PREFIX + "figures", "one"))
        for forged in (b'[1, 2, "evil.example:8007", false]', theirs, b"[null]", b"{}", b""):
            await writer.ask(("HSET", PREFIX + "figures", "two", forged))
            assert await one.find_others() == ()
            status = {node.name: node for node in await one.ask_nodes()}
            assert status["two"].public is None


async def test_what_is_told_of_oneself_is_not_believed(world: RedisWorld) -> None:
    one = await world.start("one")
    before = one._seq
    held = await claim(one, "a", 60001)
    await wait_for(lambda: one._seq > before)
    number = one._seq
    await write(
        world,
        ("SET", PREFIX + "seq", number + 2),
        ("PUBLISH", CHANNEL, f"{number + 1} node one ff 192.0.2.1:1"),
        ("PUBLISH", CHANNEL, f"{number + 2} gone one {one.epoch}"),
    )
    await wait_for(lambda: one._seq == number + 2)
    assert one.table.by_point[60001].fence == held.fence
    assert one.table.nodes["one"].epoch == one.epoch


# -- claims ---------------------------------------------------------------------------------------------------------------


async def test_a_claim_that_is_told_again_by_somebody_else(world: RedisWorld) -> None:
    """An old epoch, an old fence: what has been given up does not come back."""
    one, two = await world.start("one"), await world.start("two")
    old = await claim(one, "a", 60001)
    await wait_for(lambda: 60001 in two.table.by_point)
    one.registry.release(old)
    await wait_for(lambda: 60001 not in two.table.by_point)
    new = await claim(two, "b", 60001)
    await wait_for(lambda: 60001 in one.table.by_point and one._seq == two._seq)
    number = two._seq
    await write(
        world,
        ("SET", PREFIX + "seq", number + 1),
        (
            "PUBLISH",
            CHANNEL,
            f'{number + 1} claim one {one.epoch} {old.fence} 60001 ["user","a"]',
        ),
    )
    await wait_for(lambda: one._seq == two._seq == number + 1)
    assert one.table.by_point[60001].fence == two.table.by_point[60001].fence == new.fence
    assert not two.registry.held["user", "b"].lost
    # And in the tables of Redis.
    await write(
        world,
        ("HSET", PREFIX + "claims", '["user","a"]', f"one {'f' * 16} {old.fence} 1 60001"),
    )
    three = await world.start("three")
    assert three.table.by_point[60001].fence == new.fence


@pytest.mark.parametrize(
    "node", [b"\xff\xfe", b"a\x1bb", b"n" * 5000], ids=["utf-8", "escape", "long"]
)
async def test_a_holder_with_a_name_that_is_none(world: RedisWorld, node: bytes) -> None:
    one = await world.start("one")
    await write(
        world,
        ("HSET", PREFIX + "nodes", node, "ff ff 127.0.0.1:1"),
        ("ZADD", PREFIX + "beats", "9999999999999", node),
        ("HSET", PREFIX + "claims", '["user","a"]', node + b" ff 1 1 60001"),
        ("HSET", PREFIX + "points", "60001", '["user","a"]'),
    )
    assert await one.registry.holder(("user", "a")) is None
    assert (await claim(one, "a", 60001)).ports == (60001,)


# -- who it is -------------------------------------------------------------------------------------------------------------


async def test_words_of_redis_are_one_line(world: RedisWorld) -> None:
    await world.start("one")
    await write(world, ("HSET", PREFIX + "cluster", "format", b"\x1b[2J\r\n" + b"9" * 40))
    two = world.make("two")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.run)
        await wait_for(lambda: "of another version of trionat" in (two.away or ""))
        assert (two.away or "").isprintable()
        nursery.cancel_scope.cancel()
    with pytest.raises(Exception, match="of another version") as caught:
        await look_at_nodes(config(world.server, "x"), SEAL)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        b"*0\r\n",
        b"$-1\r\n",
        b"+OK\r\n",
        b"*1\r\n*1\r\n:1\r\n",
        b"-ERR " + b"x" * 5000 + b"\r\n",
        b"%%%\r\n",
        b"*-7\r\n",
        b"",
    ],
    ids=range(8),
)
async def test_a_server_that_is_no_redis(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it says, that is a reason in one line, and no bug of ours."""
    require_library()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some(2**16) and answer:
                    await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        where = attrs.evolve(config(RedisServer(None, port), "x"), wait=False)  # type: ignore[arg-type]
        with pytest.raises(RegistryAwayError) as caught:
            await look_at_nodes(where, SEAL)
        nursery.cancel_scope.cancel()
    reason = str(caught.value)
    assert reason.startswith(f"Redis at 127.0.0.1:{port}: ")
    assert reason.isprintable()
    assert len(reason) < 300
    ours = [record for record in caplog.records if record.name.startswith("trionat")]
    assert not [record for record in ours if record.exc_info]


def test_what_is_shown_of_redis() -> None:
    assert readable(b"a\nb\x1b[2J\xff") == "a?b?[2J\N{REPLACEMENT CHARACTER}"
    assert len(readable("x" * 1000)) == 200


# -- secrets --------------------------------------------------------------------------------------------------------------


async def test_redis_never_has_a_secret(world: RedisWorld) -> None:
    """All that any node sends, as Redis itself sees it."""
    secrets = [identity().key, identity().ticket_key, SEAL.key, b"a kick's request"]
    seen = bytearray()
    async with trio.open_nursery() as nursery:
        async with wire_to(world.server) as monitor:
            await monitor.ask(("MONITOR",))

            async def read() -> None:
                with suppress(trio.ClosedResourceError):
                    while more := await monitor.stream.receive_some(2**16):
                        seen.extend(more)

            nursery.start_soon(read)
            one, two = await world.start("one"), await world.start("two")
            held = await claim(one, "a", 60001)
            one.registry.occupy(held, occupied=False)
            await two.registry.evict(held.key, "reason")
            one.note_failure("192.0.2.1", 1, 60, 600)
            assert one.kick(b"a kick's request")
            await one.ask_nodes()
            one.registry.release(held)
            await two.leave()
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
    assert b"192.0.2.1" in seen
    assert one.epoch.encode() in seen
    for secret in secrets:
        parts = [secret[start : start + 24] for start in range(0, len(secret) - 23, 24)] or [secret]
        for part in parts:
            assert part not in seen
            assert part.hex().encode() not in seen
            assert base64.b64encode(part)[:24] not in seen


async def test_another_key_opens_nothing(world: RedisWorld) -> None:
    await world.start("one")
    async with wire_to(world.server) as wire:
        [sealed] = await wire.ask(("HGET", PREFIX + "cluster", "identity"))
    with pytest.raises(ValueError, match="another key"):
        Seal(bytes(32)).open("trionat identity 1", sealed)


# -- whatever comes -------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64).map(str),
    st.sampled_from(["inf", "-inf", "nan", "1e300", "0x10", "", " 1", "1 ", "-0", "00"]),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            "one",
            "two",
            "ghost",
            "60001",
            "60002",
            "192.0.2.1",
            '["user","a"]',
            '["user","b"]',
            "format",
            "settle",
            "run",
        ]
    ),
    NUMBERS,
    st.binary(max_size=30),
)
VALUES = st.one_of(
    WORDS,
    st.lists(WORDS, max_size=6).map(
        lambda words: b" ".join(w if isinstance(w, bytes) else w.encode() for w in words)
    ),
    st.builds(
        "{} {} {} 1 {}".format, st.sampled_from(["one", "ghost"]), st.just("ff"), NUMBERS, NUMBERS
    ),
)
SCORES = st.one_of(st.floats(allow_nan=False).map(repr), st.sampled_from(["inf", "-inf", "1"]))


def commands() -> st.SearchStrategy[tuple[str | bytes, ...]]:
    keys = {key.removeprefix(PREFIX): key for key in KEYS}
    hashes = st.sampled_from(["nodes", "figures", "claims", "points", "failures", "cluster"])
    return st.one_of(
        st.tuples(st.just("HSET"), hashes.map(keys.__getitem__), WORDS, VALUES).filter(
            # A cluster of another key or version is refused, as it has to be.
            lambda command: (
                command[1] != keys["cluster"]
                or command[2] not in ("format", "id", "identity", b"id")
            )
        ),
        st.tuples(
            st.just("ZADD"),
            st.sampled_from(["beats", "dead", "bans", "failed"]).map(keys.__getitem__),
            SCORES,
            WORDS,
        ),
        st.tuples(st.just("SET"), st.sampled_from(["fence", "seq"]).map(keys.__getitem__), VALUES),
        st.tuples(
            st.just("SADD"),
            st.sampled_from(["user:user", "held:ff", "drained"]).map(PREFIX.__add__),
            VALUES,
        ),
        st.tuples(st.just("DEL"), st.sampled_from([key for key in KEYS if key != keys["cluster"]])),
        st.tuples(st.just("PUBLISH"), st.just(CHANNEL), VALUES),
        st.tuples(
            st.just("PUBLISH"),
            st.just(CHANNEL),
            st.builds(
                "{} {} {}".format,
                NUMBERS,
                st.sampled_from(["claim", "free", "node", "gone", "evict", "ban", "kick"]),
                VALUES,
            ),
        ),
    )


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[RedisServer]:
    require_library()
    with running_redis() as server:
        yield server


@given(found=st.lists(commands(), min_size=1, max_size=12))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.slow
def test_whatever_is_in_redis(fuzzed: RedisServer, found: list[tuple[str | bytes, ...]]) -> None:
    """No node ends, none has a bug, and where all of it is taken away again, they go on."""
    trio.run(_survive, fuzzed, found)


async def _survive(server: RedisServer, found: list[tuple[str | bytes, ...]]) -> None:
    async with wire_to(server) as wire, trio.open_nursery() as nursery:
        await wire.ask(("FLUSHALL",))
        await trio.to_thread.run_sync(server.empty)
        world = RedisWorld(server, nursery, PORTS, len(PORTS))
        one = await world.start("one")
        held = await claim(one, "a", 60001)
        for command in found:
            with suppress(RuntimeError):  # Redis itself refuses it
                await wire.ask(command)
        two = world.make("two")
        nursery.start_soon(two.run)
        with trio.move_on_after(1):
            await two.wait_joined()
        for node in (one, two):
            for key in (held.key, ("user", "b"), ("user", "x")):
                with suppress(RefusedError):
                    await node.registry.evict(key, "reason")
                with suppress(RefusedError):
                    await node.registry.holder(key)
            with suppress(RefusedError, TakenError):
                await node.registry.claim(attrs.evolve(wish("b"), limits=Limits(sessions=1)))
            node.note_failure("192.0.2.1", 3, 60, 600)
            await node.ask_nodes()
            assert len(node.table.by_key) < 100
            assert (node.away or "").isprintable()
            assert not node.link._told_bugs
        await trio.to_thread.run_sync(server.empty)
        with trio.fail_after(15):
            while one.away or two.away:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert not one.link._told_bugs
        assert not two.link._told_bugs
        nursery.cancel_scope.cancel()
