"""`trionat state`: a server's or a client's state folder as one file, and back."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from trionat.backup.collection import ElsewhereAccounts, collect
from trionat.backup.contents import CERTIFICATE, DATABASE
from trionat.backup.manifest import BackupError, Manifest
from trionat.backup.restoration import restore as put_back
from trionat.cli.command_line import App
from trionat.cli.local_server import FOLDER, STORE, ConfigFile, StateDir, told
from trionat.cli.output import say
from trionat.cli.progress import progress
from trionat.config.database import DatabaseConfig
from trionat.config.load import Configuration, load
from trionat.errors import ConfigError, Problem, StartupError
from trionat.log import escape
from trionat.store.amount import format_amount
from trionat.store.private_file import is_there, new_private
from trionat.text import counted

state_app = App(help="The state folder as one file: for a backup, or another host.")

_STANDARD: Final = "-"

_NAMED: Final = (
    *STORE,
    *("Server.Certificate", "Server.CertificateKey", "Server.CertificatesDir", "Server.PagesDir"),
    "Cluster",
)
"""What a backup needs of the configuration: what it is of, and what the server reads besides (`_named`)."""

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]


@state_app.command()
def backup(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="A new file (tar.gz), or - for standard output, if no terminal."
        ),
    ],
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Write the state folder into one file: accounts, keys, certificates, events and audit, as they are at one moment. The server may run meanwhile.

    It holds private keys: whoever has it can pass for this server. What is not in it is told.
    """
    with told():
        configuration = _configuration(state_dir, config, _NAMED)
        folder, database = configuration.server.effective_state_dir, configuration.database
        elsewhere = None if database is None else _elsewhere(database)
        with _target(file) as target:
            with (
                progress("copying the accounts", "pages") as copying,
                collect(folder, elsewhere, copying.count) as collection,
            ):
                manifest = collection.manifest
                copying.what, copying.unit = "writing", "bytes"
                collection.write(target, lambda done: copying.count(done, manifest.size))
    to_stderr = file == _STANDARD
    if as_json:
        say(json.dumps({"file": file, **manifest.values()}), err=to_stderr)
        return
    where = "standard output" if to_stderr else file
    for line in _told_of(manifest, folder, where, configuration):
        say(escape(line), err=to_stderr)


@state_app.command()
def restore(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="What trionat state backup has written; - is standard input."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Move aside what is in the state folder; nothing is removed."),
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Put a backup in the place of a state folder, which has to be empty or not there. No server may run on it.

    Everything is checked first, beside the folder, which then changes at once.
    """
    with told():
        folder = _configuration(state_dir, config, FOLDER).server.effective_state_dir
        with _source(file) as source, progress("unpacking", "bytes") as unpacking:
            try:
                restored = put_back(source, folder, force=force, told=unpacking.count)
            except BackupError as error:
                raise ConfigError(Problem(_name(file, "standard input"), str(error))) from error
    manifest, aside = restored.manifest, restored.aside
    if as_json:
        values = {
            "state_dir": str(folder),
            "aside": None if aside is None else str(aside),
            "fingerprint": restored.fingerprint,
            "made": manifest.made,
            "trionat": manifest.version,
            "files": len(manifest.files),
        }
        say(json.dumps(values))
        return
    say(
        escape(
            f"{counted(len(manifest.files), 'file')} of the backup of {manifest.made} are in {folder}"
        )
    )
    if restored.fingerprint is not None:
        say(f"the fingerprint of the server is {restored.fingerprint}")
    if aside is not None:
        say(escape(f"what was there is in {aside}"))
    if manifest.database:
        say(escape(f"not in it: the accounts and their traffic, which are in {manifest.database}"))


def _configuration(
    state_dir: Path | None, config: Path | None, needs: tuple[str, ...]
) -> Configuration:
    flags = {"Server.StateDir": None if state_dir is None else str(state_dir)}
    return load("server", file=config, flags=flags, environ=os.environ, needs=needs)


def _elsewhere(database: DatabaseConfig) -> ElsewhereAccounts:
    """Return where the accounts are, and how they are copied; the password is asked for then."""
    address = database.address
    words = (
        *("mysqldump", "--single-transaction", "-h", address.host, "-P", str(address.port)),
        *("-u", database.username, "-p", database.db_name),
    )
    file = shlex.quote(f"{database.db_name}.sql")
    return ElsewhereAccounts(
        f"the database {database.db_name} at {address}", f"{shlex.join(words)} > {file}"
    )


def _told_of(
    manifest: Manifest, folder: Path, where: str, configuration: Configuration
) -> list[str]:
    """Return what a person has to know of a backup, line by line."""
    names = {each.name for each in manifest.files}
    files = f"{counted(len(names), 'file')}, {format_amount(manifest.size)}"
    lines = [f"{where}: {files}; there are secrets in it: keep it as you keep those"]
    if manifest.database:
        lines += [
            f"not in it: the accounts and their traffic, which are in {manifest.database}: copy them with",
            f"  {manifest.dump}",
        ]
    elif CERTIFICATE in names and DATABASE not in names:
        lines.append(
            f"not in it: accounts: there are none in {folder}; if they are in a database, name its configuration (--config)"
        )
    if configuration.file is not None:
        lines.append(f"not in it: the configuration {configuration.file}")
    lines += [f"not in it: {path}, which the configuration names" for path in _named(configuration)]
    lines += [f"left out: {each.name}: {each.reason}" for each in manifest.left_out]
    return lines


def _named(configuration: Configuration) -> list[Path]:
    """Return what a server reads besides its state folder."""
    server, cluster = configuration.server, configuration.cluster
    database = configuration.database
    paths = (
        *(server.certificate, server.certificate_key, server.certificates_dir, server.pages_dir),
        *(() if cluster is None else (cluster.key_file,)),
        *(() if database is None else (database.ca_file,)),
    )
    return [path for path in paths if path is not None]


def _name(file: str, standard: str) -> str:
    return standard if file == _STANDARD else file


@contextmanager
def _target(file: str) -> Generator[BinaryIO]:
    """Give where a backup is written.

    Raises:
        ConfigError: That is a terminal.
        StartupError: It is there already, or cannot be written.
    """
    if file != _STANDARD:
        path = Path(file)
        if is_there(path):
            raise StartupError(f"{path}: there is such a file already: name another one")
        with new_private(path) as target:
            yield target
        return
    if sys.stdout is None or sys.stdout.isatty():
        raise ConfigError(
            Problem("standard output", "a backup is nothing for a terminal: name a file")
        )
    try:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        raise StartupError(f"standard output: {error.strerror or error}") from error


@contextmanager
def _source(file: str) -> Generator[BinaryIO]:
    """Give where a backup is read from.

    Raises:
        StartupError: It cannot be opened.
    """
    if file == _STANDARD:
        if sys.stdin is None or sys.stdin.isatty():
            raise ConfigError(Problem("standard input", "there is no backup: name its file"))
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise StartupError(f"{file}: cannot open it: {error.strerror or error}") from error
    with source:
        yield source
