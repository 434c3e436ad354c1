"""Certificates of names."""

from __future__ import annotations

from trionat.server.admin.snapshot import CertificateView
from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page


async def _list(call: Call[ByText, Nothing]) -> Page[CertificateView]:
    sample = await call.context.sampler.look()
    return cut_page(
        sample.snapshot.certificates,
        lambda each: each.name,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/certificates",
        name="list_certificates",
        summary="How the certificates stand of the names that are in use",
        is_for_admins=True,
        parameters=ByText,
        answer=Page[CertificateView],
        handle=_list,
        is_long=True,
    ),
)
