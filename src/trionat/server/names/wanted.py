"""The names that may have a certificate now, as they are at the moment they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from trionat.protocol.messages import PublishKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.server.visitors.ports import PortPool, VirtualHost


@attrs.frozen(eq=False)
class WantedNames(Mapping[str, str]):
    """Those of services for which we end TLS, each with its user. The domain is the server's own: its user is "".

    Whether a name is among them is looked up: everybody may ask, by a ClientHello, and there may be thousands.
    """

    pool: PortPool
    domain: str | None

    def __getitem__(self, name: str) -> str:
        host = self.pool.names.get(name)
        if host is not None and _is_wanted(host):
            return "" if host.last_holder is None else host.last_holder[0]
        if name == self.domain and self._has_port():
            return ""
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        names = {name: None for name, host in self.pool.names.items() if _is_wanted(host)}
        if self.domain is not None and self._has_port():
            names[self.domain] = None
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _has_port(self) -> bool:
        return any(port.publish is not None for port in self.pool.ports.values())


def _is_wanted(host: VirtualHost) -> bool:
    return host.is_held and host.publish is not None and host.publish.kind is PublishKind.HTTP
