"""Whether this process may have as many descriptors as its configuration needs."""

from __future__ import annotations

from trionat.doctor.finding import Finding, fine, unknown, wrong

_RAISE = (
    "raise the limit: ulimit -n, under systemd LimitNOFILE, in /etc/security/limits.conf nofile"
)


def check_descriptors(needed: int, what: str) -> list[Finding]:
    """Compare the hard limit, up to which trionat goes by itself, with what is needed for `what`."""
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return [unknown("this system has no limit that can be asked for")]
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return [fine(f"no limit; {needed} are needed at most ({what})")]
    if limit >= needed:
        return [fine(f"{limit} may be open; {needed} are needed at most ({what})")]
    return [wrong(f"{limit} may be open, and {needed} are needed for {what}", _RAISE)]
