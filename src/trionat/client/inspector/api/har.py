"""A HAR file of one visitor, or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from trionat.client.inspector.har import Har
from trionat.client.inspector.operation import Operation, do_while_wanted
from trionat.client.inspector.problem import Problem
from trionat.client.inspector.snapshot import Snapshot

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.client.inspector.context import Context


async def _har(context: Context, request: Request) -> Response:
    """Write a HAR file of one visitor, or of all."""
    recordings = list(context.recorder.recordings.values())
    name = "trionat.har"
    if wanted := request.query_params.get("visitor"):
        recordings = [each for each in recordings if str(each.number) == wanted]
        name = f"trionat-{recordings[0].number}.har" if recordings else name
        if not recordings:
            raise Problem(404, "not_found", "this visitor is not listed any more")
    with_secrets = request.query_params.get("secrets") == "1"
    har = Har(with_secrets=with_secrets)
    try:
        content = await do_while_wanted(
            request, lambda: har.write(map(Snapshot.of, recordings)), limiter=context.writing
        )
    finally:
        har.stop()
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="application/json", headers=headers)


OPERATIONS: Final = (Operation("GET", "/api/har", _har),)
