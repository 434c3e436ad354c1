"""Libraries that not everybody needs: which have to be there for what, and how they are installed. To be asked before anything is imported that imports them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from trionat.errors import StartupError

CONSOLE: Final = ("anycorn", "starlette", "prometheus_client")
INSPECTOR: Final = ("anycorn", "starlette")
WATCH: Final = ("watchfiles",)
NAMES: Final = ("httptools", "acme")


def install_hint(extra: str) -> str:
    """Return what to do about libraries of that extra which are not installed."""
    return f"run pip install '.[{extra}]' in the folder of trionat's source"


def require_libraries(what: str, names: tuple[str, ...], *, extra: str) -> None:
    """Check that the libraries are installed without which there is not `what`: a key of the configuration, or an option.

    Raises:
        StartupError: They are not; the message says how to install them.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise StartupError(
            f"{what} needs {_listed(missing)}, not installed here: {install_hint(extra)}"
        )


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
