"""What of a state folder is in a backup, and what is left out on purpose.

A list of what may be there: whatever has no place in it is neither taken from a folder nor put into one.
"""

from __future__ import annotations

import re
from typing import Final

DATABASE: Final = "trionat.db"
JOURNAL: Final = "traffic.json"
CERTIFICATE: Final = "server.crt"

MOST_BYTES: Final = 64 * 1024 * 1024
"""In one file besides the database. Chosen: some ten times what the longest of them gets (an audit, 4 MiB)."""

MOST_FILES: Final = 20_000
"""Chosen: twice as many as there may be certificates."""

_KEPT: Final = re.compile(
    r"server\.key|server\.crt|ticket\.key|trionat\.db|traffic\.json|address|other_servers|certificate|cluster"
    r"|known_servers|identity"
    r"|audit\.log(?:\.[0-9]{1,2})?"
    r"|events/(?:positions\.json|journal\.older\.jsonl|journal\.jsonl)"
    r"|certificates/(?:account\.key|schedule\.json)"
    # As `certificates/store.py` writes names: whole, in small letters, an address of IPv6 with `_`.
    r"|certificates/[a-z0-9_][a-z0-9._-]{0,252}/certificate\.pem",
    re.ASCII,
)

_SECRET: Final = re.compile(
    r"server\.key|ticket\.key|trionat\.db|certificates/.*\.(?:key|pem)", re.ASCII
)

_LEFT_OUT: Final = (
    (
        re.compile(r"serve\.lock|audit\.lock|known_servers\.lock"),
        "a lock, in which nothing is: made when it is needed",
    ),
    (re.compile(r"connect-[0-9a-f]{16}\.lock"), "a lock of a client that is up, or was killed"),
    (re.compile(r".*\.sock"), "where the server that runs is reached: made when one starts"),
    (
        re.compile(r"node"),
        "it tells this node of a cluster from others: a copy must not pass for it",
    ),
    (re.compile(r"trionat\.db-(?:wal|shm)"), "what is in it is in the copy of trionat.db"),
    (re.compile(r"\..+\.tmp"), "a file that was being written"),
    (
        re.compile(r"(?:server|client)\.log(?:\.[0-9]+)?|access.*\.log.*"),
        "a log: nothing needs it, and visitors are in it",
    ),
)

UNKNOWN: Final = "no file of trionat"
OF_DATABASE: Final = "not used: the configuration names a database"
JOURNAL_OF_DATABASE: Final = "traffic that this server adds to the database itself: added by a copy as well, it would count twice"


def is_kept(name: str) -> bool:
    """Tell whether a file is for a backup, by its path in the state folder with `/`."""
    return _KEPT.fullmatch(name) is not None


def is_secret(name: str) -> bool:
    """Tell whether who reads the file can pass for somebody else."""
    return _SECRET.fullmatch(name) is not None


def why_left_out(name: str) -> str:
    """Return why a file that is not kept is none for a backup."""
    for pattern, reason in _LEFT_OUT:
        if pattern.fullmatch(name):
            return reason
    return UNKNOWN
