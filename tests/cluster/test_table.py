"""The routing table, and what is believed of Redis."""

from __future__ import annotations

import pytest

from trionat.address import TCPAddress
from trionat.server.cluster.scripts import HIGHEST_FENCE
from trionat.server.cluster.table import (
    Entry,
    NodeEntry,
    RoutingTable,
    decode_key,
    encode_key,
    read_claim,
    read_node,
    split_news,
)
from trionat.server.registry.claim import group_key

A, B = (
    NodeEntry(name, f"{number}", TCPAddress("127.0.0.1", number))
    for name, number in (("a", 1), ("b", 2))
)


def entry(fence: int, *ports: int, identity: str = "x", node: NodeEntry = A) -> Entry:
    return Entry(("user", identity), node.name, node.epoch, fence, ports)


@pytest.fixture
async def table() -> RoutingTable:
    table = RoutingTable()
    table.put_node(A)
    table.put_node(B)
    return table


@pytest.mark.parametrize(
    "key",
    [
        ("user", "identity"),
        ("Ünï \U0001f600", 'a "b" c'),
        ("user", ("192.0.2.1", 3)),
        group_key("user", 'w "b"'),
    ],
)
def test_keys_of_clients(key: tuple[str, str | tuple[str, int]]) -> None:
    text = encode_key(key)
    assert text.isascii()
    assert decode_key(text) == key


@pytest.mark.parametrize(
    "text", ["", "{}", "[1,2]", '["a"]', '["a","b","c"]', "[" * 9000, '["a",["b","c"]]']
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's, and ours
        decode_key(text)


async def test_the_higher_fence_counts(table: RoutingTable) -> None:
    assert table.put(entry(5, 60000))
    assert not table.put(entry(4, 60000, identity="y", node=B))
    assert table.by_point[60000].node == "a"
    assert table.put(entry(6, 60000, identity="y", node=B))
    assert table.by_point[60000].node == "b"
    assert ("user", "x") not in table.by_key
    assert table.highest == 6


async def test_a_client_is_at_one_node(table: RoutingTable) -> None:
    table.put(entry(5, 60000, 60001))
    table.put(entry(6, 60001, node=B))
    assert list(table.by_point) == [60001]


async def test_only_what_still_holds_is_removed(table: RoutingTable) -> None:
    table.put(entry(5, 60000))
    table.remove(("user", "x"), 4)
    assert table.by_point
    table.remove(("user", "x"), 5)
    assert not table.by_point
    assert not table.by_key
    table.remove(("user", "x"), 5)


async def test_a_node_that_is_gone(table: RoutingTable) -> None:
    table.put(entry(5, 60000))
    table.put(entry(6, 60001, identity="y", node=B))
    table.remove_node("a", "f")  # of another life
    assert A.name in table.nodes
    table.remove_node("a", A.epoch)
    assert list(table.by_point) == [60001]
    assert table.is_orphaned(60000)
    assert not table.is_orphaned(60001)


async def test_a_node_that_was_started_anew(table: RoutingTable) -> None:
    table.put(entry(5, 60000))
    table.put_node(NodeEntry("a", "3", A.address))
    assert not table.by_point


async def test_a_group_takes_one_slot(table: RoutingTable) -> None:
    group = Entry(group_key("user", "web"), "a", A.epoch, 5, (60000,))
    table.put(group)
    table.put(entry(6))
    table.put(entry(7, identity="y"))
    table.put(entry(8, 60001, identity="alone"))
    assert (table.slots_taken, table.clients) == (2, 3)
    assert table.by_point[60000] is group
    table.remove(("user", "x"), 6)
    assert table.slots_taken == 2
    assert table.by_point[60000] is group
    table.remove(group.key, 5)
    assert table.slots_taken == 1
    assert table.clients == 2
    fresh = RoutingTable()
    fresh.put_node(A)
    fresh.put_known(group)
    fresh.put_known(entry(6))
    table.replace(fresh)
    assert (table.slots_taken, table.clients) == (1, 1)


async def test_a_snapshot_counts_alone(table: RoutingTable) -> None:
    table.put(entry(5, 60000))
    fresh = RoutingTable()
    fresh.put_node(B)
    fresh.put_known(entry(7, 60001, node=B))
    fresh.put_known(entry(8, 60002, identity="of a node that is gone"))
    table.replace(fresh)
    assert list(table.by_point) == [60001]
    assert list(table.nodes) == ["b"]


async def test_visitors_of_what_a_snapshot_lacks_may_wait(table: RoutingTable) -> None:
    """A Redis that is back, and empty, has heard of the first node that came only."""
    table.put(entry(5, 60000))
    table.put(entry(6, 60001, identity="y", node=B))
    fresh = RoutingTable()
    fresh.put_node(B)
    fresh.put_known(entry(6, 60001, identity="y", node=B))
    table.replace(fresh)
    assert table.is_orphaned(60000)
    assert not table.is_orphaned(60001)
    assert not table.is_orphaned(60002)


@pytest.mark.parametrize(
    "parts",
    [
        ("a b", "1", "1", "60000", '["u","i"]'),
        ("a", "x", "1", "60000", '["u","i"]'),
        ("a", "1", "-1", "60000", '["u","i"]'),
        ("a", "1", str(HIGHEST_FENCE + 1), "60000", '["u","i"]'),
        ("a", "1", "1", "0", '["u","i"]'),
        ("a", "1", "1", "65536", '["u","i"]'),
        ("a", "1", "1", ",", '["u","i"]'),
        ("a", "1", "1", "", '["u",["group g",-1]]'),
        ("a", "1", "1", "60000", "nonsense"),
    ],
)
def test_nonsense_instead_of_a_claim(parts: tuple[str, str, str, str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int's, json's, and ours
        read_claim(*parts)


@pytest.mark.parametrize(
    "words", [["a", "1"], ["a", "1", "nowhere"], ["a", "?", "h:1"], ["-", "1", "h:1"]]
)
def test_nonsense_instead_of_a_node(words: list[str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - as above
        read_node(words)


def test_news() -> None:
    assert split_news(b'12 free 3 ["a","b c"]') == (12, "free", ["3", '["a","b', 'c"]'], "")
    assert split_news(b"0 evict a 3 1 k\nwhy it is") == (
        0,
        "evict",
        ["a", "3", "1", "k"],
        "why it is",
    )


@pytest.mark.parametrize("message", [b"", b"free", b"x free", b"\xff 1", b"1 free" + bytes(20_000)])
def test_what_is_no_news(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - as above
        split_news(message)


@pytest.mark.parametrize(
    "point", [1, 65535, "shop.example.org", "203.0.113.7", "2001:db8::7", "1.example.org"]
)
def test_a_point_is_a_port_a_name_or_an_address(point: int | str) -> None:
    entry = read_claim("a", "1", "5", f"60000,{point}", '["user","x"]')
    assert entry.points == (60000, point)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "65536", "shop", "Shop.example.org", "shop.example.org.", "a b.org"),
        *("2001:DB8::7", "[2001:db8::7]", "fe80::1%eth0", "127.1", "*.example.org"),
        "x" * 64 + ".org",
    ],
)
def test_a_point_that_is_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_claim("a", "1", "5", f"60000,{text}", '["user","x"]')
