"""Which names the services of a client get: whole ones of what it asks for, and some of its own where it asks for none."""

from __future__ import annotations

import ipaddress
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs

from trionat.default_labels import default_labels
from trionat.errors import RefusedError
from trionat.hostnames import whole_name
from trionat.protocol.messages import PublishKind, RefusalCode
from trionat.server.visitors.restrictions import Restrictions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.accounts.scope import Scope
    from trionat.server.visitors.ports import LeaseKey

MOST_CHOICES: Final = 8
"""Names that are tried for a service that asks for none, one after another. Chosen: the first is taken once in a million."""

_NO_DOMAIN: Final = (
    "this server has no domain, so services have visit ports only (Domain, --domain)"
)


def _is_address(domain: str) -> bool:
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        return False
    return True


@attrs.frozen
class Naming:
    """Names below a domain, or the one name that an address is; without a domain there are none."""

    domain: str | None

    def whole(self, services: Sequence[ServiceRequest], scope: Scope) -> tuple[ServiceRequest, ...]:
        """Return the services with whole names, where they ask for one.

        Raises:
            RefusedError: a name is not for this server, not for this account or ticket, or asked for twice.
        """
        if all(service.publish is None for service in services):
            return tuple(services)
        if self.domain is None:
            raise RefusedError(RefusalCode.NAME_NOT_OFFERED, _NO_DOMAIN)
        named = tuple(self._whole(service, self.domain, scope) for service in services)
        names = [service.hostname for service in named if service.hostname is not None]
        if len(set(names)) < len(names):
            raise RefusedError(
                RefusalCode.NAME_NOT_OFFERED, "one name was asked for by two services"
            )
        if _is_address(self.domain) and sum(not service.has_port for service in named) > 1:
            raise RefusedError(
                RefusalCode.NAME_NOT_OFFERED,
                f"{self.domain} is an address, and so one name for one service: give the others visit ports, as in https:8080:60001",
            )
        return named

    def _whole(self, service: ServiceRequest, domain: str, scope: Scope) -> ServiceRequest:
        publish = service.publish
        if publish is None:
            return service
        try:
            Restrictions(publish)
        except ValueError as error:
            raise RefusedError(RefusalCode.NAME_NOT_OFFERED, str(error)) from error
        if publish.kind is PublishKind.HTTPS:
            return service
        if _is_address(domain):
            if publish.name is not None and "." not in publish.name:
                raise RefusedError(
                    RefusalCode.NAME_NOT_OFFERED,
                    f"{domain} is an address, and there is nothing below it: leave out the name {publish.name}",
                )
            if publish.name is None:
                name = domain
                if scope.account.names is not None or scope.only:
                    raise RefusedError(
                        RefusalCode.NAME_NOT_OFFERED,
                        f"{name} is not one of the names that this {scope.who} may have",
                    )
                return attrs.evolve(service, publish=attrs.evolve(publish, name=name))
        if publish.name is None:
            return service
        if (refusal := scope.refusal_of_name(publish.name, domain)) is not None:
            raise RefusedError(RefusalCode.NAME_NOT_OFFERED, refusal)
        name = whole_name(publish.name, domain)
        return attrs.evolve(service, publish=attrs.evolve(publish, name=name))

    def choices(
        self,
        services: Sequence[ServiceRequest],
        key: LeaseKey,
        group: str | None,
        scope: Scope,
    ) -> Iterator[tuple[ServiceRequest, ...]]:
        """Go through the ways to name the services that have whole names or none: the first one is the same every time.

        Raises:
            RefusedError: there is no name that they could have.
        """
        unnamed = [service for service in services if not (service.has_port or service.hostname)]
        if not unnamed or self.domain is None:
            yield tuple(services)
            return
        identity = key[1] if group is None else f"group {group}"
        taken = {service.hostname for service in services}
        labels = self._allowed(key[0], str(identity), scope, self.domain)
        names = [
            name
            for name in islice(labels, MOST_CHOICES + len(unnamed) - 1 + len(taken))
            if name not in taken
        ]
        if len(names) < len(unnamed):
            raise RefusedError(
                RefusalCode.NAME_NOT_OFFERED,
                f"this {scope.who} may have no name of the server's choice: ask for one of its own, as in http:8080@shop",
            )
        for first in range(len(names) - len(unnamed) + 1):
            chosen = iter(names[first:])
            yield tuple(
                service
                if service.has_port or service.hostname or service.publish is None
                else attrs.evolve(service, publish=attrs.evolve(service.publish, name=next(chosen)))
                for service in services
            )

    def _allowed(self, user: str, identity: str, scope: Scope, domain: str) -> Iterator[str]:
        for label in default_labels(user, identity):
            if scope.refusal_of_name(label, domain) is None:
                yield whole_name(label, domain)
