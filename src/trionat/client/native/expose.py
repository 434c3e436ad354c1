"""The EXPOSE of a client: what it tells a server of its services, and how many of them one message carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.errors import ConfigError, Problem
from trionat.log import get_logger
from trionat.networks import write_network
from trionat.protocol.fields import NAME_CHARACTERS
from trionat.protocol.frames import CONTROL_FRAME_BYTES
from trionat.protocol.messages import (
    MAX_SERVICES,
    Expose,
    Publish,
    PublishKind,
    ServiceRequest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.config.service import Service

log = get_logger(__name__)


def expose(
    services: Sequence[Service],
    preferred_ports: Sequence[int | None],
    *,
    idle_tunnels: int,
    group: str | None = None,
) -> Expose:
    """Return the message that asks a server for visit ports; `preferred_ports` has one for each service."""
    requests = (
        ServiceRequest(
            name=_label(service.name),
            local=_label(str(service.local)),
            visit_port=service.visit_port,
            preferred_port=preferred or None,
            publish=publish(service),
        )
        for service, preferred in zip(services, preferred_ports, strict=True)
    )
    return Expose(services=tuple(requests), idle_tunnels=idle_tunnels, group=group)


def publish(service: Service) -> Publish | None:
    """Return how a service is to be published by name; None for one that is only at a visit port. A password has become a hash by now (`hash_passwords`)."""
    if not service.by_name:
        return None
    kind = PublishKind.HTTP
    if service.https:
        kind = PublishKind.HTTPS
    elif service.tls is not None:
        kind = PublishKind.TLS
    return Publish(
        kind=kind,
        name=service.hostname,
        http2=service.http2,
        basic_auth=service.basic_auth or (),
        allow=tuple(map(write_network, service.allow or ())),
        deny=tuple(map(write_network, service.deny or ())),
        rate=service.rate,
        approve=bool(service.approve),
    )


async def hash_passwords(services: Sequence[Service]) -> tuple[Service, ...]:
    """Return the services with hashes in the place of the passwords that their visitors need. Takes 25 ms of a thread for each that differs."""
    logins = {login for service in services for login in service.basic_auth or ()}
    if not logins:
        return tuple(services)
    from trionat.store.passwords import (  # noqa: PLC0415 - memory
        hash_password,
        is_hashed,
        is_whole_hash,
    )

    hashes: dict[str, str] = {}
    for given in logins:
        user, _, password = given.partition(":")
        if not is_whole_hash(password):  # else it would be sent as it is
            if is_hashed(password):
                log.warning(
                    "BasicAuth begins like a hash by Argon2id and is none, so it is taken for the password itself",
                    user=user,
                )
            password = await hash_password(password)
        hashes[given] = f"{user}:{password}"
    return tuple(
        attrs.evolve(service, basic_auth=tuple(hashes[login] for login in service.basic_auth))
        if service.basic_auth
        else service
        for service in services
    )


def check_services(services: Sequence[Service], group: str | None = None) -> None:
    """Check that a server can be asked for so many services, in a group of that name.

    Raises:
        ConfigError: They are too many, or their names too long, for one EXPOSE; no server would take it.
    """
    longest = expose(services, (65535,) * len(services), idle_tunnels=65535, group=group)
    if len(services) > MAX_SERVICES:
        reason = (
            f"{len(services)} services are more than the {MAX_SERVICES} that one client may have"
        )
    elif (size := len(longest.payload())) > CONTROL_FRAME_BYTES:
        reason = f"to ask for {len(services)} services takes {size} bytes, and a message has {CONTROL_FRAME_BYTES} at most"
    else:
        return
    raise ConfigError(
        Problem("configuration", f"{reason}: start several clients", "Client.Services")
    )


def _label(text: str) -> str:
    """A path need not be text (PEP 383), nor short; what the server's operator sees of it is both."""
    return text.encode(errors="replace").decode()[:NAME_CHARACTERS]
