"""Approve to enter: the owner of a service says which addresses may visit it, and for how long that holds."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.networks import network_of
from trionat.protocol.messages import ASKED_FOR
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

APPROVED_FOR: Final = 24 * 3600.0
DENIED_FOR: Final = 3600.0
"""Seconds for which the owner's word holds."""

MOST_QUESTIONS: Final = 32
"""Open at once; visitors that come meanwhile wait until there are fewer."""

_MOST_ANSWERS: Final = 10_000


class Approval(enum.Enum):
    """What the owner has said of an address."""

    APPROVED = "approved"
    DENIED = "denied"
    WAITING = "waiting"


@attrs.frozen
class Question:
    """Which network wants to see something, `host` of it first, and what that was, in the visitor's words."""

    host: str
    what: str
    asked: float


@attrs.define(eq=False)
class Approvals:
    """The questions that are open, and the answers. Kept as long as the service is published: a client that comes back is asked what is still open.

    `changed` is notified when there is a question that there was not.
    """

    changed: Signal = attrs.field(init=False, factory=Signal)
    _questions: dict[str, Question] = attrs.field(init=False, factory=lambda: {})
    _answers: dict[str, tuple[Approval, float]] = attrs.field(init=False, factory=lambda: {})

    def find(self, host: str, what: str) -> Approval:
        """Return what the owner has said of an address; of one that is not known, ask."""
        network, now = network_of(host), trio.current_time()
        approval, until = self._answers.get(network, (Approval.WAITING, -1.0))
        if now < until:
            return approval
        self._forget(now)
        if network not in self._questions and len(self._questions) < MOST_QUESTIONS:
            self._questions[network] = Question(host, what, now)
            self.changed.notify()
        return Approval.WAITING

    def is_approved(self, host: str) -> bool:
        """Tell whether the owner has let an address in; asks nobody."""
        approval, until = self._answers.get(network_of(host), (Approval.WAITING, -1.0))
        return approval is Approval.APPROVED and trio.current_time() < until

    def open_questions(self) -> Iterator[Question]:
        """Go through the questions that wait for an answer, the oldest first."""
        self._forget(trio.current_time())
        yield from list(self._questions.values())

    def answer(self, host: str, *, approved: bool) -> None:
        """The owner has said whether an address may visit. One that has not asked is answered beforehand."""
        network, now = network_of(host), trio.current_time()
        self._questions.pop(network, None)
        self._answers.pop(network, None)
        if len(self._answers) >= _MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        if approved:
            self._answers[network] = Approval.APPROVED, now + APPROVED_FOR
        else:
            self._answers[network] = Approval.DENIED, now + DENIED_FOR

    def _forget(self, now: float) -> None:
        for network, question in list(self._questions.items()):
            if now - question.asked > ASKED_FOR:
                del self._questions[network]
