"""What handlers get at: the recorder, and what the inspector has of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio
from starlette.responses import Response

from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from trionat.client.inspector.live import LiveList
    from trionat.client.inspector.recorder import Recorder
    from trionat.client.inspector.recording import Recording
    from trionat.client.inspector.replay import Replays
    from trionat.transport.web_page import WebPage

_T = TypeVar("_T")

_THREADS: Final = 4


@attrs.frozen(eq=False, kw_only=True)
class Context:
    """See the module. `pages` are what browsers get, by their paths; `nursery` is where replays run."""

    pages: Mapping[str, WebPage]
    recorder: Recorder
    live: LiveList
    replays: Replays
    nursery: trio.Nursery
    searching: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(1)
    )
    """One search at a time: it takes the interpreter from the bytes of visitors."""

    writing: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))
    """One HAR file at a time: it takes memory too."""

    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(_THREADS)
    )

    def recording(self, request: Request) -> Recording:
        """Return that of the visitor whose number is in a request's path.

        Raises:
            Problem: it is not there any more.
        """
        recording = self.recorder.recordings.get(request.path_params["number"])
        if recording is None:
            raise Problem(404, "not_found", "this visitor is not listed any more")
        return recording

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Do what may take longer than a step of the loop; those who left do not wait for it."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)

    async def json(self, work: Callable[[], object], *, status: int = 200) -> Response:
        """Answer with what `work` returns, which is done in a thread."""
        content = await self.in_thread(lambda: _as_json(work()))
        return Response(content, status, media_type="application/json")


def append_json(text: bytearray, content: object) -> None:
    """Write in many short steps: `json.dumps` is one, and keeps the interpreter from the bytes of visitors for as long as it takes."""
    for piece in json.JSONEncoder().iterencode(content):
        text += piece.encode()


def _as_json(content: object) -> bytes:
    text = bytearray()
    append_json(text, content)
    return bytes(text)
