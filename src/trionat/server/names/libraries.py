"""The libraries that names need, which are installed with `[names]`."""

from __future__ import annotations

from importlib.util import find_spec

from trionat.errors import StartupError


def require_libraries() -> None:
    """Check that what names need is installed.

    Raises:
        StartupError: It is not; the message says how to install it.
    """
    missing = [name for name in ("httptools", "acme") if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"Server.Domain needs {' and '.join(missing)}, not installed here: run pip install '.[names]' in the folder of trionat's source"
        )
