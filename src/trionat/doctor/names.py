"""Whether the names of services lead to this server, in the domain name system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionat.doctor.finding import Finding, fine, unknown, wrong
from trionat.server.names.dns_records import find_wrong, needed

if TYPE_CHECKING:
    from trionat.doctor.host import Host


async def check_names(host: Host, domain: str) -> list[Finding]:
    """Look up a name below the domain, and the domain itself."""
    public = await trio.to_thread.run_sync(host.public)
    if public is None:
        return [unknown("where names have to lead is known at the first start, or by PublicAddr")]
    if not needed(domain, public):
        return [fine(f"{domain} is an address, which nobody has to look up")]
    faults = await find_wrong(domain, public)
    if not faults:
        return [fine(f"*.{domain} and {domain} lead to {public.host}")]
    return [
        wrong(
            fault.what.removesuffix(": make this DNS record")
            + (f" ({fault.leads_to})" if fault.leads_to else ""),
            f"DNS record: {fault.record}",
        )
        for fault in faults
    ]
