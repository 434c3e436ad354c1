"""Keys, limits, wishes and claims as JSON has them, for other processes of this server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from trionat.protocol.messages import Publish, PublishKind, ServiceRequest
from trionat.server.registry.claim import Claim, Wish
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trionat.server.visitors.ports import LeaseKey

Values: TypeAlias = "dict[str, Any]"

_TUPLES: Final = ("visit_ports", "allow_visitors", "deny_visitors", "names")
_LISTS: Final = ("basic_auth", "allow", "deny")


def known(cls: type[attrs.AttrsInstance], values: Values) -> Values:
    """Return those of the values that the class has: another version may have more of them."""
    names = {field.name for field in attrs.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def read_key(value: Any) -> LeaseKey:
    """Read a key; JSON has lists in place of tuples."""
    user, name = value
    return user, name if isinstance(name, str) else (name[0], name[1])


def read_limits(values: Values) -> Limits:
    """Read a user's limits."""
    tuples = {name: _tuple(values.get(name)) for name in _TUPLES}
    return Limits(**{**known(Limits, values), **tuples})


def _tuple(value: Any) -> Any:
    return None if value is None else tuple(value)


def write_wish(wish: Wish) -> Values:
    """Write a wish."""
    return {
        "key": wish.key,
        "services": [service.value() for service in wish.services],
        "limits": attrs.asdict(wish.limits),
        "group": wish.group,
    }


def read_wish(values: Values) -> Wish:
    """Read a wish."""
    return Wish(
        key=read_key(values["key"]),
        services=tuple(map(read_service, values["services"])),
        limits=read_limits(values["limits"]),
        group=values["group"],
    )


def read_service(values: Values) -> ServiceRequest:
    """Read a service, as `ServiceRequest.value` has written it."""
    if (publish := values.get("publish")) is None:
        return ServiceRequest(**known(ServiceRequest, values))
    lists = {name: tuple(publish.get(name, ())) for name in _LISTS}
    fields: Values = {**known(Publish, publish), **lists, "kind": PublishKind(publish["kind"])}
    service: Values = {**known(ServiceRequest, values), "publish": Publish(**fields)}
    return ServiceRequest(**service)


def write_claim(claim: Claim) -> Values:
    """Write a claim with its wish."""
    return {
        "wish": write_wish(claim.wish),
        "points": claim.points,
        "fence": claim.fence,
        "holder": claim.holder,
    }


def read_claim(values: Values) -> Claim:
    """Read a claim with its wish."""
    return Claim(
        wish=read_wish(values["wish"]),
        points=tuple(values["points"]),
        fence=values["fence"],
        holder=values["holder"],
    )
