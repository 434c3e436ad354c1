"""What two processes say to each other, over real sockets."""

from __future__ import annotations

import resource
import socket
import sys
from array import array
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionat.errors import RefusedError
from trionat.server.workers.link import Link, LinkLostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def pair() -> tuple[Link, Link]:
    messages, descriptors = socket.socketpair(), socket.socketpair()
    links = Link(messages[0], descriptors[0]), Link(messages[1], descriptors[1])
    for link in links:
        link.hear = lambda _: None
        link.reply = _echo
        link.take = lambda _, sock, __: sock.close()
    return links


async def _echo(question: dict[str, Any]) -> dict[str, Any]:
    if "refuse" in question:
        raise RefusedError("full", question["refuse"])
    if "wait" in question:
        await trio.sleep(question["wait"])
    return {"said": question.get("say")}


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Link]]:
    here, there = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        nursery.start_soon(there.run)
        yield here, there
        nursery.cancel_scope.cancel()


IN_THE_KERNEL = 400
"""More descriptors than it holds on their way from one end to the other, each of which is kept until it is taken."""


async def test_messages_in_their_order(nothing_left: None) -> None:
    async with linked() as (here, there):
        heard: list[Any] = []
        there.hear = heard.append
        sent = [{"number": number, "text": "ä\n" * number * 300} for number in range(100)]
        for message in sent:
            here.post(message)
        await here.wait_sent()
        with trio.fail_after(5):
            while len(heard) < len(sent):  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        assert heard == sent


async def test_questions(nothing_left: None) -> None:
    async with linked() as (here, there):
        assert await here.ask({"say": 1}) == {"said": 1}
        assert await there.ask({"say": [2]}) == {"said": [2]}
        with pytest.raises(RefusedError, match="no room") as caught:
            await here.ask({"refuse": "no room"})
        assert caught.value.code == "full"


async def test_a_question_that_is_given_up(nothing_left: None) -> None:
    async with linked() as (here, there):
        with trio.move_on_after(0.05) as scope:
            await here.ask({"wait": 60})
        assert scope.cancelled_caught
        with trio.fail_after(2):
            while there._replies:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        assert await here.ask({"say": 1}) == {"said": 1}


async def test_an_answer_that_comes_too_late(nothing_left: None) -> None:
    async with linked() as (here, _):
        late: list[Any] = []
        for steps in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, steps, scope)
                    late.append(await here.ask({"say": steps}, late.append))
                    nursery.cancel_scope.cancel()
        await here.ask({})
        assert sorted(answer["said"] for answer in late) == list(range(12))


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_the_other_end_dies(nothing_left: None) -> None:
    here, there = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)

        async def ask() -> None:
            with pytest.raises(LinkLostError):
                await here.ask({"say": 1})

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        there.messages.close()
        there.descriptors.close()
    assert here.lost
    here.post({"into": "the void"})
    with pytest.raises(LinkLostError):
        await here.ask({"say": 1})
    one, other = socket.socketpair()
    here.pass_on(b"c", one)
    assert one.fileno() < 0
    assert other.recv(1) == b""
    other.close()


async def test_descriptors_come_with_what_they_are_for(nothing_left: None) -> None:
    """More than the kernel holds at once, and each is closed where it came from."""
    async with linked() as (here, there):
        taken: list[tuple[bytes, socket.socket, str]] = []
        there.take = lambda *args: taken.append(args)
        kept: list[socket.socket] = []
        for number in range(400):
            mine, its = socket.socketpair()
            mine.sendall(b"%d" % number)
            kept.append(mine)
            here.pass_on(b"cv"[number % 2 : number % 2 + 1], its, "x" * (number % 256))
        with trio.fail_after(10):
            while len(taken) < 400:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        for number, (purpose, sock, about) in enumerate(taken):
            assert purpose == b"cv"[number % 2 : number % 2 + 1]
            assert about == "x" * (number % 256)
            assert not sock.get_inheritable()
            assert sock.recv(10) == b"%d" % number
            sock.close()
        for mine in kept:
            mine.settimeout(2)  # until the other end is told
            assert await trio.to_thread.run_sync(mine.recv, 1) == b""
            mine.close()


async def test_a_descriptor_for_which_there_is_no_room_is_told(nothing_left: None) -> None:
    here, there = pair()
    missed: list[tuple[bytes, str]] = []
    there.missed = lambda purpose, about: missed.append((purpose, about))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        nursery.start_soon(there.run)
        mine, its = socket.socketpair()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        await trio.testing.wait_all_tasks_blocked()
        resource.setrlimit(resource.RLIMIT_NOFILE, (its.fileno() + 1, limits[1]))
        try:
            here.pass_on(b"c", its, "about")
            with trio.fail_after(2):
                while not missed:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert missed == [(b"c", "about")]
        mine.settimeout(2)
        assert await trio.to_thread.run_sync(mine.recv, 1) == b""
        mine.close()
        nursery.cancel_scope.cancel()


async def test_what_is_lent_arrives_however_much_waits(nothing_left: None) -> None:
    """As the visit ports of a worker that was killed, behind more connections than may wait: each of 1302 that were lost was a dead port."""
    here, there = pair()
    missed: list[bytes] = []
    here.missed = lambda purpose, _: missed.append(purpose)
    taken: Counter[bytes] = Counter()

    def take(purpose: bytes, sock: socket.socket, _: str) -> None:
        taken[purpose] += 1
        sock.close()

    there.take = take
    before = descriptors()
    connections = [socket.socket() for _ in range(1500)]
    for connection in connections:
        here.pass_on(b"c", connection)
    with socket.create_server(("127.0.0.1", 0)) as port:
        for _ in range(2000):
            here.lend(b"v", port)
        assert descriptors() <= before + 1024 + IN_THE_KERNEL + 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.run)
            nursery.start_soon(there.run)
            with trio.fail_after(10):
                while taken[b"v"] < 2000 or taken[b"c"] + len(missed) < 1500:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert port.fileno() >= 0
    assert set(missed) == {b"c"}


async def test_descriptors_that_nobody_takes_are_closed(nothing_left: None) -> None:
    here, there = pair()
    kept: list[socket.socket] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        before = descriptors()
        for _ in range(1500):
            mine, its = socket.socketpair()
            kept.append(mine)
            here.pass_on(b"c", its)
        assert descriptors() <= before + 1500 + 1024 + IN_THE_KERNEL
        nursery.cancel_scope.cancel()
    there.messages.close()
    there.descriptors.close()
    for mine in kept:
        mine.close()


async def test_what_the_other_end_has_not_taken_comes_back(nothing_left: None) -> None:
    """As visitors that were on their way to a worker that is killed; neither the one that it had, nor a port that was lent."""
    here, there = pair()
    back: list[tuple[bytes, str]] = []
    taken: list[str] = []
    given = [socket.socketpair() for _ in range(3)]

    def take(_: bytes, sock: socket.socket, about: str) -> None:
        taken.append(about)
        sock.close()

    def take_back(purpose: bytes, sock: socket.socket, about: str) -> None:
        back.append((purpose, about))
        sock.sendall(b"again")
        sock.close()

    there.take, here.returned = take, take_back
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        async with trio.open_nursery() as others:
            others.start_soon(there.run)
            here.pass_on(b"c", given[0][1], "first")
            with trio.fail_after(2):
                while not taken:  # noqa: ASYNC110 (nothing tells)
                    await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            others.cancel_scope.cancel()
            for number in (1, 2):  # before its task has run
                here.pass_on(b"c", given[number][1], f"number {number}")
            with socket.socket() as port:
                here.lend(b"v", port)
                await trio.testing.wait_all_tasks_blocked()
    assert taken == ["first"]
    assert back == [(b"c", "number 1"), (b"c", "number 2")]
    assert here.lost
    late = socket.socketpair()
    given.append(late)
    here.pass_on(b"c", late[1], "too late")
    assert back[2:] == [(b"c", "too late")]
    for mine, _ in given[1:]:
        assert mine.recv(10) == b"again"
    assert given[0][0].recv(10) == b""
    for mine, _ in given:
        mine.close()


async def test_what_was_taken_does_not_come_back_however_late_that_is_read(
    nothing_left: None,
) -> None:
    """The other end has gone by then: what it has read of a connection would be missing for the next."""
    here, there = pair()
    back: list[str] = []

    def take_back(_: bytes, sock: socket.socket, about: str) -> None:
        sock.close()
        back.append(about)

    here.returned = take_back
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.run)
            await trio.testing.wait_all_tasks_blocked()
            # Without a checkpoint: `run` hears of all of it at once.
            with there.messages, there.descriptors:
                for number in range(150):
                    here.pass_on(b"c", socket.socket(), str(number))
                for _ in range(70):  # more than are read at once
                    with socket.socket() as sock:
                        held = array("i", [sock.fileno()])
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, held)
                        there.descriptors.sendmsg([b"h\0"], [rights])
                for _ in range(100):
                    head, control, _, _ = there.descriptors.recvmsg(2, socket.CMSG_SPACE(4))
                    there.descriptors.recv(head[1])
                    socket.socket(fileno=int.from_bytes(control[0][2], sys.byteorder)).close()
                    there._taken = 1
                    there._tell_taken()
    assert back == [str(number) for number in range(100, 150)]


async def test_one_is_told_before_anything_is_done_with_it(nothing_left: None) -> None:
    """A bug there must not have the next process do it once more."""
    here, there = pair()
    back: list[str] = []

    def take_back(_: bytes, sock: socket.socket, about: str) -> None:
        sock.close()
        back.append(about)

    here.returned = take_back

    def take(_: bytes, sock: socket.socket, __: str) -> None:
        sock.close()
        raise ValueError("a bug")

    there.take = take
    here.pass_on(b"c", socket.socket(), "first")
    with pytest.RaisesGroup(ValueError):
        await there.run()
    await here.run()
    assert back == []
