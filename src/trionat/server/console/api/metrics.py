"""What Prometheus reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from trionat.server.console.operation import Nothing, Operation
from trionat.server.console.principal import Permission

if TYPE_CHECKING:
    from trionat.config.server import ServerConfig
    from trionat.server.console.operation import Call


async def _show(call: Call[Nothing, Nothing]) -> Response:
    content_type, text = await call.context.exposition.render(call.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


def operation(config: ServerConfig) -> Operation:
    """Return the operation: it is for administrators, since the bytes of all users are in it, or for everybody where the configuration says so."""
    is_open = config.open_metrics
    return Operation(
        method="GET",
        path="/metrics",
        name="show_metrics",
        summary="Metrics, as Prometheus reads them",
        is_outside=True,
        permission=Permission.OPEN if is_open else Permission.METRICS,
        is_for_admins=not is_open,
        answer=str,
        media_type="text/plain",
        handle=_show,
    )
