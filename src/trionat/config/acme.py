"""The section `Acme`: from which authority certificates for names come, by the protocol ACME (RFC 8555)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from trionat.config.key import AT_ONCE, key
from trionat.config.values import BOOLEAN, PATH, TEXT, Kind, whole
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.config.key import Fault

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"


def _read_directory(text: str) -> str:
    if not _is_directory(text):
        raise ValueError(f"{quoted(text)} is not {DIRECTORY.words}")
    return text


def _is_directory(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme == "https"
            and bool(parts.hostname)
            and parts.port != 0
            and parts.username is None
        )
    except ValueError:
        return False


DIRECTORY: Final = Kind("the URL of a directory of ACME, https://HOST/PATH", _read_directory)


@attrs.frozen(kw_only=True)
class AcmeConfig:
    """Where certificates for names come from: the section `Acme`."""

    section: ClassVar[str] = "Acme"

    directory: str = attrs.field(
        default=LETS_ENCRYPT,
        metadata=key(
            "Directory", DIRECTORY, "the authority from which certificates come", flag=None
        ),
    )
    email: str = attrs.field(
        default="",
        metadata=key("Email", TEXT, "where the authority writes to; few do", flag=None),
    )
    agree_terms: bool = attrs.field(
        default=True,
        metadata=key(
            "AgreeTerms",
            BOOLEAN,
            "whether the server agrees to the authority's terms for you; without that there is no certificate where it has any",
            flag=None,
        ),
    )
    ca_file: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CAFile",
            PATH,
            "certificate authorities to check the directory's server by, PEM",
            unset="the usual ones",
            flag=None,
        ),
    )
    orders_per_day: int = attrs.field(
        default=300,
        metadata=key(
            "OrdersPerDay",
            whole(1, 10_000),
            "orders within 24 hours, by each node of a cluster; at most half of them for names that have failed before, a tenth (at least 5) for new names of one account, the last fifth for renewals only",
            flag=None,
            effect=AT_ONCE,
        ),
    )

    def faults(self) -> Iterator[Fault]:
        """Nothing can contradict."""
        yield from ()

    def warnings(self) -> Iterator[Fault]:
        """What is most likely not meant."""
        if not self.agree_terms:
            yield ("agree_terms",), "an authority that has terms gives no certificate then"
