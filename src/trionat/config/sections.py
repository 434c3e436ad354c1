"""What can be configured: the class of each section, and the table of every key.

The classes hold checked values and know what an unset value stands for. They do not know where a value came from:
`trionat.config.load` does, and asks `faults` for what is wrong between keys.
"""

from __future__ import annotations

from typing import Any

from trionat.config.acme import AcmeConfig
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.cluster import ClusterConfig
from trionat.config.database import DatabaseConfig
from trionat.config.events import EventsConfig
from trionat.config.key import Key, keys_of
from trionat.config.server import ServerConfig

SECTIONS: dict[str, type[Any]] = {
    owner.section: owner
    for owner in (
        ServerConfig,
        AcmeConfig,
        EventsConfig,
        DatabaseConfig,
        ClusterConfig,
        AuthConfig,
        ClientConfig,
    )
}
"""The class of every section, by the section's name."""

KEYS: dict[str, Key] = {
    entry.path: entry for owner in SECTIONS.values() for entry in keys_of(owner)
}
"""Every key, by its path such as `Server.VisitPort`."""
