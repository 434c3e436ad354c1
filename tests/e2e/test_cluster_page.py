"""docs/cluster.md, followed word for word on machines of its own, from one server to three and back, while visitors come and go and nodes are taken away.

`nox -s soak -- --cluster --minutes 10` does it for longer, and takes away more.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e.running import ask, end_of
from tests.soak.cluster import ClusterPlan, cluster_report, cluster_soak, open_cluster
from tests.soak.talk import ECHO, Wish, pattern

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.limit(230),
    pytest.mark.timeout(240),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it makes network namespaces"),
]


PATTERN = pattern(0, 300)
PLAN = ClusterPlan(visitors=20, seed=1, holds=(3,), pause=0.5, patience=1)


async def test_from_one_server_to_three_and_back(tmp_path: Path) -> None:
    outcome = await cluster_soak(PLAN, tmp_path)
    text = cluster_report(outcome)
    print(text)
    assert not outcome.book.faults, text
    assert outcome.book.served.total() > 100
    assert outcome.book.calm > 50


async def test_a_node_that_is_cut_off_from_the_others_only(tmp_path: Path) -> None:
    """Redis knows it as ever, so its client stays, and those who come to it go on. Those on the way to another node are lost, and notice."""
    async with open_cluster(PLAN, tmp_path) as cluster:
        await cluster.begin()
        await cluster.join("n2")
        [post] = cluster.posts
        port, sessions = post.port, post.connections
        assert port is not None
        holder, other = ("n1", "n2") if cluster.held_by("n1") else ("n2", "n1")
        here, there = cluster.door(holder), cluster.door(other)
        question = Wish(ECHO, 0, 0).encode()
        async with await here.connect(port) as lasting, await there.connect(port) as lost:
            for visitor in (lasting, lost):
                await visitor.send_all(question)
                assert await ask(visitor, PATTERN[:100]) == PATTERN[:100]
            with cluster.cut(holder, other):
                await lost.send_all(PATTERN[100:200])
                began = trio.current_time()
                async with await there.connect(port) as waiting:
                    await waiting.send_all(question)
                    assert await end_of(waiting) in ("end", "reset")
                assert 7 < trio.current_time() - began < 12
                assert await ask(lasting, PATTERN[100:200]) == PATTERN[100:200]
                assert await cluster.is_served(holder, port)
                with trio.fail_after(20):
                    assert await end_of(lost) == "reset"
                assert (
                    trio.current_time() - began < 25
                )  # 17 where the machine has nothing else to do
            with trio.fail_after(10):
                while not await cluster.is_served(other, port):  # noqa: ASYNC110 - polls
                    await trio.sleep(0.1)
            assert await ask(lasting, PATTERN[200:300]) == PATTERN[200:300]
        assert post.connections == sessions
        assert not cluster.book.faults, cluster.book.told
