"""A MariaDB server for tests: a process of its own in a folder of its own, with databases as they are needed.

Everything here blocks, so that a session-scoped fixture can hold the server (`mariadb` in `conftest.py`): asynchronous tests start
and stop it in `trio.to_thread`.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trionat.config.database import DatabaseConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOST = "127.0.0.1"
USER, PASSWORD = "trionat", "secret"
READY_TIMEOUT = 30.0
"""Seconds to start; 0.5 on an idle machine, many times that on a busy one."""
STOP_TIMEOUT = 20.0

GO_TABLES = """
create table userInfo_userinfo (
    user_id int not null auto_increment,
    username varchar(255) not null,
    password varchar(255) not null,
    email varchar(254) default '00000000@test.com',
    flag tinyint(1) not null default '0',
    time datetime(6) null default null on update current_timestamp(6),
    primary key (user_id)
) engine=InnoDB default charset=utf8mb4 collate=utf8mb4_unicode_520_ci;
create table bars (
    id bigint not null auto_increment,
    bar bigint not null,
    username varchar(255) not null,
    primary key (id)
) engine=InnoDB default charset=utf8mb4 collate=utf8mb4_unicode_520_ci;
"""
"""The tables as the Go program has them: no index on the name, a collation without case that ignores trailing blanks."""


@attrs.define(eq=False)
class MariaDB:
    """The server; `running` makes it. Its port stays the same through every stop and start.

    It takes connections with TLS and without; `authority` is who has signed its certificate, for 127.0.0.1. `inside` is what runs it, where
    that is to be on a machine of the test's own, whose address `host` is then.
    """

    folder: Path
    port: int
    host: str = HOST
    inside: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *self.inside,
                    program("mariadbd"),
                    "--no-defaults",
                    f"--datadir={self.folder / 'data'}",
                    f"--tmpdir={self.folder / 'tmp'}",
                    f"--socket={self.folder / 'socket'}",
                    f"--pid-file={self.folder / 'pid'}",
                    f"--init-file={self.folder / 'init.sql'}",
                    f"--bind-address={self.host}",
                    f"--port={self.port}",
                    f"--ssl-key={self.folder / 'server.key'}",
                    f"--ssl-cert={self.folder / 'server.pem'}",
                    "--skip-name-resolve",
                    "--skip-log-bin",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-buffer-pool-size=32M",
                    "--innodb-log-file-size=8M",
                    *(["--user=root"] if os.name == "posix" and os.geteuid() == 0 else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"mariadbd did not start:\n{log.read_text('utf-8')}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as an administrator would; what was committed is there after the next start."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at once."""
        self._end(signal.SIGKILL)

    def _end(self, sign: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def pause(self) -> None:
        """Let it hang: it accepts connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def sql(self, statements: str, database: str = "mysql") -> list[tuple[str, ...]]:
        """Run statements as its administrator; return the rows as text."""
        command = [program("mariadb"), "--no-defaults", f"--socket={self.folder / 'socket'}"]
        command += [
            "--user=admin",
            "--password=admin",
            "--default-character-set=utf8mb4",
            "-N",
            "-B",
            database,
        ]
        result = subprocess.run(
            command,
            input=statements,
            capture_output=True,
            check=False,
            timeout=30,
            encoding="utf-8",
        )
        if result.returncode:
            raise RuntimeError(f"{statements}: {result.stderr}")
        return [tuple(line.split("\t")) for line in result.stdout.splitlines()]

    def _answers(self) -> bool:
        try:
            self.sql("select 1")
        except RuntimeError:
            return False
        return True

    def new_database(self, statements: str = GO_TABLES) -> DatabaseConfig:
        """Make a database, and return how to reach it."""
        name = f"test{next(self._numbers)}"
        self.sql(f"create database {name} character set utf8mb4; use {name}; {statements}")
        return DatabaseConfig(
            username=USER, password=PASSWORD, host=f"{self.host}:{self.port}", db_name=name
        )

    def new_user(
        self, database: DatabaseConfig, privileges: str, *, but: Mapping[str, str] | None = None
    ) -> DatabaseConfig:
        """Make somebody who has these privileges in all tables that are there, `but` others in some; return how to log in."""
        name = f"user{next(self._numbers)}"
        tables = [table for (table,) in self.sql("show tables", database.db_name)] if but else ["*"]
        grants = [
            f"grant {(but or {}).get(table, privileges)} on {database.db_name}.{table} to {name}@'%'"
            for table in tables
        ]
        self.sql(f"create user {name}@'%' identified by '{PASSWORD}'; {';'.join(grants)}")
        return attrs.evolve(database, username=name)


@contextmanager
def running(
    host: str = HOST, port: int | None = None, inside: tuple[str, ...] = ()
) -> Iterator[MariaDB]:
    """Give a server with an empty folder; it is killed at the end, since nobody wants its data.

    A program that is missing skips the test and names the Debian package, except where `CI` is set.
    """
    # Not pytest's folder: sockets have paths of at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="trionat-mariadb-", dir=_quickest_folder()))
    (folder / "tmp").mkdir()  # of its own: a server that starts removes what others have there
    try:
        as_root = ["--user=root"] if os.name == "posix" and os.geteuid() == 0 else []
        subprocess.run(
            [
                program("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={folder / 'data'}",
                f"--tmpdir={folder / 'tmp'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-log-file-size=8M",
                *as_root,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
        (folder / "init.sql").write_text(
            f"create or replace user '{USER}'@'%' identified by '{PASSWORD}';\n"
            f"grant all on `test%`.* to '{USER}'@'%';\n"
            "create or replace user admin@localhost identified by 'admin';\n"
            "grant all on *.* to admin@localhost with grant option;\n"
            "alter user root@localhost account lock;\n"
        )
        write_certificates(folder)
        server = MariaDB(folder, port or free_port(), host, inside)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _quickest_folder() -> Path | None:
    """Return a folder in memory, if there is one with room for 40 MB several times: nobody wants this data on a disk."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 500_000_000:
        return memory
    return None


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    package = {
        "mariadb": "mariadb-client-core",
        "redis-server": "redis-server",
        "redis-cli": "redis-tools",
    }.get(name, "mariadb-server-core")
    message = f"{name} is not installed (Debian: {package})"
    if os.environ.get("CI"):
        raise RuntimeError(message)
    pytest.skip(message)


def make_authority() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Return key and certificate (PEM) of an authority, without the extensions that Python 3.13 is strict about.

    Such are those that MySQL makes for itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("authority", key.public_key(), key, ca=True)
    return key, certificate.public_bytes(serialization.Encoding.PEM)


def write_certificates(folder: Path, address: str = HOST, name: str | None = None) -> None:
    """Make `authority.pem`, and by it `server.key` and `server.pem` for an address, and for a name."""
    authority_key, authority = make_authority()
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(
        "server", key.public_key(), authority_key, address=address, name=name
    )
    (folder / "authority.pem").write_bytes(authority)
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _certificate(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    address: str | None = None,
    name: str | None = None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if address is not None:
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address))]
        names += [x509.DNSName(name)] if name is not None else []
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def free_port() -> int:
    """Return a port below 32768, where no outgoing connection can take it."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
