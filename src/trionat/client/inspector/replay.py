"""Sends to a local service once more what a visitor has sent, as it was or edited. Each replay is a recording of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.inspector.http_view import read_conversation
from trionat.log import get_logger
from trionat.transport.endpoint import TLS_RECORD_BYTES, send_all
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from trionat.client.inspector.recorder import RecordedEndpoint, RecordingForwarder
    from trionat.client.inspector.recording import Recording

log = get_logger(__name__)

MOST_AT_ONCE: Final = 16
WITHIN: Final = 30.0
"""Seconds for a replay, from connecting to the end of the answer."""

QUIET: Final = 2.0
"""Seconds of silence after which an answer counts as complete that does not say where it ends."""

_LOOK_AFTER: Final = 0.05
"""Seconds of silence after which to look whether an HTTP answer is complete."""

MOST_FIELDS: Final = 200

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", re.ASCII)
_TARGET: Final = re.compile(r"[!-~\x80-\xff]{1,65536}")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]{0,65536}")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})


class EditError(ValueError):
    """A request that was edited cannot be sent; `field` says which part of it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def write_request(
    method: str,
    target: str,
    fields: list[tuple[str, str]],
    body: bytes,
    *,
    minor: int = 1,
    is_new_body: bool = True,
) -> bytes:
    """Return the bytes of a request that somebody has edited. How long its body is is said anew; a new body is not compressed.

    Raises:
        EditError: what would not be one request.
    """
    if not _TOKEN.fullmatch(method):
        raise EditError("method", "a method is one word, such as GET")
    if not _TARGET.fullmatch(target):
        raise EditError("target", "a target is a path such as /orders?page=2, without blanks")
    if len(fields) > MOST_FIELDS:
        raise EditError("fields", f"more than {MOST_FIELDS} header fields")
    lines = [f"{method} {target} HTTP/1.{minor}"]
    had_body = False
    for name, value in fields:
        if not _TOKEN.fullmatch(name):
            raise EditError("fields", f"a header field's name is one word: {name[:64]!r} is not")
        if not _VALUE.fullmatch(value):
            raise EditError(
                "fields",
                f"the value of {name} has a line break or another control character, or a character that bytes have not",
            )
        if name.lower() in _FRAMING:
            had_body = True
        elif is_new_body and name.lower() == "content-encoding":
            continue
        else:
            lines.append(f"{name}: {value}")
    if body or had_body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@attrs.define(eq=False)
class Replays:
    """Runs them in tasks of its own, a few at once, each within `within` seconds."""

    forwarder: RecordingForwarder
    within: float = WITHIN
    quiet: float = QUIET
    _running: int = attrs.field(init=False, default=0)

    @property
    def is_full(self) -> bool:
        """Whether there are as many as may be."""
        return self._running >= MOST_AT_ONCE

    async def run(
        self,
        original: Recording,
        data: bytes,
        *,
        is_http: bool,
        ends: bool,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect as for the visitor of a recording, send, and take what is answered. The task's status is the new recording's number.

        `ends` says that nothing follows what is sent, and that the service is told so.

        Raises:
            LocalServiceError: before the status: the service cannot be reached.
        """
        self._running += 1
        try:
            endpoint = await self.forwarder.open_recorded(
                original.service,
                original.visitor,
                original.visited,
                replay_of=original.number,
            )
            task_status.started(endpoint.recording.number)
            with isolated(log, "replay failed"):
                await self._serve(endpoint, data, is_http=is_http, ends=ends)
        finally:
            self._running -= 1

    async def _serve(
        self, endpoint: RecordedEndpoint, data: bytes, *, is_http: bool, ends: bool
    ) -> None:
        why = "the client stops"
        try:
            with trio.move_on_after(self.within) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, endpoint, data, ends)
                    why = await self._receive(endpoint, is_http=is_http)
                    nursery.cancel_scope.cancel(why)
            if scope.cancelled_caught:
                why = f"no complete answer within {self.within:g} s"
        except* OSError:
            why = "the local service reset its connection"
        finally:
            endpoint.close()
            self.forwarder.note_closed(endpoint, why)

    async def _send(self, endpoint: RecordedEndpoint, data: bytes, ends: bool) -> None:
        await send_all(endpoint, data)
        if ends:
            endpoint.send_eof()

    async def _receive(self, endpoint: RecordedEndpoint, *, is_http: bool) -> str:
        """Take what is answered until that is complete; return how that was seen."""
        room = memoryview(bytearray(TLS_RECORD_BYTES))
        while True:
            try:
                if not endpoint.recv_into(room):
                    return "answered; the local service has closed its connection"
            except BlockingIOError:
                if (why := await self._wait(endpoint, is_http=is_http)) is not None:
                    return why
            else:
                await trio.lowlevel.checkpoint()

    async def _wait(self, endpoint: RecordedEndpoint, *, is_http: bool) -> str | None:
        """Wait for more; return why there will be none."""
        sent = endpoint.recording.sent
        if is_http and sent.count:
            with trio.move_on_after(_LOOK_AFTER):
                await endpoint.readable.wait()
                return None
            if _is_answered(endpoint.recording):
                return "answered"
        if not sent.count:
            await endpoint.readable.wait()
            return None
        with trio.move_on_after(self.quiet):
            await endpoint.readable.wait()
            return None
        return f"answered; then silent for {self.quiet:g} s"


def _is_answered(recording: Recording) -> bool:
    """Whether all requests have their whole answer, as far as that can be told."""
    sent = recording.sent
    if not sent.is_whole:
        return False
    view = read_conversation(bytes(recording.received.data), bytes(sent.data))
    return bool(view.exchanges) and all(
        exchange.answer is not None and exchange.answer.is_whole and not exchange.is_switched
        for exchange in view.exchanges
    )
