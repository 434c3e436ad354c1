"""Passwords come from a terminal without echo, or from standard input; never from the command line, which others can read."""

from __future__ import annotations

import sys
from typing import BinaryIO, Final, TextIO

import typer

from trionat.errors import ConfigError, Problem
from trionat.store.passwords import (
    MAX_PASSWORD_BYTES,
    WRONG_LENGTH,
    check_chosen_password,
    check_new_password,
    check_password,
)
from trionat.text import NotTextError, decode_text, strip_line_end

_MAX_LINE_BYTES: Final = 2 * MAX_PASSWORD_BYTES + 8
"""A line that is longer holds a password that is too long, in UTF-16 as well."""


_TYPED: Final = "password"
"""Where one comes from that somebody types."""


def read_new_password() -> str:
    """Ask for a password that is to be set, twice on a terminal; without one take one line of standard input, which may be a short one.

    Raises:
        ConfigError: It is empty, too long, or too short for one that is typed, or could not be typed again, or standard input is closed.
    """
    where, password = _read(confirm=True, hint="")
    try:
        check = check_chosen_password if where == _TYPED else check_new_password
        check(password)
    except ValueError as error:
        raise ConfigError(Problem(where, str(error))) from None
    return password


def read_password(*, otherwise: str) -> str:
    """Ask for a password to log in with; without a terminal take one line of standard input.

    One that could not be set today may have been set in another way, so it is taken as it is.

    Args:
        otherwise: Other ways to give it, for the message when none came.

    Raises:
        ConfigError: It is empty or too long, or standard input is closed.
    """
    hint = f"; there are also {otherwise}"
    where, password = _read(confirm=False, hint=hint)
    try:
        check_password(password)
    except ValueError as error:
        raise ConfigError(Problem(where, f"{error}{'' if password else hint}")) from None
    return password


def _read(*, confirm: bool, hint: str) -> tuple[str, str]:
    """Return where the password comes from, and the password; `hint` ends the message where there is nowhere to read it from."""
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        raise ConfigError(Problem("standard input", f"it is closed: give the password there{hint}"))
    if stdin.isatty():
        typed: str = typer.prompt(
            "Password", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return _TYPED, strip_line_end(typed)
    where = "standard input"
    line = _read_line(stdin.buffer)
    if len(line) >= _MAX_LINE_BYTES:
        raise ConfigError(Problem(where, WRONG_LENGTH))
    try:
        text = decode_text(line, stdin.encoding)
    except NotTextError:
        raise ConfigError(Problem(where, "the password is not valid UTF-8")) from None
    return where, strip_line_end(text.partition("\n")[0])


def _read_line(stream: BinaryIO) -> bytes:
    """Read a line and no more: a person may sit behind the pipe, and more may be meant for somebody else."""
    line = stream.readline(_MAX_LINE_BYTES)
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        # In UTF-16 the byte of a line end may be half of a character, and the other half of a line end is another byte.
        end = "\n".encode("utf-16-le" if line[0] == 0xFF else "utf-16-be")
        while len(line) < _MAX_LINE_BYTES and not (len(line) % 2 == 0 and line.endswith(end)):
            if not (more := stream.read(1)):
                break
            line += more
    return line
