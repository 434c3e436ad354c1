"""The libraries that the inspector needs, which are installed with `[console]`."""

from __future__ import annotations

from importlib.util import find_spec

from trionat.errors import StartupError


def require_libraries() -> None:
    """Check that what the inspector needs is installed.

    Raises:
        StartupError: It is not; the message says how to install it.
    """
    missing = [name for name in ("anycorn", "starlette") if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"--inspect needs {' and '.join(missing)}, not installed here: run pip install 'trionat[console]'"
        )
