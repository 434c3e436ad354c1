"""The limits of an account that are lists, as an operator gives them: checked, without doubles, and as the store keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.hostnames import parse_pattern
from trionat.networks import parse_network, write_network

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_PORTS: Final = 1024
"""Chosen, not measured: more than a user needs, and a list of them still fits a row of any store."""

MOST_NETWORKS: Final = 256
"""Chosen in the same way."""

MOST_NAMES: Final = 64
"""Chosen in the same way; of the longest ones, 16 KiB."""


def check_ports(ports: Iterable[int]) -> tuple[int, ...]:
    """Return the ports in their order.

    Raises:
        ValueError: They are none, or too many, or one is no port.
    """
    found = tuple(sorted({*ports}))
    if not 1 <= len(found) <= MOST_PORTS or not 1 <= found[0] <= found[-1] <= 65535:
        raise ValueError(f"these are not 1 to {MOST_PORTS} ports from 1 to 65535")
    return found


def check_names(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of names.

    Raises:
        ValueError: They are none, or too many, or one is no pattern.
    """
    found = tuple(dict.fromkeys(map(parse_pattern, patterns)))
    if not found:
        raise ValueError("there is no pattern of names in it")
    if len(found) > MOST_NAMES:
        raise ValueError(f"{len(found)} patterns of names are too many: give at most {MOST_NAMES}")
    return found


def check_networks(networks: Iterable[str]) -> tuple[str, ...]:
    """Return the networks.

    Raises:
        ValueError: They are none, or too many, or one is no network.
    """
    found = tuple(dict.fromkeys(write_network(parse_network(each)) for each in networks))
    if not found:
        raise ValueError("there is no network in it")
    if len(found) > MOST_NETWORKS:
        raise ValueError(f"{len(found)} networks are too many: name at most {MOST_NETWORKS}")
    return found
