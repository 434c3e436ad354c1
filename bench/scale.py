"""How far one Redis goes for a cluster: `python -m bench.scale`, or `nox -s scale` for the large form.

The scripts, the link to Redis, the nodes and their routing tables are those of the product, on a Redis that is started here. Thousands of nodes are
too many for one machine, so most of them only join, beat and claim: their scripts are sent over one connection, one behind the other without a
wait between. Which figure is of real nodes and which of such ones is said beside it. Redis's own counters are what is looked at, as far as they tell:
they do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from bench.machine import describe, is_quiet
from bench.program import HOST, Program, find, free_port, running, wait_listening
from trionat.address import TCPAddress
from trionat.config.cluster import ClusterConfig
from trionat.errors import RefusedError
from trionat.protocol.messages import ServiceRequest
from trionat.server.cluster import table as tables
from trionat.server.cluster.identity import Identity
from trionat.server.cluster.node import Node
from trionat.server.cluster.redis_link import require_library
from trionat.server.cluster.scripts import BEAT_ONCE, CHANNEL, CLAIM, FORMAT, HOLD, JOIN, KEYS
from trionat.server.cluster.seal import Seal
from trionat.server.cluster.table import NodeEntry, RoutingTable, encode_key, read_claim
from trionat.server.registry.claim import Wish
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.base import Limits
from trionat.transport.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from trionat.server.cluster.scripts import Script

_SEAL: Final = Seal(bytes(range(32)))
_CHUNK: Final = 100
"""Leases that a node tells at once, and commands that are sent at once."""

_KEPT_ALIVE: Final = 1.0
"""Seconds between two commands that keep all simulated nodes alive, while something else than beats is measured."""

_READS: Final = 600
"""Seconds for a node that starts."""

_CONVERGES: Final = 240
"""Seconds for real nodes to know all again."""

_FIRST_PORT: Final = 1024
_HIGHEST_PORT: Final = 2**21
"""What real nodes believe here. A million leases have more ports than there are: see the notes."""


@attrs.frozen
class Sizes:
    """How much of everything. `held` is how many leases real nodes hold when Redis is started anew."""

    nodes: int
    leases: int
    claims: int
    subscribers: int
    real: int
    held: int


@attrs.define(eq=False)
class Wire:
    """A connection to Redis that sends many commands before it reads their answers."""

    stream: trio.SocketStream
    _unread: bytearray = attrs.field(init=False, factory=bytearray)

    async def ask(self, *commands: Sequence[object]) -> list[Any]:
        """Return the answers; an error of Redis is raised as `RuntimeError`."""
        answers: list[Any] = []

        async def read() -> None:
            for _ in commands:
                answers.append(await self._answer())  # noqa: PERF401 - an error leaves those before it

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await self.stream.send_all(b"".join(map(_encoded, commands)))
        return answers

    async def drain(self) -> None:
        """Read and forget, until cancelled or closed."""
        while await self.stream.receive_some(2**16):
            pass

    async def _answer(self) -> Any:
        line = await self._line()
        kind, text = line[:1], line[1:]
        if kind == b"-":
            raise RuntimeError(text.decode())
        if kind == b":":
            return int(text)
        if kind == b"$":
            return await self._bulk(int(text))
        if kind == b"*":
            return [await self._answer() for _ in range(int(text))]
        return text

    async def _line(self) -> bytes:
        while (end := self._unread.find(b"\r\n")) < 0:
            await self._more()
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    async def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        while len(self._unread) < size + 2:
            await self._more()
        content = bytes(self._unread[:size])
        del self._unread[: size + 2]
        return content

    async def _more(self) -> None:
        more = await self.stream.receive_some(2**16)
        if not more:
            raise RuntimeError("Redis has closed the connection")
        self._unread += more


def _encoded(command: Sequence[object]) -> bytes:
    parts = [each if isinstance(each, bytes) else str(each).encode() for each in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


@attrs.frozen
class Counters:
    """Of Redis: processor time in seconds; memory, sent and received in bytes."""

    processor: float
    memory: int
    sent: int
    received: int


@attrs.define(eq=False)
class Bench:
    """A Redis with simulated nodes on it."""

    folder: Path
    port: int
    wire: Wire
    sizes: Sizes
    digests: dict[Script, bytes] = attrs.field(init=False, factory=dict)
    identity: Identity = attrs.field(init=False)
    rows: list[tuple[str, str, str]] = attrs.field(init=False, factory=list)
    names: list[str] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.identity = Identity(*make_certificate(), bytes(32))

    async def load(self) -> None:
        """Bring the scripts to Redis."""
        for script in (JOIN, BEAT_ONCE, CLAIM, HOLD):
            [self.digests[script]] = await self.wire.ask(("SCRIPT", "LOAD", script.text))

    def script(self, script: Script, *args: object) -> list[object]:
        """Return the command that runs a script."""
        return ["EVALSHA", self.digests[script], len(KEYS), *KEYS, *args]

    async def counters(self) -> Counters:
        """Ask Redis."""
        [info] = await self.wire.ask(("INFO",))
        found = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return Counters(
            float(found["used_cpu_sys"]) + float(found["used_cpu_user"]),
            int(found["used_memory"]),
            int(found["total_net_output_bytes"]),
            int(found["total_net_input_bytes"]),
        )

    def tell(self, what: str, figure: str, how: str) -> None:
        """Print a row."""
        self.rows.append((what, figure, how))
        print(f"| {what} | {figure} | {how} |", flush=True)

    def node(self, name: str) -> Node:
        """Return a real node."""
        return Node(
            config=ClusterConfig(
                redis=f"redis://{HOST}:{self.port}",
                node=name,
                node_addr=TCPAddress(HOST, 8009),
                key_file=Path("unused"),
            ),
            seal=_SEAL,
            identity=self.identity,
            member=f"{abs(hash(name)):032x}"[:32],
            pool=PortPool([VisitPort(number) for number in range(_FIRST_PORT, 2**16)]),
            slots=2**20,
        )


def epoch_of(number: int) -> str:
    """Return the epoch of a simulated node."""
    return f"{number + 1:016x}"


def lease(number: int) -> tuple[str, str]:
    """Return the key and the port of a lease, as Redis knows them."""
    return encode_key((f"user-{number % 1000}", f"client-{number:032x}")), str(_FIRST_PORT + number)


async def run_scripts(bench: Bench, commands: Iterator[list[object]]) -> list[Any]:
    """Run many scripts, a hundred at a time."""
    answers: list[Any] = []
    chunk: list[list[object]] = []
    for command in commands:
        chunk.append(command)
        if len(chunk) == _CHUNK:
            answers += await bench.wire.ask(*chunk)
            chunk.clear()
    if chunk:
        answers += await bench.wire.ask(*chunk)
    return answers


async def join_all(bench: Bench) -> None:
    """All simulated nodes join."""
    run_id = await _run_id(bench.wire)
    sealed = bench.identity.seal(_SEAL)
    bench.names = [f"simulated-{number}" for number in range(bench.sizes.nodes)]
    await bench.wire.ask(("HSET", KEYS[0], "run", run_id, "last", round(time.time() * 1000)))
    before = await bench.counters()
    answers = await run_scripts(
        bench,
        (
            bench.script(
                *(JOIN, name, epoch_of(number), f"{number:032x}", f"{HOST}:{8009}", 0),
                *(run_id, _SEAL.cluster_id, FORMAT, sealed, 30_000),
            )
            for number, name in enumerate(bench.names)
        ),
    )
    assert all(answer[0] == b"ok" for answer in answers), answers[0]
    after = await bench.counters()
    nodes = bench.sizes.nodes
    bench.tell(
        "a node joins, processor time of Redis",
        f"{(after.processor - before.processor) / nodes * 1e6:.0f} us",
        f"{nodes} simulated nodes",
    )
    bench.tell(
        "memory of Redis for a node", f"{(after.memory - before.memory) / nodes:.0f} B", "the same"
    )


async def _run_id(wire: Wire) -> str:
    [info] = await wire.ask(("INFO", "server"))
    lines: list[str] = info.decode().splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith("run_id:"))


async def beat_all(bench: Bench, rounds: int) -> None:
    """All simulated nodes beat."""
    before = await bench.counters()
    for _ in range(rounds):
        answers = await run_scripts(
            bench,
            (
                bench.script(BEAT_ONCE, name, epoch_of(number), 0, "[3, 14]", 30_000)
                for number, name in enumerate(bench.names)
            ),
        )
        assert all(answer[0] == b"ok" for answer in answers), answers[0]
    after = await bench.counters()
    beats = rounds * len(bench.names)
    bench.tell(
        "a beat, processor time of Redis",
        f"{(after.processor - before.processor) / beats * 1e6:.1f} us",
        f"{len(bench.names)} simulated nodes, {beats} beats",
    )


async def beat_of_one(bench: Bench, held: int) -> None:
    """What a beat of one node costs, by what it holds."""
    before = await bench.counters()
    beats = 5000
    await run_scripts(
        bench,
        (
            bench.script(BEAT_ONCE, bench.names[0], epoch_of(0), 0, "[3, 14]", 30_000)
            for _ in range(beats)
        ),
    )
    after = await bench.counters()
    bench.tell(
        f"a beat of a node that holds {held} leases",
        f"{(after.processor - before.processor) / beats * 1e6:.1f} us",
        "a simulated node",
    )


def holds(
    bench: Bench, first: int, last: int, *, owner: int | None = None, known: int = 0
) -> Iterator[list[object]]:
    """Return the commands by which nodes tell these leases; all of them by one node, or one hundred by each. `known`: for the second time."""
    for start in range(first, last, _CHUNK):
        number = start // _CHUNK % len(bench.names) if owner is None else owner
        args: list[object] = []
        for each in range(start, min(start + _CHUNK, last)):
            key, port = lease(each)
            args += [key, each + 1, 1, port]
        yield bench.script(HOLD, bench.names[number], epoch_of(number), last, known, 0, *args)


async def hold_all(bench: Bench) -> None:
    """Simulated nodes tell what they hold, as they do when Redis is back empty."""
    sizes = bench.sizes
    await beat_of_one(bench, 0)
    large = min(sizes.leases, 100_000) // 2
    await run_scripts(bench, holds(bench, 0, large, owner=0))
    await beat_of_one(bench, large)
    before = await bench.counters()
    await run_scripts(bench, holds(bench, large, sizes.leases))
    after = await bench.counters()
    told = sizes.leases - large
    bench.tell(
        "a lease is told anew, processor time of Redis",
        f"{(after.processor - before.processor) / told * 1e6:.1f} us",
        f"{told} leases by simulated nodes; nobody listens",
    )
    bench.tell(
        "memory of Redis for a lease", f"{(after.memory - before.memory) / told:.0f} B", "the same"
    )
    before = await bench.counters()
    again = min(told, 100_000)
    await run_scripts(bench, holds(bench, large, large + again, known=1))
    after = await bench.counters()
    bench.tell(
        "a lease is told that Redis knows already",
        f"{(after.processor - before.processor) / again * 1e6:.1f} us",
        f"{again} leases by simulated nodes",
    )


async def claim_some(bench: Bench) -> None:
    """Simulated nodes claim, without and with somebody who listens."""
    sizes = bench.sizes
    none = await _claim(bench, sizes.leases)
    bench.tell(
        "a claim, processor time of Redis",
        f"{none.processor * 1e6:.0f} us",
        f"{sizes.claims} claims by simulated nodes; nobody listens",
    )
    bench.tell(
        "a claim on the wire",
        f"{none.received:.0f} B to Redis, {none.sent:.0f} B back",
        "the same",
    )
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _ in range(sizes.subscribers):
            wire = await stack.enter_async_context(connected(bench.port))
            await wire.ask(("SUBSCRIBE", CHANNEL))
            nursery.start_soon(wire.drain)
        some = await _claim(bench, sizes.leases + sizes.claims)
        nursery.cancel_scope.cancel()
    bench.tell(
        "a claim for each node that listens",
        f"{(some.sent - none.sent) / sizes.subscribers:.0f} B,"
        f" {(some.processor - none.processor) / sizes.subscribers * 1e6:.1f} us of Redis",
        f"{sizes.subscribers} real subscriptions, which read and forget",
    )


@attrs.frozen
class _PerClaim:
    processor: float
    sent: float
    received: float


async def _claim(bench: Bench, first: int) -> _PerClaim:
    claims = bench.sizes.claims
    commands = []
    for each in range(first, first + claims):
        key, port = lease(each)
        number = each % len(bench.names)
        commands.append(
            bench.script(CLAIM, bench.names[number], epoch_of(number), 0, key, -1, port, "")
        )
    before = await bench.counters()
    answers = await run_scripts(bench, iter(commands))
    assert all(answer[0] == b"ok" for answer in answers), answers[0]
    after = await bench.counters()
    return _PerClaim(
        (after.processor - before.processor) / claims,
        (after.sent - before.sent) / claims,
        (after.received - before.received) / claims,
    )


async def claim_of_limited(bench: Bench) -> None:
    """What a claim costs where the user has a limit of sessions, and many already."""
    many = bench.sizes.claims
    key = [encode_key(("limited", f"client-{number}")) for number in range(many + 200)]
    port = bench.sizes.leases + 2 * many + _FIRST_PORT
    figures: list[float] = []
    done = 0
    for amount in (100, many - 100, 100):
        before = await bench.counters()
        answers = await run_scripts(
            bench,
            (
                bench.script(
                    CLAIM, bench.names[0], epoch_of(0), 0, key[number], 10**6, port + number, ""
                )
                for number in range(done, done + amount)
            ),
        )
        assert all(answer[0] == b"ok" for answer in answers), answers[0]
        done += amount
        after = await bench.counters()
        figures.append((after.processor - before.processor) / amount)
    bench.tell(
        "a claim of a user with a limit of sessions",
        f"{figures[0] * 1e6:.0f} us with 100 leases, {figures[2] * 1e6:.0f} us with {many}",
        "by a simulated node",
    )


def memory() -> int:
    """Return what this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def table_of(bench: Bench) -> None:
    """What the routing table takes, and what a message of one claim costs a node."""
    table = RoutingTable()
    table.put_node(NodeEntry("simulated-0", epoch_of(0), TCPAddress(HOST, 8009)))
    before, began = memory(), time.process_time()
    for number in range(bench.sizes.leases):
        key, port = lease(number)
        table.put(read_claim("simulated-0", epoch_of(0), str(number + 1), port, key))
    seconds = time.process_time() - began
    entries = len(table.by_key)
    bench.tell(
        "memory of a node for a lease",
        f"{(memory() - before) / entries:.0f} B",
        f"a real routing table with {entries} entries",
    )
    bench.tell(
        "a lease is read into the table", f"{seconds / entries * 1e6:.1f} us of a node", "the same"
    )


async def read_snapshot(bench: Bench) -> None:
    """What a node that starts takes for the whole table."""
    node = bench.node("starts")
    began, used = trio.current_time(), time.process_time()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - before - 0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(node.run)
        with trio.move_on_after(_READS) as scope:
            await node.wait_joined()
        seconds, entries = trio.current_time() - began, len(node.table.by_key)
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        bench.tell("a node starts", f"NOT within {_READS} s ({node.away})", "a real node")
        return
    bench.tell(
        "a node starts, and reads the whole table",
        f"{seconds:.2f} s, {time.process_time() - used:.2f} s of its processor,"
        f" {longest:.2f} s of them in one piece at most",
        f"a real node, {entries} leases",
    )


async def claim_really(bench: Bench, nodes: list[Node], count: int) -> None:
    """Real nodes claim, each one client after another, as they do."""

    async def claim(node: Node, first: int) -> None:
        for number in range(first, first + count // len(nodes)):
            wish = Wish(
                key=(f"user-{number % 100}", f"client-{number:032x}"),
                services=(ServiceRequest(visit_port=None),),
                limits=Limits(),
            )
            claim = None
            while claim is None:
                with suppress(
                    RefusedError
                ):  # Redis was slow for once; a client comes again as well
                    claim = await node.registry.claim(wish)
                if claim is None:
                    await trio.sleep(0.1)

    began, used = trio.current_time(), time.process_time()
    async with trio.open_nursery() as nursery:
        for index, node in enumerate(nodes):
            nursery.start_soon(claim, node, index * count)
    seconds = trio.current_time() - began
    done = count // len(nodes) * len(nodes)
    bench.tell(
        "claims of real nodes",
        f"{done / seconds:.0f}/s; {(time.process_time() - used) / done * 1e6:.0f} us of the processor of all {len(nodes)}",
        f"{len(nodes)} real nodes in one process, {done} leases",
    )


async def restart(bench: Bench) -> None:
    """Redis is lost with all that it had: how long until all real nodes know everything again."""
    sizes = bench.sizes
    nodes = [bench.node(f"real-{number}") for number in range(sizes.real)]
    async with trio.open_nursery() as nursery:
        async with redis_server(bench.folder, bench.port, "second"):
            for node in nodes:
                nursery.start_soon(node.run)
            for node in nodes:
                await node.wait_joined()
            await trio.sleep(3)  # a new Redis: nobody may claim at first
            await claim_really(bench, nodes, sizes.held)
        held = sum(len(node.registry.held) for node in nodes)
        while not all(node.away for node in nodes):  # noqa: ASYNC110 - it is of the nodes
            await trio.sleep(0.02)
        async with redis_server(bench.folder, bench.port, "third"):
            began, used = trio.current_time(), time.process_time()
            with trio.move_on_after(_CONVERGES) as scope:  # noqa: ASYNC912 - there is one while anything is missing
                while not all(  # noqa: ASYNC110 - as above
                    node.away is None and len(node.table.by_key) == held for node in nodes
                ):
                    await trio.sleep(0.02)
            seconds, processor = trio.current_time() - began, time.process_time() - used
            async with connected(bench.port) as wire:
                [news] = await wire.ask(("GET", KEYS[7]))
            nursery.cancel_scope.cancel()
    words = f"NOT within {_CONVERGES} s" if scope.cancelled_caught else f"{seconds:.1f} s"
    bench.tell(
        "Redis is started anew, until all nodes know all again",
        f"{words}, {processor:.1f} s of the processor of all {len(nodes)}, {int(news)} news",
        f"{len(nodes)} real nodes in one process, {held} leases",
    )


@asynccontextmanager
async def redis_server(folder: Path, port: int, name: str) -> AsyncGenerator[Program]:
    """Run a Redis of our own, which keeps nothing."""
    command = [find("redis-server", package="redis-server"), "--bind", HOST, "--port", port]
    command += ["--dir", folder, "--save", "", "--appendonly", "no"]
    async with running(f"redis-{name}", command, folder, may_end=True) as program:
        await wait_listening(port)
        yield program


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[Wire]:
    """Give a connection to it."""
    async with await trio.open_tcp_stream(HOST, port) as stream:
        yield Wire(stream)


async def keep_alive(port: int, names: list[str]) -> None:
    """Keep simulated nodes alive while they do not beat, by one command for all of them."""
    async with connected(port) as wire:
        while True:
            [(seconds, _)] = await wire.ask(("TIME",))
            beats = [part for name in names for part in (int(seconds) * 1000, name)]
            if beats:
                await wire.ask(("ZADD", KEYS[2], *beats))
            await trio.sleep(_KEPT_ALIVE)


async def measure(sizes: Sizes) -> None:
    """Measure all of it, and print it as a table of Markdown."""
    facts = describe()
    if not is_quiet(facts):
        print("**The machine was busy with other things: figures in seconds are too high.**\n")
    print("; ".join(f"{name}: {fact}" for name, fact in facts.items()) + "\n")
    print("| what | figure | of what |\n| --- | --- | --- |")
    require_library()
    believed = tables.HIGHEST_PORT
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trionat-scale-")))
        port = free_port()
        async with redis_server(folder, port, "first"), connected(port) as wire:
            bench = Bench(folder, port, wire, sizes)
            await bench.load()
            await join_all(bench)
            await beat_all(bench, rounds=2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_alive, port, bench.names)
                await hold_all(bench)
                await claim_some(bench)
                await claim_of_limited(bench)
                tables.HIGHEST_PORT = _HIGHEST_PORT
                try:
                    table_of(bench)
                    await read_snapshot(bench)
                finally:
                    tables.HIGHEST_PORT = believed
                nursery.cancel_scope.cancel()
            await beat_all(bench, rounds=2)
        await restart(bench)
    print(
        "\nA lease has at least one port here, and a cluster has 65,535 of them. For more leases ports above that were made up, which"
        " only this program lets nodes believe; they stand for names."
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: shows that it works")
    parser.add_argument("--nodes", type=int, default=1000, help="simulated ones, at most 4000")
    parser.add_argument("--leases", type=int, default=50_000)
    parser.add_argument("--claims", type=int, default=2000, help="twice as many are made")
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--real", type=int, default=4, help="real nodes")
    parser.add_argument("--held", type=int, default=8000, help="leases of real nodes")
    options = parser.parse_args()
    if options.quick:
        sizes = Sizes(nodes=50, leases=2000, claims=200, subscribers=5, real=2, held=200)
    else:
        sizes = Sizes(**{name: getattr(options, name) for name in attrs.fields_dict(Sizes)})
    trio.run(measure, sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
