"""What the owner of a service is asked at a terminal, and which line answers which question."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from trionat.cli.approvals import Approver
from trionat.events import ApprovalAsked
from trionat.protocol.messages import ASKED_FOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio.testing import MockClock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals as POSIX has them")


def question(number: int) -> ApprovalAsked:
    return ApprovalAsked(service=0, name="shop", host=f"192.0.2.{number}", what="GET /")


@attrs.define(eq=False)
class Asking:
    """An approver, its owner's keyboard, and what it was told."""

    approver: Approver
    keyboard: int
    answers: list[tuple[str, bool]]

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    async def answered(self, count: int) -> list[tuple[str, bool]]:
        """Wait for so many answers, and a bit for more."""
        with trio.move_on_after(5):
            while len(self.answers) < count:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        return self.answers


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal that is our standard input; returns its other end."""
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    os.close(master)


@asynccontextmanager
async def asking(
    keyboard: int, connected: Callable[[], bool] = lambda: True
) -> AsyncIterator[Asking]:
    answers: list[tuple[str, bool]] = []

    def approve(_: int, host: str, approved: bool) -> bool:
        answers.append((host, approved))
        return connected()

    approver = Approver(approve, as_json=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(approver.listen)
        nursery.start_soon(approver.expire)
        await trio.testing.wait_all_tasks_blocked()
        yield Asking(approver, keyboard, answers)
        nursery.cancel_scope.cancel()


async def test_an_answer_is_for_the_question_that_is_shown(
    terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many have come behind it."""
    async with asking(terminal) as owner:
        for number in range(40):
            owner.approver.ask(question(number))
        shown = capsys.readouterr().out
        assert shown.count("wants to visit") == 1
        assert "192.0.2.0 wants to visit shop: GET /. Let it in" in shown
        owner.type("y\n")
        assert await owner.answered(1) == [("192.0.2.0", True)]
        # The oldest of those that nobody has seen made room.
        assert "192.0.2.9 wants to visit shop: GET / (30 more)" in capsys.readouterr().out


def test_where_nobody_answers_nobody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    approver = Approver(lambda *_: True, as_json=False, nobody_answers=True)
    approver.ask(question(1))
    approver.ask(question(2))
    assert capsys.readouterr().out.splitlines() == [
        f"192.0.2.{number} wants to visit shop: GET /. It stays out, as nobody can be asked here"
        for number in (1, 2)
    ]
    assert approver.question is None


async def test_what_was_typed_before_a_question_is_no_answer_to_it(
    terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking(terminal) as owner:
        for number in (1, 2, 3):
            owner.approver.ask(question(number))
        owner.type("y\ny\nn\n")
        assert await owner.answered(1) == [("192.0.2.1", True)]
        assert "192.0.2.2 wants to visit" in capsys.readouterr().out
        owner.type("n\n")
        assert await owner.answered(2) == [("192.0.2.1", True), ("192.0.2.2", False)]
        owner.type("y\n")
        assert (await owner.answered(3))[2:] == [("192.0.2.3", True)]
        owner.type("y\n")
        assert await owner.answered(3) == owner.answers[:3], "nothing was asked"


async def test_lines_that_are_read_together(terminal: int) -> None:
    """As from a terminal that gives each key at once: only the first can be for the first question."""
    async with asking(terminal) as owner:
        for number in (1, 2):
            owner.approver.ask(question(number))
        owner.approver._hear(b"what?\ny\ny\ny")
        owner.approver._hear(b"\n")
        assert owner.answers == [("192.0.2.1", True)]


async def test_a_question_that_nobody_answers_lapses(
    terminal: int, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    async with asking(terminal) as owner:
        owner.approver.ask(question(1))
        await trio.sleep(ASKED_FOR / 2)
        owner.approver.ask(question(2))
        await trio.sleep(ASKED_FOR / 2 - 1)
        assert "192.0.2.2" not in capsys.readouterr().out
        owner.type("y")  # and before Enter, there is another question
        await trio.sleep(2)
        told = capsys.readouterr().out.splitlines()
        assert told[0].startswith("nobody has answered for 192.0.2.1")
        assert told[1].startswith("192.0.2.2 wants to visit")
        owner.type("\n")
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not owner.answers
        await trio.sleep(ASKED_FOR)
        assert "nobody has answered for 192.0.2.2" in capsys.readouterr().out
        owner.approver.ask(question(2))
        assert "192.0.2.2 wants to visit" in capsys.readouterr().out


async def test_a_question_that_is_asked_anew_stays(
    terminal: int, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    """As by the session after a loss."""
    async with asking(terminal) as owner:
        owner.approver.ask(question(1))
        await trio.sleep(ASKED_FOR - 1)
        owner.approver.ask(question(1))
        await trio.sleep(ASKED_FOR - 1)
        assert capsys.readouterr().out.count("\n") == 1
        await trio.sleep(2)
        assert "nobody has answered" in capsys.readouterr().out


async def test_an_answer_that_cannot_be_passed_on_is_asked_for_again(
    terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = True
    async with asking(terminal, lambda: not lost) as owner:
        owner.approver.ask(question(1))
        owner.type("y\n")
        await owner.answered(1)
        told = capsys.readouterr().out
        assert "cannot be told now" in told
        assert "may visit" not in told
        lost = False
        owner.type("n\n")
        assert await owner.answered(2) == [("192.0.2.1", True), ("192.0.2.1", False)]
        assert "is kept out" in capsys.readouterr().out


def test_a_script_hears_what_became_of_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def approve(service: int, host: str, approved: bool) -> bool:
        if service:
            raise ValueError("there is no service 1")
        return approved

    approver = Approver(approve, as_json=True)
    approver._hear(
        b'{"approve": "192.0.2.1"}\n{"deny": "192.0.2.1"}\n{"deny": "x"}\n'
        b'{"approve": "192.0.2.1", "service": 1}\n{"approve": "::1", "service": true}\n[]\nx\n'
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {"not-understood"}
    reasons = [event["reason"] for event in events]
    assert "connection to it is lost" in reasons[0]
    assert "'x'" in reasons[1]
    assert reasons[2:5] == [
        "there is no service 1",
        "service is not a number",
        "neither approve nor deny",
    ]
    assert len(reasons) == 6


async def test_a_script_is_asked_again_as_well(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    approver = Approver(lambda *_: True, as_json=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(approver.expire)
        for _ in range(2):
            approver.ask(question(1))
            approver.ask(question(1))
            await trio.sleep(ASKED_FOR + 1)
        nursery.cancel_scope.cancel()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["approval-asked"] * 2


BACKGROUND = """
import os, signal, sys, trio
from trionat.cli.approvals import Approver
from trionat.events import ApprovalAsked

def approve(_, host, approved):
    print("ANSWER", host, approved, flush=True)
    return True

async def main():
    approver = Approver(approve, as_json=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(approver.listen)
        approver.ask(ApprovalAsked(service=0, name="shop", host="192.0.2.1", what="GET /"))
        approver.ask(ApprovalAsked(service=0, name="shop", host="192.0.2.2", what="GET /"))

child = os.fork()
if not child:
    os.setpgid(0, 0)
    trio.run(main)
    print("ENDED", flush=True)
    os._exit(0)
os.setpgid(child, child)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if input() != "y":
    print("STOLEN", flush=True)
pid, status = os.waitpid(child, os.WUNTRACED | os.WNOHANG)
print("STOPPED" if pid else "GOES ON", flush=True)
if input() == "fg":
    os.tcsetpgrp(0, child)
os.waitpid(child, 0)
os.tcsetpgrp(0, os.getpgrp())
"""
"""A shell with a program in the background that asks; what is typed is the shell's until it says `fg`."""


@pytest.fixture
def shell() -> Iterator[tuple[int, int]]:
    """Run it with a terminal of its own; returns its number and the other end of the terminal."""
    child, master = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", BACKGROUND])
    yield child, master
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(master)


def read_until(master: int, text: str, *, within: float = 20.0) -> str:
    """Read what a terminal shows until it has shown a text; fail the test if it does not come."""
    os.set_blocking(master, False)
    seen, until = "", time.monotonic() + within
    while text not in seen:
        assert time.monotonic() < until, seen
        try:
            seen += os.read(master, 4096).decode()
        except BlockingIOError:
            time.sleep(0.02)
    return seen


def test_in_the_background_nothing_is_read(shell: tuple[int, int]) -> None:
    """What is typed is for the shell, and who reads it nevertheless is stopped."""
    _, master = shell
    read_until(master, "192.0.2.1 wants to visit shop")
    os.write(master, b"y\n")
    seen = read_until(master, "GOES ON")
    assert "ANSWER" not in seen
    assert "STOLEN" not in seen
    os.write(master, b"fg\n")
    time.sleep(0.5)
    os.write(master, b"y\ny\n")
    seen = read_until(master, "192.0.2.2 wants to visit shop")
    assert seen.count("ANSWER 192.0.2.1 True") == 1
    assert "ANSWER 192.0.2.2" not in seen
    os.write(master, b"n\n")
    read_until(master, "ANSWER 192.0.2.2 False")
