"""The values that go over a link, to JSON and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.address import TCPAddress
from trionat.protocol.messages import ServiceRequest
from trionat.server.accounts.credential import Credential
from trionat.server.accounts.limits import Share
from trionat.server.admission.authenticator import Identity
from trionat.server.registry.claim import Claim, Wish
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Values


_TUPLES: Final = ("visit_ports", "allow_visitors", "deny_visitors")


def read_key(value: Any) -> LeaseKey:
    """Read a key; JSON has lists in place of tuples."""
    user, name = value
    return user, name if isinstance(name, str) else (name[0], name[1])


def read_limits(values: Values) -> Limits:
    """Read a user's limits."""
    tuples = {name: _tuple(values[name]) for name in _TUPLES}
    return Limits(**{**values, **tuples})


def _tuple(value: Any) -> Any:
    return None if value is None else tuple(value)


def write_wish(wish: Wish) -> Values:
    """Write a wish."""
    return {
        "key": wish.key,
        "services": [attrs.asdict(service) for service in wish.services],
        "limits": attrs.asdict(wish.limits),
        "group": wish.group,
    }


def read_wish(values: Values) -> Wish:
    """Read a wish."""
    return Wish(
        key=read_key(values["key"]),
        services=tuple(ServiceRequest(**service) for service in values["services"]),
        limits=read_limits(values["limits"]),
        group=values["group"],
    )


def write_claim(claim: Claim) -> Values:
    """Write a claim with its wish."""
    return {
        "wish": write_wish(claim.wish),
        "ports": claim.ports,
        "fence": claim.fence,
        "holder": claim.holder,
    }


def read_claim(values: Values) -> Claim:
    """Read a claim with its wish."""
    return Claim(
        wish=read_wish(values["wish"]),
        ports=tuple(values["ports"]),
        fence=values["fence"],
        holder=values["holder"],
    )


def write_identity(identity: Identity) -> Values:
    """Write as whom somebody has logged in."""
    return {
        "username": identity.username,
        "account_id": identity.account_id,
        "limits": attrs.asdict(identity.limits),
        "credential": write_credential(identity.credential),
    }


def read_identity(values: Values) -> Identity:
    """Read as whom somebody has logged in."""
    return Identity(
        username=values["username"],
        account_id=values["account_id"],
        limits=read_limits(values["limits"]),
        credential=read_credential(values["credential"]),
    )


def write_credential(credential: Credential | None) -> Values | None:
    """Write what a login has shown."""
    if credential is None:
        return None
    return {
        "by_ticket": credential.by_ticket,
        "digest": credential.digest.hex(),
        "plain": credential.plain,
    }


def read_credential(values: Values | None) -> Credential | None:
    """Read what a login has shown."""
    if values is None:
        return None
    return Credential(values["by_ticket"], bytes.fromhex(values["digest"]), values["plain"])


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
