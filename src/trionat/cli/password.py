"""Passwords come from a terminal without echo, or from standard input; never from the command line, which others can read."""

from __future__ import annotations

import codecs
import sys

import typer

from trionat.errors import ConfigError, Problem
from trionat.store.passwords import MAX_PASSWORD_BYTES, check_password
from trionat.text import decode_text, invisible_in, strip_line_end


def read_password(*, confirm: bool, otherwise: str = "") -> str:
    """Ask for a password on a terminal, twice with `confirm`; without one take one line of standard input.

    `otherwise` names other ways to give it, for the message when none came.

    Raises:
        ConfigError: it is empty, too long, or no text; with `confirm`, where it is a new one, it also must be one that can be
            typed again.
    """
    if sys.stdin.isatty():
        where = "password"
        password: str = typer.prompt(
            "Password", hide_input=True, confirmation_prompt=confirm, err=True
        )
    else:
        where = "standard input"
        password = _read_line(where)
    try:
        check_password(password)
        if confirm and (stowaway := invisible_in(password)):
            raise ValueError(f"the password has {stowaway}: nobody could type it again")
    except ValueError as error:
        hint = f"; there are also {otherwise}" if otherwise and not password else ""
        raise ConfigError(Problem(where=where, reason=f"{error}{hint}")) from None
    return password


def _read_line(where: str) -> str:
    """Read one line; PowerShell may send it as UTF-16 with a byte order mark, where a line feed has a second byte."""
    data = sys.stdin.buffer.readline(2 * MAX_PASSWORD_BYTES + 4)
    if data.startswith(codecs.BOM_UTF16_LE) and data.endswith(b"\n"):
        data += b"\0"
    try:
        try:
            text = decode_text(data)
        except UnicodeDecodeError:  # of a locale that is not UTF-8
            text = data.decode(sys.stdin.encoding)
    except UnicodeDecodeError:
        raise ConfigError(Problem(where=where, reason="the password is no text in UTF-8")) from None
    return strip_line_end(text)
