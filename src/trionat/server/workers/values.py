"""The values that go over a link, to JSON and back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from trionat.address import TCPAddress
from trionat.server.accounts.credential import read_credential, write_credential
from trionat.server.accounts.limits import Share
from trionat.server.accounts.name_owners import Reservation
from trionat.server.admission.authenticator import Identity
from trionat.server.registry.values import read_limits

if TYPE_CHECKING:
    from trionat.server.workers.link import Values


def write_identity(identity: Identity) -> Values:
    """Write as whom somebody has logged in."""
    return {
        "username": identity.username,
        "account_id": identity.account_id,
        "limits": attrs.asdict(identity.limits),
        "credential": write_credential(identity.credential),
        "caveats": identity.caveats,
        "expires_at": _write_moment(identity.expires_at),
    }


def read_identity(values: Values) -> Identity:
    """Read as whom somebody has logged in."""
    return Identity(
        username=values["username"],
        account_id=values["account_id"],
        limits=read_limits(values["limits"]),
        credential=read_credential(values["credential"]),
        caveats=tuple(values["caveats"]),
        expires_at=_read_moment(values["expires_at"]),
    )


def _write_moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _read_moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def write_reservation(reservation: Reservation) -> Values:
    """Write which names have become an account's."""
    return {**attrs.asdict(reservation), "at": reservation.at.isoformat()}


def read_reservation(values: Values) -> Reservation:
    """Read which names have become an account's."""
    return Reservation(
        user=values["user"],
        account_id=values["account_id"],
        names=tuple(values["names"]),
        at=datetime.fromisoformat(values["at"]),
    )


def write_addresses(*addresses: TCPAddress) -> str:
    """Write whose a connection is, and where it went, as the text of its descriptor."""
    return " ".join(f"{address.host} {address.port}" for address in addresses)


def read_addresses(text: str) -> list[TCPAddress]:
    """Read the addresses of a connection."""
    words = text.split(" ")
    return [TCPAddress(host, int(port)) for host, port in zip(words[::2], words[1::2], strict=True)]


def read_share(values: Values) -> Share:
    """Read a share of a user's limits."""
    return Share(visitors=values["visitors"], bandwidth=values["bandwidth"])
