"""The section `Database`: where a server's users and their traffic live, if not in a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from trionat.address import TCPAddress, parse_public_address
from trionat.config.key import key
from trionat.config.values import BOOLEAN, HOST_PORT, PATH, TEXT, seconds, whole
from trionat.text import invisible_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.config.key import Fault

_MYSQL_PORT: Final = 3306


@attrs.frozen(kw_only=True)
class DatabaseConfig:
    """The section `Database`: where users live in MySQL or MariaDB. Without it they live in an SQLite file."""

    section: ClassVar[str] = "Database"

    username: str = attrs.field(metadata=key("Username", TEXT, "who logs in there", flag=None))
    password: str = attrs.field(
        default="", repr=False, metadata=key("Password", TEXT, "its password", flag=None)
    )
    host: str = attrs.field(
        metadata=key("Host", HOST_PORT, "the database server; without a port: 3306", flag=None)
    )
    db_name: str = attrs.field(metadata=key("DBName", TEXT, "the database", flag=None))
    tls: bool = attrs.field(
        default=False,
        metadata=key(
            "TLS",
            BOOLEAN,
            "whether to encrypt the connection, and to check the server's certificate by authority and name",
            flag=None,
        ),
    )
    ca_file: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CAFile",
            PATH,
            "certificate authorities to check the database server by, PEM; implies TLS",
            unset="the system's",
            flag=None,
        ),
    )
    pool_size: int = attrs.field(
        default=4,
        metadata=key("PoolSize", whole(1, 64), "connections to it at once", flag=None),
    )
    timeout: float = attrs.field(
        default=5.0,
        metadata=key("Timeout", seconds(0.1, 60), "how long one query may take", flag=None),
    )
    wait: bool = attrs.field(
        default=False,
        metadata=key(
            "Wait",
            BOOLEAN,
            "wait, at the start, for a database that does not answer yet",
            flag="--wait-for-database",
        ),
    )
    upgrade_passwords: bool = attrs.field(
        default=False,
        metadata=key(
            "UpgradePasswords",
            BOOLEAN,
            "whether a password that is there in plain text is replaced by its hash at the next login",
            flag=None,
        ),
    )

    @property
    def address(self) -> TCPAddress:
        """Where the database server listens: `host`, and MySQL's own port where it names none."""
        host, port = parse_public_address(self.host)
        return TCPAddress(host, _MYSQL_PORT if port is None else port)

    @property
    def encrypted(self) -> bool:
        """Whether the connection to it has to be TLS: `tls` says so, or `ca_file`, which is of no use without."""
        return self.tls or self.ca_file is not None

    def faults(self) -> Iterator[Fault]:
        """Nothing can contradict."""
        yield from ()

    def warnings(self) -> Iterator[Fault]:
        """What is most likely not meant: as for `AuthConfig`."""
        if (found := invisible_in(self.password)) is not None:
            yield ("password",), f"the password has {found}: was it pasted with more than it is?"
