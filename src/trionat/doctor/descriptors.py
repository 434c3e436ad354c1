"""Whether this process may have as many descriptors as its configuration needs."""

from __future__ import annotations

from trionat.doctor.finding import Finding, fine, wrong
from trionat.system import find_descriptor_limit

_RAISE = (
    "raise the limit: ulimit -n, under systemd LimitNOFILE, in /etc/security/limits.conf nofile"
)


def check_descriptors(needed: int, what: str) -> list[Finding]:
    """Compare the hard limit, up to which trionat goes by itself, with what is needed for `what`."""
    limit = find_descriptor_limit(at_most=True)
    if limit is None:
        return [fine(f"no limit; {needed} are needed at most ({what})")]
    if limit >= needed:
        return [fine(f"{limit} may be open; {needed} are needed at most ({what})")]
    return [wrong(f"{limit} may be open, and {needed} are needed for {what}", _RAISE)]
