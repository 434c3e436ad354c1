"""Approve to enter, at the client's terminal: who wants to visit is asked about, one after another, and a line is the answer."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import attrs
import trio

from trionat.cli.output import say
from trionat.cli.screen.language import ENGLISH, Language
from trionat.events import ApprovalAsked
from trionat.log import escape
from trionat.protocol.messages import ASKED_FOR
from trionat.signals import Signal

_MOST: Final = 32
"""Questions that are kept; the server has no more open for a service either."""

_LINE: Final = 4096

_LOOK_AGAIN: Final = 0.5
"""Seconds after which a program in the background looks whether the terminal is its own again: nothing tells it."""


@attrs.define(eq=False)
class Approver:
    """Asks, and hears the answers on standard input: `y` or `n` at a terminal, objects in JSON lines from a script.

    `approve` gets service, address and answer, and returns whether they could be passed on. Whoever has no terminal, and gives no lines, lets nobody in.

    With `on_screen` a screen shows `question` and hears the keys, which it gives to `answer`: nothing is read here. People are asked in `language`.

    With `nobody_answers` nobody is asked: it is told who stays out.

    At a terminal the first question is the one that is shown. An answer is for that one, and only if it was typed after the question was shown.
    """

    approve: Callable[[int, str, bool], bool]
    as_json: bool
    on_screen: bool = False
    language: Language = ENGLISH
    nobody_answers: bool = False
    _questions: dict[tuple[int, str], tuple[ApprovalAsked, float]] = attrs.field(
        init=False, factory=lambda: {}
    )
    _asked: Signal = attrs.field(init=False, factory=Signal)
    _terminal: int | None = attrs.field(init=False, default=None)
    _heard: bytes = attrs.field(init=False, default=b"")

    def ask(self, question: ApprovalAsked) -> None:
        """Ask, now or when the questions before are answered."""
        if self.nobody_answers and not self.as_json:
            say(f"{self._word(question)}. It stays out, as nobody can be asked here")
            return
        key, until = (question.service, question.host), trio.current_time() + ASKED_FOR
        if key in self._questions:  # the server has asked anew
            self._questions[key] = self._questions[key][0], until
            return
        if len(self._questions) >= _MOST:  # never the first, to which the next answer belongs
            del self._questions[list(self._questions)[1]]
        self._questions[key] = question, until
        self._asked.notify()
        if self.as_json:
            say(json.dumps({"event": "approval-asked", **attrs.asdict(question)}))
        elif len(self._questions) == 1:
            self._show()

    def _show(self) -> None:
        """Show the first question, and forget what was typed before: it cannot be an answer to that."""
        self._heard = b""
        if self._terminal is not None and _is_ours(self._terminal):
            _drop_typed(self._terminal)
        if not self.on_screen:
            say(f"{self.question}. Let it in for a day? y or n, and Enter")

    @property
    def question(self) -> str | None:
        """The first question in words, None where there is none."""
        if not self._questions:
            return None
        question, _ = next(iter(self._questions.values()))
        asked = self._word(question)
        if (more := len(self._questions) - 1) == 0:
            return asked
        return self.language("{question} ({count} more)", question=asked, count=more)

    def _word(self, question: ApprovalAsked) -> str:
        return self.language(
            "{host} wants to visit {name}: {what}",
            host=question.host,
            name=escape(question.name),
            what=escape(question.what),
        )

    def answer(self, *, approved: bool) -> None:
        """Take what the owner has said to `question`."""
        if self._questions:
            self._take("y" if approved else "n")

    async def expire(self) -> None:
        """Forget questions that nobody answers, as the server does, until cancelled."""
        while True:
            while not self._questions:
                await self._asked.wait()
            await trio.sleep_until(min(until for _, until in self._questions.values()))
            self._forget(trio.current_time())

    def _forget(self, now: float) -> None:
        shown = next(iter(self._questions), None)
        for key, (question, until) in list(self._questions.items()):
            if until > now:
                continue
            del self._questions[key]
            if key == shown and not self.as_json:
                say(
                    self.language(
                        "nobody has answered for {host}: if it comes again, you are asked again",
                        host=question.host,
                    )
                )
        if not self.as_json and self._questions and shown not in self._questions:
            self._show()

    async def listen(self) -> None:
        """Hear answers until cancelled, or until there is nothing to hear any more. Nothing is taken from standard input that was not written for us."""
        if self.on_screen or sys.platform == "win32" or sys.stdin is None or sys.stdin.closed:
            return
        descriptor = sys.stdin.fileno()
        if not self.as_json:
            if not os.isatty(descriptor):
                return
            self._terminal = descriptor
        while True:  # noqa: ASYNC913 - ends where there is nothing to hear
            try:
                await trio.lowlevel.wait_readable(descriptor)
                if not _is_ours(descriptor):
                    await trio.sleep(_LOOK_AGAIN)
                    continue
                data = os.read(descriptor, _LINE)
            except OSError:  # a file, or a terminal that is gone
                return
            if not data:
                return
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        """Take the lines that are whole; a question that is shown meanwhile ends that."""
        self._heard = (self._heard + data)[-2 * _LINE :]
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            self._take(line.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        if self.as_json:
            self._take_json(line)
        elif self._questions and line:
            approved = line.lower() in ("y", "yes")
            if not approved and line.lower() not in ("n", "no"):
                say("y lets it in for a day, n keeps it out for an hour")
                return
            key, (question, _) = next(iter(self._questions.items()))
            if not self.approve(question.service, question.host, approved):
                say(
                    self.language(
                        "the server cannot be told now, as the connection to it is lost: answer again when it is back"
                    )
                )
                return
            del self._questions[key]
            say(
                self.language("{host} may visit for a day", host=question.host)
                if approved
                else self.language("{host} is kept out for an hour", host=question.host)
            )
            if self._questions:
                self._show()

    def _take_json(self, line: str) -> None:
        """Take `{"approve": ADDRESS}` or `{"deny": ADDRESS}`, with `"service": NUMBER` where there are several."""
        try:
            match json.loads(line):
                case {"approve": str(host), **rest}:
                    approved = True
                case {"deny": str(host), **rest}:
                    approved = False
                case _:
                    raise ValueError("neither approve nor deny")
            host = str(ipaddress.ip_address(host))
            service = rest.get("service", 0)
            if type(service) is not int:
                raise ValueError("service is not a number")
            # Whatever comes of it: the next session tells what is still open.
            self._questions.pop((service, host), None)
            if not self.approve(service, host, approved):
                raise ValueError("the server cannot be told now, as the connection to it is lost")
        except (ValueError, RecursionError) as error:
            say(json.dumps({"event": "not-understood", "reason": str(error)}))


if sys.platform == "win32":

    def _is_ours(descriptor: int) -> bool:
        return True

    def _drop_typed(terminal: int) -> None:
        """There is no such thing."""

else:
    import termios

    def _is_ours(descriptor: int) -> bool:
        """Tell whether what is typed is for us: in the background of a terminal it is for the shell, and who reads it is stopped (SIGTTIN)."""
        try:
            return os.tcgetpgrp(descriptor) == os.getpgrp()
        except OSError:  # a pipe, or another session's terminal: nobody is stopped for these
            return True

    def _drop_typed(terminal: int) -> None:
        """Drop what was typed and not read yet, a line that is not whole among it."""
        with suppress(termios.error):  # it is gone
            termios.tcflush(terminal, termios.TCIFLUSH)
