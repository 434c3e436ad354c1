"""Passwords come from a terminal without echo, or from standard input; never from the command line, which others can read."""

from __future__ import annotations

import sys

import typer

from trionat.errors import ConfigError, Problem
from trionat.store.passwords import MAX_PASSWORD_BYTES, check_password


def read_password(*, confirm: bool) -> str:
    """Ask for a password on a terminal, twice with `confirm`; otherwise take one line of standard input.

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
        raise ConfigError(Problem(where=where, reason=str(error))) from None
    return password
