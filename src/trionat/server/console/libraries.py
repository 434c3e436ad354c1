"""The libraries that the console needs, which are installed with `[console]`."""

from __future__ import annotations

from importlib.util import find_spec

from trionat.errors import StartupError


def require_libraries() -> None:
    """Check that what the console needs is installed.

    Raises:
        StartupError: It is not; the message says how to install it.
    """
    missing = [name for name in ("anycorn", "starlette") if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"Server.ConsoleAddr needs {' and '.join(missing)}, not installed here: run pip install '.[console]' in the folder of trionat's source"
        )
