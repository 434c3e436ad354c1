"""Who holds what in the cluster, in the memory of each node: a snapshot, then news. What Redis says is checked as a peer's words are.

News that change the table have numbers without gaps. Whatever order a snapshot and news come in, the higher fence counts, so the same may be
heard twice.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress, parse_tcp_address
from trionat.config.cluster import NODE
from trionat.hostnames import parse_hostname
from trionat.server.cluster.scripts import HIGHEST_FENCE, LEAP, MOST_BYTES
from trionat.server.registry.claim import is_group

if TYPE_CHECKING:
    from trionat.server.visitors.ports import LeaseKey, PointId

MOST_NODES: Final = 4096
MOST_CLAIMS: Final = 2**20
"""What a node believes of Redis."""

ORPHANED_FOR: Final = 15.0
"""Seconds for which visitors of a node that is gone are let in, to wait for its clients."""

HIGHEST_PORT = 2**16 - 1
"""`bench.scale` raises it, for more leases than there are ports."""

_POINTS: Final = 1024
_SHOWN: Final = 200
"""Characters."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""Half a character: JSON can have one, and nothing can be written with it."""

_NUMBER: Final = re.compile(r"[0-9]{1,7}", re.ASCII)
_EPOCH: Final = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


def encode_key(key: LeaseKey) -> str:
    """Return the text by which Redis knows a client."""
    return json.dumps(key, separators=(",", ":"))


def decode_key(text: str) -> LeaseKey:
    """Read it.

    Raises:
        ValueError: it is none.
    """
    try:
        value: object = json.loads(text) if len(text) <= MOST_BYTES else None
    except RecursionError:
        value = None
    match value:
        case [str(user), str(identity)]:
            found: LeaseKey = user, identity
        case [str(user), [str(host), int(number)]]:
            found = user, (host, number)
        case _:
            raise ValueError("no client's key")
    if encode_key(found) != text or _SURROGATE.search(str(found)):
        raise ValueError("no client's key as a node writes it")  # Redis has it as another one
    return found


@attrs.frozen
class NodeEntry:
    """A node that is there, and where the others reach it."""

    name: str
    epoch: str
    address: TCPAddress


@attrs.frozen
class Entry:
    """A claim: who holds which ports and names, at which node. A client of a group holds none: its group does, under a key of its own (`group_key`)."""

    key: LeaseKey
    node: str
    epoch: str
    fence: int
    points: tuple[PointId, ...]


def read_point(text: str) -> PointId:
    """Read a visit port, or a whole name; the name is an address where the domain is one.

    Raises:
        ValueError: it is neither.
    """
    if not _NUMBER.fullmatch(text):
        if not _is_address(text) and parse_hostname(text) != text:
            raise ValueError("no name as a node writes it")
        return text
    if not 0 < int(text) <= HIGHEST_PORT:
        raise ValueError("no port")
    return int(text)


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def read_node(words: list[str]) -> NodeEntry:
    """Read `NAME EPOCH ADDRESS`.

    Raises:
        ValueError: it is none.
    """
    name, epoch, address = words
    return NodeEntry(NODE.read(name), read_epoch(epoch), parse_tcp_address(address))


def read_epoch(text: str) -> str:
    """Read an epoch. Raises ValueError."""
    if not _EPOCH.fullmatch(text):
        raise ValueError("no epoch")
    return text


def read_fence(text: str) -> int:
    """Read a fence. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 15) or int(text) > HIGHEST_FENCE:
        raise ValueError("no fence")
    return int(text)


def read_claim(node: str, epoch: str, fence: str, points: str, key: str) -> Entry:
    """Read the parts of a claim.

    Raises:
        ValueError: they are none.
    """
    words = points.split(",") if points else []
    if len(words) > _POINTS:
        raise ValueError("too many ports")
    found = tuple(map(read_point, words))
    its = decode_key(key)
    if is_group(its) and not found:
        raise ValueError("a group without ports")
    return Entry(its, NODE.read(node), read_epoch(epoch), read_fence(fence), found)


@attrs.define(eq=False)
class RoutingTable:
    """See the module. Changes between two checkpoints. `highest` is the highest fence that was heard of."""

    nodes: dict[str, NodeEntry] = attrs.field(init=False, factory=lambda: {})
    by_key: dict[LeaseKey, Entry] = attrs.field(init=False, factory=lambda: {})
    by_point: dict[PointId, Entry] = attrs.field(init=False, factory=lambda: {})
    highest: int = attrs.field(init=False, default=0)
    _empty: int = attrs.field(init=False, default=0)
    _groups: int = attrs.field(init=False, default=0)
    _by_epoch: dict[str, dict[LeaseKey, Entry]] = attrs.field(init=False, factory=lambda: {})
    _orphaned: dict[PointId, float] = attrs.field(init=False, factory=lambda: {})

    @property
    def slots_taken(self) -> int:
        """How many claims have ports or names: those of a group's clients have none, but the group's has."""
        return len(self.by_key) - self._empty

    @property
    def clients(self) -> int:
        """How many claims are of clients, and not of groups."""
        return len(self.by_key) - self._groups

    def of_user(self, name: str) -> list[Entry]:
        """Return all that a user's clients and groups have, wherever that is. Goes through the whole table."""
        return [entry for entry in self.by_key.values() if entry.key[0] == name]

    def is_orphaned(self, point: PointId) -> bool:
        """Tell whether the node of a port or a name went a moment ago: its client is most likely on the way to another one."""
        return trio.current_time() < self._orphaned.get(point, -math.inf)

    def put_node(self, node: NodeEntry) -> None:
        """A node is there. One of the same name and another epoch is not, any more."""
        before = self.nodes.get(node.name)
        if before is not None and before.epoch != node.epoch:
            self.remove_node(before.name, before.epoch)
        if len(self.nodes) < MOST_NODES:
            self.nodes[node.name] = node

    def remove_node(self, name: str, epoch: str) -> None:
        """A node is gone, with all that it held."""
        node = self.nodes.get(name)
        if node is not None and node.epoch == epoch:
            del self.nodes[name]
        points: set[PointId] = set()
        for entry in list(self._by_epoch.get(epoch, {}).values()):
            self._remove(entry)
            points.update(entry.points)
        self._orphan(points)

    def _orphan(self, points: set[PointId]) -> None:
        now = trio.current_time()
        self._orphaned = {point: end for point, end in self._orphaned.items() if end > now}
        self._orphaned.update(dict.fromkeys(points, now + ORPHANED_FOR))

    def put(self, entry: Entry) -> bool:
        """A claim holds; those of the same key, port or name that are older do not. False: it is older itself.

        Raises:
            ValueError: its fence is one that nobody can have by now; if it were believed, all that come would have to be higher.
        """
        if entry.fence > self.highest + LEAP:
            raise ValueError(f"a fence that nobody can have by now ({entry.fence})")
        self.highest = max(self.highest, entry.fence)
        rivals = [self.by_point[point] for point in entry.points if point in self.by_point]
        if (same := self.by_key.get(entry.key)) is not None:
            rivals.append(same)
        if any(rival.fence > entry.fence for rival in rivals):
            return False
        for rival in rivals:
            self._remove(rival)
        if len(self.by_key) < MOST_CLAIMS:
            self.by_key[entry.key] = entry
            self._empty += not entry.points
            self._groups += is_group(entry.key)
            self._by_epoch.setdefault(entry.epoch, {})[entry.key] = entry
            self.by_point.update(dict.fromkeys(entry.points, entry))
        return True

    def remove(self, key: LeaseKey, fence: int) -> None:
        """A claim does not hold any more."""
        entry = self.by_key.get(key)
        if entry is not None and entry.fence <= fence:
            self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        if self.by_key.get(entry.key) is entry:
            del self.by_key[entry.key]
            self._empty -= not entry.points
            self._groups -= is_group(entry.key)
            its = self._by_epoch[entry.epoch]
            del its[entry.key]
            if not its:
                del self._by_epoch[entry.epoch]
        for point in entry.points:
            if self.by_point.get(point) is entry:
                del self.by_point[point]

    def put_known(self, entry: Entry) -> None:
        """A claim of a snapshot; what is of a node that is not there does not count."""
        its = self.nodes.get(entry.node)
        if its is not None and its.epoch == entry.epoch:
            self.put(entry)

    def replace(self, fresh: RoutingTable) -> None:
        """Take all of a snapshot, which is not used any more, instead of what was there.

        A port or a name that is in it no more counts as one whose node is gone: a Redis that is back, and empty, has not heard yet what others hold.
        """
        before = set(self.by_point)
        self.nodes, self.by_key, self.by_point = fresh.nodes, fresh.by_key, fresh.by_point
        self._by_epoch = fresh._by_epoch
        self._empty, self._groups = fresh._empty, fresh._groups
        self.highest = max(self.highest, fresh.highest)
        self._orphan(before - self.by_point.keys())


def readable(said: str | bytes) -> str:
    """Return what Redis, or somebody in it, has said, as a message can show it: in one line, and not much of it."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return "".join(each if each.isprintable() else "?" for each in text[:_SHOWN])


def split_news(message: bytes) -> tuple[int, str, list[str], str]:
    """Return a message's number (0: it changes no table), its word, its arguments, and the text behind a line end.

    Raises:
        ValueError: it is no message.
    """
    if len(message) > 2 * MOST_BYTES:
        raise ValueError("it is too long")
    head, _, rest = message.decode().partition("\n")
    number, word, *args = head.split(" ", 6)
    if not (number.isascii() and number.isdecimal() and len(number) <= 15):
        raise ValueError("it has no number")
    return int(number), word, args, rest
