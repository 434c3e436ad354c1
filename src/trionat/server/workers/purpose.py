"""What a descriptor is for that a parent passes to a worker, or gets back from it: the byte that comes with it on their link."""

from __future__ import annotations

from typing import Final

CONNECTION: Final = b"c"
"""A client's connection, with its address."""

VISIT_PORT: Final = b"v"
"""The listening socket of a visit port, with the port's number and the fence of the claim."""

VISITOR: Final = b"x"
"""A visitor that came through a proxy, with its address and the one that it has dialled."""

PASSED_ON: Final = b"n"
"""The same for one that another node has passed on, which is to be told whether it is taken: `TAKEN`, or the end."""

HTTPS: Final = b"s"
HTTP: Final = b"h"
"""A visitor of a name, of which nothing was taken, with its address and the one that it has dialled; with TLS, or without."""

GIVE: Final = b"g"
INHERIT: Final = b"i"
"""The end of a wire, at an upgrade. By the one it is to give all that it has, by the other to take what it is to go on with. They come behind all connections that were passed on before."""

TAKEN: Final = b"+"
"""What a worker says on the connection of a visitor that is `PASSED_ON`, and is taken."""

HANDED_BACK: Final = b"b"
"""A visitor that goes back to the parent, with its address and the one that it has dialled."""
