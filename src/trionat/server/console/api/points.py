"""Visit ports and names: who holds which, and what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import attrs

from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.server.console.sampler import Sample


@attrs.frozen(kw_only=True)
class PointRow:
    """A visit port, by its number, or a name. `session`, `client` and `service` are there where it is held, and `url` where it is published by name."""

    point: int | str
    state: Literal["free", "held", "reserved"]
    user: str | None = None
    session: int | None = None
    client: str | None = None
    service: str | None = None
    url: str | None = None

    @property
    def place(self) -> str:
        """Where it stands in the list: ports by number, then names."""
        return f"0 {self.point:05}" if isinstance(self.point, int) else f"1 {self.point}"


def _taken(sample: Sample) -> Iterator[PointRow]:
    for session in sample.snapshot.sessions:
        for service in session.services:
            name = None if service.url is None else urlsplit(service.url).hostname
            yield PointRow(
                point=service.port or name or "",
                state="held",
                user=session.user,
                session=session.uid,
                client=session.client,
                service=service.name,
                url=service.url,
            )
    for reserved in sample.snapshot.reserved:
        points: tuple[int | str, ...] = (*reserved.ports, *reserved.names)
        for point in points:
            yield PointRow(point=point, state="reserved", user=reserved.user)


async def _list(call: Call[ByText, Nothing]) -> Page[PointRow]:
    sample = await call.context.sampler.look()
    # What is free would tell others which they are that somebody has.
    ports = call.context.ready.visit_ports if call.principal.is_admin else ()
    rows: dict[int | str, PointRow] = {port: PointRow(point=port, state="free") for port in ports}
    for row in _taken(sample):  # of a group several hold the same one: the first stands for it
        if row.user is not None and not call.principal.may_see(row.user):
            continue
        there = rows.get(row.point)
        if there is None or there.state != "held":
            rows[row.point] = row
    return cut_page(
        rows.values(),
        lambda row: row.place,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/points",
        name="list_points",
        summary="Visit ports and names; those of others, and what is free, only for an administrator",
        parameters=ByText,
        answer=Page[PointRow],
        handle=_list,
        is_long=True,
    ),
)
