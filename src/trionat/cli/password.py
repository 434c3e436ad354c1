"""Passwords come from a terminal without echo, or from standard input; never from the command line, which others can read."""

from __future__ import annotations

import sys

import typer

from trionat.errors import ConfigError, Problem
from trionat.store.passwords import MAX_PASSWORD_BYTES, check_password


def read_password(*, confirm: bool, otherwise: str = "") -> str:
    """Ask for a password on a terminal, twice with `confirm`; without one take one line of standard input.

    `otherwise` names other ways to give it, for the message when none came.

    Raises:
        ConfigError: it is empty or too long.
    """
    if sys.stdin.isatty():
        where = "password"
        password: str = typer.prompt(
            "Password", hide_input=True, confirmation_prompt=confirm, err=True
        )
    else:
        where = "standard input"
        password = sys.stdin.readline(MAX_PASSWORD_BYTES + 2).removesuffix("\n").removesuffix("\r")
    try:
        check_password(password)
    except ValueError as error:
        hint = f"; there are also {otherwise}" if otherwise and not password else ""
        raise ConfigError(Problem(where=where, reason=f"{error}{hint}")) from None
    return password
