"""What handlers get at: the server, as the console knows it, and what the console has of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.server.console.live import Readers
from trionat.server.console.rate import ChangeRate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.log.tail import Tail
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admin.commands import Commands
    from trionat.server.admission.bans import Bans
    from trionat.server.console.directory import Directory
    from trionat.server.console.health import Health
    from trionat.server.console.live import Live
    from trionat.server.console.logins import Logins
    from trionat.server.console.operation import Operation
    from trionat.server.console.principal import Principal, TokenAuthenticator
    from trionat.server.console.sampler import Sampler
    from trionat.server.events.delivery import Delivery
    from trionat.server.exposition.exposition import Exposition
    from trionat.server.state_folder import StateFolder
    from trionat.store.base import Store

log = get_logger(__name__)

_SCRIBES: Final = 2
"""Threads that write long answers: the rest waits, since they take the interpreter from the bytes of visitors. Chosen."""


@attrs.frozen(kw_only=True)
class Change:
    """What somebody has done by the API: the operation with its parameters, what was sent with it but for secrets, and what its handler has told `also`.

    One that is `unfinished` has failed by no fault of who asked: some of it may be done.
    """

    principal: Principal
    host: str
    operation: Operation
    parameters: Mapping[str, object]
    sent: Mapping[str, object] = attrs.field(factory=lambda: {})
    also: Mapping[str, object] = attrs.field(factory=lambda: {})
    unfinished: bool = False


def tell_change(change: Change) -> None:
    """Log it."""
    log.info(
        "done by the console",
        by=change.principal.username,
        host=change.host,
        what=change.operation.name,
        **({"unfinished": True} if change.unfinished else {}),
        **{f"of_{name}": value for name, value in {**change.sent, **change.parameters}.items()},
    )


@attrs.define(eq=False, kw_only=True)
class Context:
    """See the module. `sections` is the configuration, by section, and `origins` where each key is from, where somebody knows it. `store` is where the accounts are, `delivery` has what has happened, and who has changed what, and `tokens` knows whose a Bearer token is, None where there are none."""

    config: ServerConfig
    ready: Ready
    state: StateFolder
    store: Store
    accounts: Accounts
    traffic: Traffic
    bans: Bans
    commands: Commands
    logins: Logins
    sampler: Sampler
    live: Live
    directory: Directory
    health: Health
    exposition: Exposition
    tail: Tail
    sections: Mapping[str, Any]
    origins: Mapping[str, str]
    delivery: Delivery
    tokens: TokenAuthenticator | None = None
    on_change: Callable[[Change], None] = tell_change
    readers: Readers = attrs.field(init=False, factory=Readers)
    changes: ChangeRate = attrs.field(init=False, factory=ChangeRate)

    scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, _SCRIBES)
    )
