"""For tests: fixtures of pytest that make a local port public (`plugin`), and endpoints in memory.

pytest finds the fixtures by itself where trionat is installed; nothing here is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trionat.testing.memory import MemoryEndpoint as MemoryEndpoint
    from trionat.testing.memory import echo as echo
    from trionat.testing.memory import memory_pair as memory_pair
    from trionat.testing.memory import receive_all as receive_all
    from trionat.testing.memory import receive_exactly as receive_exactly
    from trionat.testing.memory import receive_some as receive_some
    from trionat.testing.plugin import Expose as Expose

_HOMES = {
    **dict.fromkeys(
        ("MemoryEndpoint", "echo", "memory_pair", "receive_all", "receive_exactly", "receive_some"),
        "trionat.testing.memory",
    ),
    "Expose": "trionat.testing.plugin",
}

if not TYPE_CHECKING:  # as in trionat itself
    __all__ = [*_HOMES]  # noqa: PLE0604 - all are strings

    def __getattr__(name: str) -> object:
        if (home := _HOMES.get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
