"""What the commands on a server's state have in common: where it is, asking its store or the server, telling what went wrong.

With `trionat --server URL` the state is that of a server elsewhere, which is asked over its API.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

import attrs
import trio
import typer

from trionat.cli.output import say
from trionat.cli.remote import Remote
from trionat.cli.remote_store import RemoteStore
from trionat.cli.running import tell
from trionat.cli.target import TARGET
from trionat.config.database import DatabaseConfig
from trionat.config.load import load_needed
from trionat.config.server import ServerConfig
from trionat.errors import (
    ConfigError,
    IdentityError,
    Problem,
    RefusedError,
    RemoteProtocolError,
    StartupError,
    StoreError,
    StoreUnavailableError,
)
from trionat.server.admin.messages import (
    CommandRefusedError,
    Request,
    decode_answer,
    encode_request,
)
from trionat.server.admin.socket import call
from trionat.server.events.audit import note_change
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import Store, User
from trionat.store.passwords import hash_password
from trionat.store.private_file import is_there, make_private_folder

T = TypeVar("T")

StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="The server's state folder.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The server's configuration file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")]

FOLDER: Final = ("Server.StateDir",)
"""What a command needs of the configuration that asks the server which runs."""

STORE: Final = (*FOLDER, "Database")
"""The same for one that asks the store."""


@attrs.frozen
class State:
    """A server's state, found as the server itself finds it: its folder, and the store of its accounts and their traffic.

    With `remote` it is asked over its API, and neither folder nor store is here.
    """

    server: ServerConfig
    database: DatabaseConfig | None
    remote: Remote | None = None

    @classmethod
    def find(
        cls,
        state_dir: Path | None,
        config: Path | None,
        public_addr: str | None = None,
        other_servers: list[str] | None = None,
        *,
        needs: tuple[str, ...] = STORE,
    ) -> State:
        """Find it by flags, environment and file, or else by `trionat --server`. Of the configuration only what it `needs` has to be right.

        Raises:
            ConfigError: One of them is wrong.
        """
        if (remote := TARGET.get()) is not None:
            for flag, value in (
                ("--state-dir", state_dir),
                ("--config", config),
                ("--public-addr", public_addr),
                ("--other-server", other_servers),
            ):
                if value:
                    raise ConfigError(
                        Problem(flag, "of no use with --server: it is that server's own affair")
                    )
            return cls(ServerConfig(), None, remote)
        flags: dict[str, str | list[str] | None] = {
            "Server.StateDir": None if state_dir is None else str(state_dir),
            "Server.PublicAddr": public_addr,
            "Server.OtherServers": other_servers,
        }
        return cls(*load_needed(needs, file=config, flags=flags, environ=os.environ))

    @property
    def folder(self) -> Path:
        """The state folder; it may not exist yet."""
        return self.server.effective_state_dir

    @property
    def place(self) -> str:
        """Where the server is, for people."""
        return str(self.folder if self.remote is None else self.remote)

    async def hash(self, password: str) -> str:
        """Return what the store is given of a password: a server elsewhere hashes it itself."""
        return password if self.remote is not None else await hash_password(password)

    def ask(self, question: Callable[[Store], Awaitable[T]], *, make: bool = False) -> T:
        """Open the store for one question; `make` the file of one where there is none, which mostly means a mistyped folder.

        Raises:
            StoreError: As the question raises it.
            StoreUnavailableError: The store cannot be asked.
            StartupError: The folder cannot be made.
        """
        if self.remote is not None:
            # As much of a store as the commands ask for that go with --server.
            return trio.run(question, cast("Store", RemoteStore(self.remote)))
        file = database_file(self.folder)
        if self.database is None and make:
            make_private_folder(self.folder)
        elif self.database is None and not is_there(file):
            raise StoreUnavailableError(
                f"{file}: there are no accounts here: is it the right folder? If so, start the server or add a user"
            )

        async def run() -> T:
            async with open_store(self.database, file) as store:
                await store.prepare()
                return await question(store)

        return trio.run(run)

    def note(self, action: str, target: str, **details: object) -> None:
        """Write down for the audit what this command has changed; a server from afar does so itself. Where that cannot be it is told, and no more: the change is made."""
        if self.remote is not None:
            return
        try:
            note_change(self.folder, action, target, **details)
        except StartupError as error:
            say(f"trionat: what was changed is not in the audit: {error}", err=True)

    def ask_server(self, request: Request, *, patience: float | None = None) -> dict[str, Any]:
        """Ask the server that runs on the folder, and return its answer's values. `patience` is in seconds, for what takes long.

        Raises:
            StartupError: There is none, or it does not answer, or does not know the request.
        """
        if self.remote is not None:
            return self.remote.answer(request)
        try:
            return decode_answer(call(self.folder, encode_request(request), patience=patience))
        except CommandRefusedError as exc:
            raise StartupError(str(exc)) from exc
        except RemoteProtocolError as exc:
            raise StartupError(f"{self.folder}: {exc}") from exc


async def existing_user(store: Store, name: str) -> User:
    """Return an account.

    Raises:
        StoreError: There is none of that name.
    """
    user = await store.find_user(name)
    if user is None:
        raise StoreError(f"there is no user {name!r}")
    return user


@contextlib.contextmanager
def given(where: str) -> Generator[None]:
    """Name the argument, flag or stream that holds the value that is wrong."""
    try:
        yield
    except ValueError as exc:
        raise ConfigError(Problem(where, str(exc))) from exc


@contextlib.contextmanager
def told() -> Generator[None]:
    """Turn what can go wrong into lines on standard error, and an exit code."""
    try:
        yield
    except (ConfigError, StartupError, StoreError, RefusedError, IdentityError) as exc:
        raise typer.Exit(tell([exc])) from exc
