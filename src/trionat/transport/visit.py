"""A visit: whether it is the right one that answers where an address leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trionat.transport.dial import dial

if TYPE_CHECKING:
    from trionat.address import TCPAddress


async def visit(address: TCPAddress, token: bytes, patience: float) -> str:
    """Connect, and read whether `token` comes first of all; within `patience` seconds.

    Returns:
        What was in the way, in some words; nothing where it came.
    """
    reached, heard = False, b""
    with trio.move_on_after(patience):  # noqa: ASYNC912 - what is on this machine may answer at once
        try:
            with trio.socket.from_stdlib_socket(await dial(address)) as sock:
                reached = True
                while len(heard) < len(token) and (more := await sock.recv(len(token))):
                    heard += more
        except OSError as error:
            return error.strerror or str(error)
        return "" if heard == token else "something else answers there"
    return "nothing was heard there" if reached else f"no answer within {patience:g} s"
