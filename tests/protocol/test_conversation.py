"""The law of a tunnel: two correct sides never break it, whatever crosses on the way, and every breach is seen."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trionat.errors import LocalProtocolError, RemoteProtocolError
from trionat.protocol.conversation import Conversation, Side

if TYPE_CHECKING:
    from collections.abc import Callable

Sent: TypeAlias = tuple[str, int]  # what, and the visitor or the number of a piece of data

SIDES = st.sampled_from(Side)


def other(side: Side) -> Side:
    return Side.CLIENT if side is Side.SERVER else Side.SERVER


class TwoSides(RuleBasedStateMachine):
    """Both ends of one tunnel, with everything in flight in two queues; and what the visitors should see of it."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = {side: Conversation(side) for side in Side}
        self.flying: dict[Side, deque[Sent]] = {side: deque() for side in Side}  # by sender
        self.said: dict[tuple[int, Side], list[int]] = defaultdict(list)
        self.heard: dict[tuple[int, Side], list[int]] = defaultdict(list)
        self.aborted: set[int] = set()
        self.visitors = 0
        self.pieces = 0

    def say(self, side: Side, what: str, number: int = 0) -> None:
        self.flying[side].append((what, number))

    def settle(self, side: Side) -> None:
        if self.talk[side].over:
            self.talk[side].finish()

    @rule()
    @precondition(lambda self: self.talk[Side.SERVER].idle)
    def open(self) -> None:
        self.visitors += 1
        self.talk[Side.SERVER].open(self.visitors)
        self.say(Side.SERVER, "open", self.visitors)

    @rule(side=SIDES)
    def data(self, side: Side) -> None:
        talk = self.talk[side]
        if talk.visitor is not None and not talk.sent_last:
            self.pieces += 1
            self.said[talk.visitor, side].append(self.pieces)
            self.say(side, "data", self.pieces)

    @rule(side=SIDES)
    def end(self, side: Side) -> None:
        talk = self.talk[side]
        if not talk.idle and not talk.sent_last:
            self.say(side, "end")
            talk.sent_end()
            self.settle(side)

    @rule(side=SIDES)
    def abort(self, side: Side) -> None:
        talk = self.talk[side]
        if talk.visitor is not None and talk.may_abort:
            self.aborted.add(talk.visitor)
            self.say(side, "abort", talk.visitor)
            talk.sent_abort()
            self.settle(side)

    @rule(sender=SIDES)
    def arrive(self, sender: Side) -> None:
        if not self.flying[sender]:
            return
        side = other(sender)
        talk = self.talk[side]
        match self.flying[sender].popleft():
            case "open", number:
                talk.receive_open(number)
            case "data", number:
                talk.receive_data()
                assert talk.visitor is not None
                if not talk.aborted:
                    self.heard[talk.visitor, side].append(number)
            case "end", _:
                talk.receive_end()
                self.settle(side)
            case "abort", number:
                current = talk.receive_abort(number)
                assert current == (number == talk.visitor)
                self.settle(side)

    @invariant()
    def nobody_hears_what_was_not_said(self) -> None:
        for (visitor, side), heard in self.heard.items():
            assert heard == self.said[visitor, other(side)][: len(heard)]

    @invariant()
    def whoever_was_not_aborted_heard_everything(self) -> None:
        if self.talk[Side.SERVER].idle:
            for visitor in set(range(1, self.visitors + 1)) - self.aborted:
                for side in Side:
                    if side is Side.SERVER or self.talk[side].visitor != visitor:
                        assert self.heard[visitor, side] == self.said[visitor, other(side)]

    @invariant()
    def the_server_opens_only_what_the_client_will_take(self) -> None:
        if self.talk[Side.SERVER].idle:
            assert not [what for what, _ in self.flying[Side.CLIENT] if what != "abort"]

    def teardown(self) -> None:
        """Both sides do what they owe; then nothing is left."""
        for _ in range(4):
            for side in Side:
                talk = self.talk[side]
                while self.flying[other(side)]:
                    self.arrive(other(side))
                if not talk.idle and not talk.sent_last:
                    (self.abort if talk.aborted else self.end)(side)
        assert all(talk.idle for talk in self.talk.values())
        assert not any(self.flying.values())
        self.whoever_was_not_aborted_heard_everything()


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def server(visitor: int | None = 1) -> Conversation:
    talk = Conversation(Side.SERVER)
    if visitor is not None:
        talk.open(visitor)
    return talk


def client(visitor: int | None = 1) -> Conversation:
    talk = Conversation(Side.CLIENT)
    if visitor is not None:
        talk.receive_open(visitor)
    return talk


def ended(talk: Conversation) -> Conversation:
    talk.receive_end()
    return talk


def resuming(side: Side, *, sent_last: bool = False, received_last: bool = False) -> Conversation:
    talk = Conversation(side)
    if side is Side.SERVER:
        talk.resume(1, received_last=received_last)
    else:
        talk.receive_resume(1, sent_last=sent_last, received_last=received_last)
    return talk


def resumed(talk: Conversation) -> Conversation:
    if talk.side is Side.SERVER:
        talk.receive_resumed(sent_last=False)
    else:
        talk.sent_resumed()
    return talk


def done(talk: Conversation) -> Conversation:
    talk.sent_end()
    talk.receive_end()
    talk.finish()
    return talk


BREACHES: dict[str, tuple[Callable[[], Conversation], Callable[[Conversation], Any], str]] = {
    "OPEN on a busy tunnel": (client, lambda talk: talk.receive_open(2), "busy with 1"),
    "OPEN before our last word": (lambda: ended(client()), lambda t: t.receive_open(2), "busy"),
    "OPEN from a client": (lambda: server(None), lambda t: t.receive_open(2), "OPEN from a client"),
    "DATA on an idle tunnel": (lambda: client(None), Conversation.receive_data, "DATA"),
    "DATA after END": (lambda: ended(server()), Conversation.receive_data, "DATA"),
    "DATA after the conversation": (lambda: done(server()), Conversation.receive_data, "DATA"),
    "END on an idle tunnel": (lambda: server(None), Conversation.receive_end, "END"),
    "END twice": (lambda: ended(client()), Conversation.receive_end, "END"),
    "RESUME on a busy tunnel": (
        client,
        lambda talk: talk.receive_resume(2, sent_last=False, received_last=False),
        "busy with 1",
    ),
    "RESUME from a client": (
        lambda: server(None),
        lambda talk: talk.receive_resume(2, sent_last=False, received_last=False),
        "from a client",
    ),
    "RESUMED on an idle tunnel": (
        lambda: server(None),
        lambda talk: talk.receive_resumed(sent_last=False),
        "RESUMED",
    ),
    "RESUMED after OPEN": (server, lambda t: t.receive_resumed(sent_last=False), "RESUMED"),
    "RESUMED twice": (
        lambda: resumed(resuming(Side.SERVER)),
        lambda talk: talk.receive_resumed(sent_last=False),
        "RESUMED",
    ),
    "DATA before RESUMED": (
        lambda: resuming(Side.SERVER),
        Conversation.receive_data,
        "before RESUMED",
    ),
    "DATA between RESUME and RESUMED": (
        lambda: resuming(Side.CLIENT),
        Conversation.receive_data,
        "before RESUMED",
    ),
    "END before RESUMED": (lambda: resuming(Side.SERVER), Conversation.receive_end, "END"),
    "END after one on the tunnel before": (
        lambda: resumed(resuming(Side.CLIENT, received_last=True)),
        Conversation.receive_end,
        "END",
    ),
    "DATA after END on the tunnel before": (
        lambda: resumed(resuming(Side.SERVER, received_last=True)),
        Conversation.receive_data,
        "DATA",
    ),
    "ABORT on a new tunnel": (lambda: client(None), lambda t: t.receive_abort(1), "visitor 1"),
    "ABORT of another visitor": (client, lambda t: t.receive_abort(7), "visitor 7"),
    "ABORT of the last but one": (
        lambda: done(_again(done(server(1)), 2)),
        lambda t: t.receive_abort(1),
        "visitor 1",
    ),
}


def _again(talk: Conversation, visitor: int) -> Conversation:
    talk.open(visitor)
    return talk


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_peer_is_refused(breach: str) -> None:
    make, do, complaint = BREACHES[breach]
    with pytest.raises(RemoteProtocolError, match=complaint):
        do(make())


def test_late_abort_is_ignored() -> None:
    talk = done(server(1))
    assert talk.receive_abort(1) is False
    talk.open(2)
    assert talk.receive_abort(1) is False
    assert (talk.received_last, talk.aborted) == (False, False)
    assert talk.receive_abort(2) is True
    assert talk.may_abort


def test_data_after_our_own_abort_is_on_its_way_still() -> None:
    talk = server()
    talk.sent_abort()
    talk.receive_data()
    talk.receive_end()
    assert talk.over


def test_abort_after_our_end_still_tells_something_but_only_once() -> None:
    talk = server()
    talk.sent_end()
    talk.sent_abort()
    assert not talk.may_abort
    with pytest.raises(LocalProtocolError):
        talk.sent_abort()


def test_abort_is_answered_unless_we_have_ended() -> None:
    talk = client()
    talk.receive_abort(1)
    assert talk.may_abort
    assert not talk.over
    talk = client()
    talk.sent_end()
    talk.receive_abort(1)
    assert talk.over
    assert not talk.may_abort


@pytest.mark.parametrize("side", Side)
def test_nobody_says_a_last_word_before_resumed(side: Side) -> None:
    talk = resuming(side)
    assert not talk.may_abort
    with pytest.raises(LocalProtocolError):
        talk.sent_end()
    with pytest.raises(LocalProtocolError):
        talk.sent_abort()
    talk = resumed(talk)
    assert talk.may_abort
    talk.sent_end()


def test_ends_that_have_arrived_are_not_said_again() -> None:
    talk = resuming(Side.SERVER, received_last=True)
    talk.receive_resumed(sent_last=True)
    assert talk.over
    talk.finish()
    assert talk.previous == 1
    talk = resumed(resuming(Side.CLIENT, sent_last=True))
    with pytest.raises(LocalProtocolError):
        talk.sent_end()
    talk.receive_end()
    assert talk.over


def test_abort_is_an_answer_to_resume() -> None:
    talk = resuming(Side.SERVER)
    assert talk.receive_abort(1) is True
    assert not talk.resuming
    assert talk.may_abort
    talk.sent_abort()
    assert talk.over
    with pytest.raises(RemoteProtocolError, match="RESUMED"):
        talk.receive_resumed(sent_last=False)


def test_a_conversation_is_finished_once() -> None:
    talk = done(server(1))
    with pytest.raises(LocalProtocolError):
        talk.finish()
    assert talk.previous == 1


OWN_BREACHES: dict[str, Callable[[], None]] = {
    "OPEN from a client": lambda: client(None).open(1),
    "OPEN on a busy tunnel": lambda: server().open(2),
    "OPEN before our last word": lambda: ended(server()).open(2),
    "RESUME from a client": lambda: client(None).resume(1, received_last=False),
    "RESUME on a busy tunnel": lambda: server().resume(2, received_last=False),
    "END on an idle tunnel": lambda: server(None).sent_end(),
    "END after the conversation": lambda: done(server()).sent_end(),
    "ABORT on an idle tunnel": lambda: server(None).sent_abort(),
    "finished before any last word": lambda: server().finish(),
    "finished before our last word": lambda: ended(server()).finish(),
}


@pytest.mark.parametrize("breach", OWN_BREACHES)
def test_our_own_breach_is_a_bug(breach: str) -> None:
    with pytest.raises(LocalProtocolError):
        OWN_BREACHES[breach]()


def test_end_twice_is_our_own_breach() -> None:
    talk = server()
    talk.sent_end()
    with pytest.raises(LocalProtocolError):
        talk.sent_end()
