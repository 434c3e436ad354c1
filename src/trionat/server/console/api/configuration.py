"""What the server was told: each key with the value that takes effect, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.config.key import Key, keys_of
from trionat.errors import StartupError
from trionat.server.console.operation import Call, Nothing, Operation, Page

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MASK: Final = "***"


@attrs.frozen(kw_only=True)
class KeyRow:
    """A key; the section `Events` is a list, whose key is empty. `unit` is what its value is in, where it is a number of something: `s` are seconds. `source` is a flag, a variable of the environment, a file with the line, or default; `value` is as it would be written, or in words where nothing is set."""

    section: str
    key: str
    value: str
    unit: str | None
    source: str
    meaning: str


def _rows(sections: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[KeyRow]:
    for name, values in sections.items():
        for key in keys_of(values.__class__):
            yield KeyRow(
                section=name,
                key=key.name,
                value=_shown(key, values),
                unit=key.kind.unit if _is_number(getattr(values, key.field)) else None,
                source=origins.get(key.path) or _origin(key, values),
                meaning=key.meaning,
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _origin(key: Key, values: Any) -> str:
    """Where a program has made the configuration, nobody has noted more."""
    return "default" if getattr(values, key.field) == key.default else "program"


def _shown(key: Key, values: Any) -> str:
    value = getattr(values, key.field)
    if key.secret and value:
        return _MASK
    if value is None and key.derived is not None:
        try:
            value = getattr(values, key.derived)
        except StartupError:  # no home: there is none
            return key.unset
    return key.write(value)


async def _list(call: Call[Nothing, Nothing]) -> Page[KeyRow]:
    await trio.lowlevel.checkpoint()
    context = call.context
    return Page(tuple(_rows(context.sections, context.origins)))


OPERATIONS = (
    Operation(
        method="GET",
        path="/configuration",
        name="get_configuration",
        summary="All keys with their values and where these come from; secrets are masked",
        is_for_admins=True,
        answer=Page[KeyRow],
        handle=_list,
    ),
)
