"""Commands that work on a server's state, as a person at the command line sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
import trio
from typer.testing import CliRunner

from trionat.cli import app
from trionat.protocol.ticket import Ticket
from trionat.server.accounts.tickets import verify_ticket
from trionat.server.state_folder import database_file, prepare_state
from trionat.store.backend import open_store
from trionat.store.passwords import verify_password

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trionat.config.database import DatabaseConfig
    from trionat.store.base import Store, User

T = TypeVar("T")


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str


@attrs.frozen(kw_only=True)
class Trionat:
    """`trionat user …`, or another command, on one state folder and store; `options` are added to every call."""

    folder: Path
    command: str = "user"
    options: tuple[str, ...] = ()
    database: DatabaseConfig | None = None

    def __call__(self, *args: str, stdin: str | bytes = "") -> Outcome:
        result = CliRunner().invoke(
            app,
            [self.command, *args, "--state-dir", str(self.folder), *self.options],
            input=stdin,
            catch_exceptions=False,
        )
        assert "Traceback" not in result.output
        return Outcome(result.exit_code, result.stdout, result.stderr)

    def fails(self, code: int, *args: str, stdin: str | bytes = "") -> str:
        """Check that the command fails with that code, prints nothing, and says why in one line."""
        outcome = self(*args, stdin=stdin)
        assert (outcome.code, outcome.out) == (code, "")
        (line,) = outcome.err.splitlines()
        assert line.startswith("trionat: ")
        return line.removeprefix("trionat: ")

    def ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        """Ask the store behind the command's back."""

        async def run() -> T:
            async with open_store(self.database, database_file(self.folder)) as store:
                return await question(store)

        return trio.run(run)

    def user(self, name: str) -> User | None:
        return self.ask(lambda store: store.find_user(name))

    def password_is(self, name: str, password: str) -> bool:
        user = self.user(name)
        assert user is not None
        return trio.run(verify_password, user.password, password)

    def accepts(self, name: str, text: str) -> bool:
        user = self.user(name)
        assert user is not None
        ticket = Ticket.decode(text)
        return verify_ticket(prepare_state(self.folder), user, ticket.token, ticket.caveats)
