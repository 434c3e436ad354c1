"""A node's life in its cluster: it joins, tells what it holds, learns what all others do, and beats.

All of that happens anew in every generation of the link to Redis: whatever was missed, or lost at Redis, is made good in the same way. So there is one
way only to come up, at the first start, after a network that was cut, after a Redis that was away, and after one that is empty.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress, parse_tcp_address
from trionat.errors import RegistryAwayError, StartupError
from trionat.log import get_logger
from trionat.networks import parse_network
from trionat.protocol.client_hello import ROUTE_LENGTH
from trionat.server.cluster.identity import Identity
from trionat.server.cluster.redis_link import RedisLink
from trionat.server.cluster.registry import RedisRegistry
from trionat.server.cluster.scripts import (
    BANS,
    BEAT,
    BEAT_ONCE,
    DEAD_AFTER,
    DRAIN,
    FAIL,
    FORMAT,
    HOLD,
    JOIN,
    LEAVE,
    LIFT,
    NODES,
    RELEASE,
    SCAN,
    TELL,
)
from trionat.server.cluster.table import (
    MOST_CLAIMS,
    NodeEntry,
    RoutingTable,
    decode_key,
    encode_key,
    read_claim,
    read_epoch,
    read_fence,
    read_node,
    readable,
    split_news,
)
from trionat.server.events.event import node_gone, node_up
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.cluster import ClusterConfig
    from trionat.server.cluster.redis_link import Answer
    from trionat.server.cluster.seal import Seal
    from trionat.server.visitors.ports import PortPool

log = get_logger(__name__)

_CHUNK: Final = 100
"""Claims that are told at once: some milliseconds of Redis."""

_SLICE: Final = 500
"""Claims that are looked at in one piece: some milliseconds, in which nobody else runs."""

_MOST_BUFFERED: Final = 64 * 1024 * 1024
"""Bytes of news that wait for the snapshot to be there."""

_NOT_IN_ROUTES: Final = str.maketrans("", "", "-_")

_KICK: Final = "trionat kick 1"
_KICK_HOLDS: Final = 600.0
"""Seconds by which the clocks of two nodes may differ. A kick that is older was kept by somebody, to send it once more."""
_AGAIN: Final = 0.5
_TELL_INTERVAL: Final = 60.0
_HIGHEST_BAN: Final = 86_400_000.0


@attrs.frozen(kw_only=True)
class NodeStatus:
    """What is known of a node: `silent` is for how many seconds it has not beaten (None where Redis does not tell), `public` where clients reach it."""

    name: str
    address: str
    silent: float | None
    sessions: int | None
    visitors: int | None
    public: str | None = None
    drained: bool = False


def _ignore(network: str, seconds: float = 0.0) -> None:
    """Nobody listens yet."""


@attrs.define(eq=False)
class Node:
    """See the module. `run` has to run.

    `member` tells the state folders of nodes apart, so that a node that was started anew takes its name over at once, and another one does not.
    `reservation` is for how many seconds the ports of a node that is gone are kept for its clients. `figures` is what `status` shows of this node: sessions and visitors; `public` is where clients reach it. `on_ban`, `on_lift` and `on_kick` are called when another node has banned a
    network, for so many seconds, or has lifted a ban, or has sent somebody away. `events` is told of nodes that come and go, by one node alone: of those that are there otherwise, the first by name.
    """

    config: ClusterConfig
    seal: Seal
    identity: Identity
    member: str
    pool: PortPool
    slots: int
    reservation: float = 30.0
    figures: Callable[[], tuple[int, int]] = lambda: (0, 0)
    on_ban: Callable[[str, float], None] = _ignore
    on_lift: Callable[[str], object] = _ignore
    on_kick: Callable[[bytes], None] = lambda _: None
    public: TCPAddress | None = None
    events: Hub = attrs.field(factory=Hub)
    epoch: str = attrs.field(factory=lambda: secrets.token_hex(8))
    table: RoutingTable = attrs.field(init=False, factory=RoutingTable)
    link: RedisLink = attrs.field(init=False)
    registry: RedisRegistry = attrs.field(init=False)
    _sealed: bytes = attrs.field(init=False, repr=False)
    _seq: int = attrs.field(init=False, default=0)
    _buffer: deque[bytes] | None = attrs.field(init=False, default=None)
    _buffered: int = attrs.field(init=False, default=0)
    _is_known: bool = attrs.field(init=False, default=False)
    _missed: trio.Event = attrs.field(init=False, factory=trio.Event)
    _joined: trio.Event = attrs.field(init=False, factory=trio.Event)
    _kicks: dict[bytes, float] = attrs.field(init=False, factory=lambda: {})
    _told_nonsense: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        self._sealed = self.identity.seal(self.seal)
        self.link = RedisLink(self.config, self._attend, self._hear)
        self.registry = RedisRegistry(
            self.link, self.table, self.pool, self.slots, self.name, self.epoch, self._reserve
        )

    @property
    def name(self) -> str:
        """What this node is called."""
        return self.config.node

    @property
    def route(self) -> str:
        """What leads a client's tunnels to this node, where a proxy stands before several: its name, written as a route has to be."""
        return route_of(self.name)

    @property
    def _reserve(self) -> int:
        return round(self.reservation * 1000)

    @property
    def address(self) -> TCPAddress:
        """Where the others reach it."""
        return self.config.node_addr

    @property
    def away(self) -> str | None:
        """Why Redis cannot be asked; None where it can."""
        if self.registry.is_ready:
            return None
        return self.link.reason or "this node is just joining"

    async def run(self) -> None:
        """Be a node until cancelled."""
        await self.link.run()

    async def wait_joined(self) -> None:
        """Wait until Redis has known this node for the first time."""
        await self._joined.wait()

    async def drain(self) -> None:
        """Offer what this node holds: a client that comes to another node takes its ports along, and needs nothing of this one. Waits until Redis knows.

        From then on `RedisRegistry.on_moved` is called for each that does so.
        """
        self.registry.is_offered = True
        while True:
            try:
                if (await self.link.call(DRAIN, self.name, self.epoch))[0] == b"ok":
                    return
            except RegistryAwayError as error:
                log.debug("the other nodes cannot be told now", reason=str(error))
            await trio.sleep(_AGAIN)

    async def find_others(self) -> tuple[TCPAddress, ...]:
        """Return where clients of this node may go: the public addresses of the nodes that are there and not drained.

        Its own is among them where others have the same: whoever dials it comes to one of them sooner or later.
        """
        return tuple(
            dict.fromkeys(
                parse_tcp_address(node.public)
                for node in await self.ask_nodes()
                if node.public is not None
                and node.name != self.name
                and not node.drained
                and (node.silent is None or node.silent <= DEAD_AFTER)
            )
        )

    async def leave(self) -> None:
        """Tell the others that this node is gone; best effort, within a second."""
        try:
            with trio.move_on_after(1.0):
                await self.link.call(LEAVE, self.name, self.epoch)
        except RegistryAwayError as error:
            log.debug("could not leave the cluster", reason=str(error))

    # -- a generation ------------------------------------------------------------------------------------------------

    async def _attend(self) -> None:
        self._buffer, self._buffered, self._missed = deque(), 0, trio.Event()
        try:
            settle = await self._join()
            async with trio.open_nursery() as nursery:
                # From now on: with much to tell and to read, all others would think this node dead before it is through.
                nursery.start_soon(self._beat_on, settle, name="beat")
                if self.registry.is_offered:
                    await self.link.call(DRAIN, self.name, self.epoch)
                await self._tell_held()
                await self._snapshot()
                await self._fetch_bans()
                self.registry.is_ready = True
                if self._joined.is_set():
                    log.info("the cluster's Redis is there", held=len(self.registry.held))
                self._joined.set()
                self.registry.on_free()
        finally:
            self.registry.is_ready = False
            self._buffer = None

    async def _join(self) -> float:
        """Join, and return for how many more seconds nobody claims."""
        if not self._joined.is_set():
            self._check_route(await self.ask_nodes())
        answer = await self.link.call(
            JOIN,
            self.name,
            self.epoch,
            self.member,
            str(self.address),
            self.table.highest,
            self.link.run_id,
            self.seal.cluster_id,
            FORMAT,
            self._sealed,
            self._reserve,
        )
        match answer:
            case [b"ok", seq, settle, identity, known]:
                self._check_identity(identity)
                self._is_known = known == b"1"
                self._seq = _whole(seq)
                return _whole(settle) / 1000
            case [b"name", address]:
                raise RegistryAwayError(name_taken(self.name, address))
            case _:
                raise RegistryAwayError(explain(answer))

    def _check_route(self, nodes: list[NodeStatus]) -> None:
        """A proxy that leads clients by their node's name cannot tell N-1 from n1."""
        for node in nodes:
            if node.name != self.name and route_of(node.name) == self.route:
                raise RegistryAwayError(
                    f"the names {self.name} and {node.name} are the same to a proxy ({self.route}): choose one that differs in more than capitals, dashes and underscores (Cluster.Node)"
                )

    def _check_identity(self, sealed: bytes) -> None:
        """A Redis that was made anew by somebody else may have another key for clients to pin."""
        try:
            theirs = Identity.unseal(self.seal, sealed)
        except StartupError as error:
            raise RegistryAwayError(str(error)) from None
        if theirs != self.identity:
            raise RegistryAwayError(
                "the cluster's key and certificate in Redis are not those of this node: restart it, or run trionat cluster join"
            )

    async def _tell_held(self) -> None:
        """Tell what this node holds; what another one has with a higher fence is not ours any more."""
        held = [each for each in self.registry.held.values() if not each.lost]
        for start in range(0, len(held), _CHUNK):
            args: list[str | int] = []
            for each in held[start : start + _CHUNK]:
                claim = each.claim
                ports = ",".join(map(str, each.points))
                args += [encode_key(claim.key), claim.fence, int(each.occupied), ports]
            more = int(start + _CHUNK < len(held))
            answer = await self.link.call(
                *(HOLD, self.name, self.epoch, self.table.highest, int(self._is_known), more), *args
            )
            if answer[0] != b"ok":
                raise RegistryAwayError("it does not know this node any more")
            for key, what in zip(answer[1::2], answer[2::2], strict=False):
                self._lose(key, moved=what == b"key")

    def _lose(self, key: bytes, *, moved: bool) -> None:
        try:
            self.registry.lose(decode_key(key.decode()), moved=moved)
        except ValueError as error:
            self._tell_nonsense(error)

    async def _snapshot(self) -> None:
        self._forget_buffered()
        fresh, cursor, read = RoutingTable(), b"0", 0
        for line in (await self.link.call(NODES))[1::2]:
            try:
                name, epoch, _, address, _ = line.decode().split(" ")
                fresh.put_node(read_node([name, epoch, address]))
            except ValueError as error:
                self._tell_nonsense(error)
        while read < MOST_CLAIMS:
            match await self.link.call(SCAN, cursor):
                case [b"ok", cursor, *pairs]:
                    read += max(_CHUNK, len(pairs) // 2)
                case answer:
                    raise RegistryAwayError(explain(answer))
            for key, value in zip(pairs[::2], pairs[1::2], strict=False):
                try:
                    node, epoch, fence, _, ports = value.decode().split(" ")
                    fresh.put_known(read_claim(node, epoch, fence, ports, key.decode()))
                except ValueError as error:
                    self._tell_nonsense(error)
            if cursor == b"0":
                break
        self.table.replace(fresh)
        await self._catch_up()
        await self._reconcile()

    def _forget_buffered(self) -> None:
        """What has been told by now will be in the snapshot."""
        while self._buffer:
            with suppress(ValueError):
                self._seq = max(self._seq, split_news(self._buffer.pop())[0])
                self._buffer.clear()
        self._buffered = 0

    async def _catch_up(self) -> None:
        """Take the news that came meanwhile, of which there may be as many as claims."""
        while self._buffer:
            for _ in range(min(_SLICE, len(self._buffer))):
                self._take(self._buffer.popleft())
            await trio.lowlevel.checkpoint()
        self._buffer = None

    async def _reconcile(self) -> None:
        """Give back what Redis believes that we hold: a claim whose answer was lost, or one that was released meanwhile."""
        entries = list(self.table.by_key.values())
        for start in range(0, len(entries), _SLICE):
            for entry in entries[start : start + _SLICE]:
                if self.table.by_key.get(entry.key) is not entry:
                    continue  # news have come
                if entry.node != self.name:
                    self.registry.remember(entry)
                    self.registry.give_way(entry)
                    continue
                held = self.registry.held.get(entry.key)
                if held is None or held.claim.fence != entry.fence:
                    key = encode_key(entry.key)
                    self.link.send(RELEASE, self.name, self.epoch, key, entry.fence)
            await trio.lowlevel.checkpoint()

    async def _fetch_bans(self) -> None:
        for line in (await self.link.call(BANS))[1:]:
            try:
                self._take_ban(line.decode().split(" "))
            except ValueError as error:
                self._tell_nonsense(error)

    async def _beat_on(self, settle: float) -> None:
        due = last = 0
        purpose = _figures_of(NodeEntry(self.name, self.epoch, self.address))
        while True:
            sessions, visitors = self.figures()
            public = None if self.public is None else str(self.public)
            figures = json.dumps([sessions, visitors, public, self.registry.is_offered])
            sealed = self.seal.close(purpose, figures.encode())
            answer = await self.link.call(
                *(BEAT_ONCE, self.name, self.epoch, self.table.highest, sealed, self._reserve),
                is_beat=True,
            )
            if answer[0] != b"ok":
                raise RegistryAwayError("it had given this node up, which joins anew")
            if len(answer) != len(("ok", "seq", "settle")):
                raise RegistryAwayError(explain(answer))
            told = _whole(answer[1])
            if told < last:
                raise RegistryAwayError("its counter of news went back")
            is_current = self._buffer is None
            if is_current and self._seq < due:
                raise RegistryAwayError("news were missed")
            due, last = (told if is_current else 0), max(told, self._seq)
            settle = _whole(answer[2]) / 1000
            with trio.move_on_after(min(BEAT, settle) if settle else BEAT):
                await self._missed.wait()
                raise RegistryAwayError("news were missed")
            if 0 < settle < BEAT and self.registry.is_ready:
                self.registry.on_free()

    # -- news --------------------------------------------------------------------------------------------------------

    def _hear(self, message: bytes) -> None:
        """Take a message, whatever is in it; what changes the table waits until a snapshot of it is there."""
        if self._buffer is None or message.startswith(b"0 "):
            self._take(message)
            return
        self._buffered += len(message)
        self._buffer.append(message)
        if self._buffered > _MOST_BUFFERED:
            self._missed.set()
            self._buffer.clear()

    def _take(self, message: bytes) -> None:
        try:
            number, word, args, rest = split_news(message)
            if number:
                if number <= self._seq and self._buffer is not None:
                    return  # it is in the snapshot
                if number != self._seq + 1:
                    self._missed.set()
                    return
                self._seq = number
            self._apply(word, args, rest)
        except (ValueError, IndexError) as error:
            self._tell_nonsense(error)

    def _apply(self, word: str, args: list[str], rest: str) -> None:
        match word, args:
            case "claim", [node, epoch, fence, ports, *key]:
                self.registry.take_claim(read_claim(node, epoch, fence, ports, " ".join(key)))
            case "free", [fence, *key]:
                self.table.remove(decode_key(" ".join(key)), read_fence(fence))
                self.registry.on_free()
            case "node", [name, epoch, address]:
                entry = read_node([name, epoch, address])
                if name != self.name:  # what we are, we know
                    if name not in self.table.nodes:
                        log.info("a node of the cluster has come", node=name, address=address)
                        if self._tells_of(name):
                            self.events.publish(node_up(node=name, address=address))
                    self.table.put_node(entry)
            case "gone", [name, epoch]:
                if name in self.table.nodes and name != self.name:
                    if self._tells_of(name):
                        address = str(self.table.nodes[name].address)
                        self.events.publish(node_gone(node=name, address=address))
                    self.table.remove_node(name, read_epoch(epoch))
                    log.info("a node of the cluster is gone", node=name)
                self.registry.on_free()
            case "evict", [node, fence, vacant, *key]:
                if node == self.name:
                    self.registry.take_eviction(
                        decode_key(" ".join(key)),
                        read_fence(fence),
                        rest,
                        vacant_only=vacant == "1",
                    )
            case "ban", [_, _]:
                self._take_ban(args)
            case "lift", [network]:
                self.on_lift(network)
            case "kick", [sealed]:
                self._take_kick(bytes.fromhex(sealed))
            case _:
                raise ValueError(f"a newer version may know {word[:32]!r}")

    def _tells_of(self, name: str) -> bool:
        """Tell whether it is this node that tells of another one."""
        return min({*self.table.nodes, self.name} - {name}) == self.name

    def _take_ban(self, words: list[str]) -> None:
        milliseconds, network = words
        parse_network(network)
        self.on_ban(network, min(read_fence(milliseconds), _HIGHEST_BAN) / 1000)

    def _tell_nonsense(self, error: Exception) -> None:
        """Tell what could not be read, once a minute: whoever can write into Redis could fill the log."""
        if trio.current_time() - self._told_nonsense >= _TELL_INTERVAL:
            self._told_nonsense = trio.current_time()
            log.warning(
                "something in the cluster's Redis was passed over", reason=readable(str(error))
            )

    # -- what the server tells the others ----------------------------------------------------------------------------

    def note_failure(self, network: str, after: int, ban: float, half_life: float) -> None:
        """Count a failed login for all nodes; the ban that follows is told as news. In a flood of them not all are counted, lest they stand before all else."""
        self.link.offer(FAIL, network, after, round(ban * 1000), round(half_life * 1000), 16_384)

    def lift_ban(self, network: str) -> None:
        """Have all nodes lift a ban, and forget the failures behind it; not where Redis is away."""
        self.link.offer(LIFT, network)

    def kick(self, request: bytes) -> int:
        """Ask all other nodes to send somebody away; return how many there are. 0 as well where they cannot be asked now."""
        sealed = self.seal.close(_KICK, f"{self.epoch} {time.time():.0f} ".encode() + request)
        others = len(self.table.nodes.keys() - {self.name})
        return others if others and self.link.offer(TELL, f"kick {sealed.hex()}") else 0

    def _take_kick(self, sealed: bytes) -> None:
        epoch, told, request = self.seal.open(_KICK, sealed).split(b" ", 2)
        if epoch == self.epoch.encode():
            return
        now = time.time()
        age = now - _whole(told)
        if sealed in self._kicks or abs(age) > _KICK_HOLDS:
            raise ValueError(f"a kick that was told before, or is {age:.0f} s old")
        for old in [old for old, until in self._kicks.items() if until < now]:
            del self._kicks[old]
        self._kicks[sealed] = now + 2 * _KICK_HOLDS
        self.on_kick(request)

    async def ask_nodes(self) -> list[NodeStatus]:
        """Return what is known of all nodes; from memory where Redis is away."""
        try:
            return read_nodes(await self.link.call(NODES), self.seal)
        except RegistryAwayError:
            return [_from_table(node) for node in self.table.nodes.values()]


def route_of(name: str) -> str:
    """Return a node's name as a route: in small letters, without dashes and underscores."""
    return name.lower().translate(_NOT_IN_ROUTES)[:ROUTE_LENGTH]


def name_taken(name: str, address: bytes) -> str:
    """Say that another node has this name."""
    return f"another node is called {name} (at {readable(address)}): every node needs a name of its own (Cluster.Node)"


def explain(answer: Answer) -> str:
    """Say in words why Redis did not take a node."""
    match answer:
        case [b"format", theirs]:
            return f"its data are of another version of trionat ({readable(theirs)}, and this one writes {FORMAT})"
        case [b"foreign", *_]:
            return "it has another cluster's data: name another Redis, another database number (redis://HOST:PORT/1), or the key of that cluster (KeyFile)"
        case [b"new"]:
            return "it has no cluster yet: run trionat cluster init"
        case _:
            return "it gave a strange answer"


def read_nodes(answer: Answer, seal: Seal) -> list[NodeStatus]:
    """Read what `NODES` has answered; what is nonsense is left out."""
    found: list[NodeStatus] = []
    for line, sealed in zip(answer[1::2], answer[2::2], strict=False):
        try:
            name, epoch, _, address, silent = line.decode().split(" ")
            node = read_node([name, epoch, address])
            seconds = int(silent[:15]) / 1000
        except ValueError:
            continue
        status = attrs.evolve(_from_table(node), silent=None if seconds < 0 else round(seconds, 1))
        with suppress(ValueError, TypeError, RecursionError):
            status = _with_figures(status, seal.open(_figures_of(node), sealed))
        found.append(status)
    return sorted(found, key=lambda each: each.name)


def _figures_of(node: NodeEntry) -> str:
    """Return for what its figures are sealed: clients are sent to the address in them, with their passwords."""
    return f"trionat figures 1 {node.name} {node.epoch}"


def _with_figures(status: NodeStatus, figures: bytes) -> NodeStatus:
    match json.loads(figures):
        case [sessions, visitors, public, drained]:
            return attrs.evolve(
                status,
                sessions=_figure(sessions),
                visitors=_figure(visitors),
                public=None if public is None else str(parse_tcp_address(str(public))),
                drained=bool(drained),
            )
        case _:
            raise ValueError("no figures")


def _figure(value: object) -> int:
    if not (isinstance(value, int) and 0 <= value < 2**31):
        raise ValueError("no figure")
    return value


def _from_table(node: NodeEntry) -> NodeStatus:
    return NodeStatus(
        name=node.name, address=str(node.address), silent=None, sessions=None, visitors=None
    )


def _whole(text: bytes) -> int:
    """Read a number that a script has written. Raises RegistryAwayError: another one has."""
    if not text.isdigit() or len(text) > 15:
        raise RegistryAwayError("it gave a strange answer")
    return int(text)
