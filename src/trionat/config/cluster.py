"""The section `Cluster`: what makes a server one of several nodes, which share their state in Redis."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import unquote, urlsplit

import attrs

from trionat.address import TCPAddress, parse_host
from trionat.config.key import key
from trionat.config.values import BOOLEAN, PATH, TCP, TEXT, Kind
from trionat.text import invisible_in, mask_secrets, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.config.key import Fault

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MOST_ADDRESSES: Final = 16
_MASTER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SCHEMES: Final = ("redis", "rediss")
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@attrs.frozen
class RedisAddress:
    """What a URL of Redis says. `database` is its number, `encrypted` whether it has to be TLS.

    There are several `addresses` where a Redis Cluster has several nodes, or where they are those of Sentinels, which know where the one they call
    `master` is.
    """

    addresses: tuple[TCPAddress, ...]
    database: int
    username: str | None
    password: str | None = attrs.field(repr=False)
    encrypted: bool
    master: str = ""

    def __str__(self) -> str:
        return ", ".join(map(str, self.addresses))


def parse_redis(text: str) -> RedisAddress:
    """Read `redis://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...][/DATABASE]`, or `rediss://...` for TLS.

    With Sentinels: `redis+sentinel://[USER[:PASSWORD]@]HOST[:PORT][,...]/MASTER[/DATABASE]`, or `rediss+sentinel://...`.

    Raises:
        ValueError: It is none; the message has no password.
    """
    try:
        return _parse_redis(text)
    except ValueError:
        raise ValueError(f"{quoted(mask_secrets(text))} is not {REDIS.words}") from None


def _parse_redis(text: str) -> RedisAddress:
    scheme, _, rest = text.partition("://")
    scheme, plus, way = scheme.partition("+")
    if scheme not in _SCHEMES or way != ("sentinel" if plus else "") or {*"?#"} & {*rest}:
        raise ValueError
    place, _, path = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    username, colon, password = user.partition(":")
    words = path.rstrip("/").split("/")
    master = words.pop(0) if plus else ""
    if plus and not _MASTER.fullmatch(master):
        raise ValueError
    database = int("/".join(words) or "0")
    if not 0 <= database < 2**31:
        raise ValueError
    addresses = tuple(
        _parse_address(each, _SENTINEL_PORT if plus else _REDIS_PORT) for each in hosts.split(",")
    )
    if len(addresses) > _MOST_ADDRESSES:
        raise ValueError
    return RedisAddress(
        addresses=addresses,
        database=database,
        username=unquote(username) if at and username else None,
        password=unquote(password) if at and colon else None,
        encrypted=scheme == "rediss",
        master=master,
    )


def _parse_address(text: str, default: int) -> TCPAddress:
    parts = urlsplit(f"//{text}")
    port = default if parts.port is None else parts.port
    if port == 0 or parts.path or parts.username is not None:
        raise ValueError
    return TCPAddress(parse_host(parts.hostname or ""), port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _read_redis(text: str) -> str:
    parse_redis(text)
    return text


def _read_node(text: str) -> str:
    if not _NODE.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not {NODE.words}")
    return text


REDIS: Final = Kind(
    "a URL such as redis://HOST:PORT or rediss://HOST:PORT/0", _read_redis, mask_secrets
)
NODE: Final = Kind(
    "a name of 1 to 64 letters, digits, dots, dashes and underscores, the first one a letter or digit",
    _read_node,
)


@attrs.frozen(kw_only=True)
class ClusterConfig:
    """The section `Cluster`. Without it a server is alone."""

    section: ClassVar[str] = "Cluster"

    redis: str = attrs.field(
        repr=mask_secrets,
        metadata=key("Redis", REDIS, "the Redis that all nodes share", flag=None),
    )
    node: str = attrs.field(
        metadata=key(
            "Node", NODE, "what this node is called; every node has its own name", flag=None
        )
    )
    node_addr: TCPAddress = attrs.field(
        metadata=key(
            "NodeAddr",
            TCP,
            "where this node listens for the others, and under which they reach it",
            flag=None,
        )
    )
    key_file: Path = attrs.field(
        metadata=key(
            "KeyFile",
            PATH,
            "the key of the cluster, the same at every node; trionat cluster init makes it",
            flag=None,
        )
    )
    redis_password: str = attrs.field(
        default="",
        repr=False,
        metadata=key(
            "RedisPassword", TEXT, "the password for Redis, instead of one in the URL", flag=None
        ),
    )
    redis_password_file: Path | None = attrs.field(
        default=None,
        metadata=key(
            "RedisPasswordFile",
            PATH,
            "a file whose first line is the password for Redis, instead of the others",
            flag=None,
        ),
    )
    ca_file: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CAFile",
            PATH,
            "certificate authorities to check Redis by, PEM; needs rediss://",
            unset="the system's",
            flag=None,
        ),
    )
    wait: bool = attrs.field(
        default=False,
        metadata=key(
            "Wait",
            BOOLEAN,
            "wait, at the start, for a Redis that does not answer yet",
            flag="--wait-for-redis",
        ),
    )

    @property
    def address(self) -> RedisAddress:
        """Where Redis is; its password may be in another key."""
        return parse_redis(self.redis)

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        if self.node_addr.port == 0:
            yield ("node_addr",), "the other nodes have to know the port: name one"
        if self.node_addr.is_any_host:
            yield (
                ("node_addr",),
                f"the other nodes dial it, and {self.node_addr.host} is no address of one machine: name this node's own, as the others reach it",
            )
        if self.ca_file is not None and not self.address.encrypted:
            yield (
                ("ca_file", "redis"),
                "redis:// is not encrypted, so nobody is checked: use rediss://",
            )

    def warnings(self) -> Iterator[Fault]:
        """What is most likely not meant."""
        if _is_loopback(self.node_addr.host):
            yield (
                ("node_addr",),
                f"only this machine reaches {self.node_addr.host}: nodes on other machines need an address of this one that they reach",
            )
        if (found := invisible_in(self.redis_password)) is not None:
            yield (
                ("redis_password",),
                f"the password has {found}: was it pasted with more than it is?",
            )
