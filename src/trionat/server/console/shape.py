"""What goes in and out of the API, told by attrs classes: read and checked by them, and described by them for the document.

A field's type says what it may be: `bool`, `int`, `float`, `str`, `Literal[...]`, `tuple[X, ...]`, `Mapping[str, X]`, `Any`, another attrs class, `X | None`, and
`X | Absent` where a field that was not sent is something else than null. `field` says more: bounds, and what it means.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs

from trionat.log.record import escape
from trionat.server.console.problem import Code, Problem
from trionat.text import quoted

T = TypeVar("T")

_SHAPE: Final = "shape"
_LONGEST_TEXT: Final = 1024
_MOST_ITEMS: Final = 1024
_SHOWN_CHARACTERS: Final = 64
_HIGHEST: Final = 2**63 - 1


class Absent(Enum):
    """Stands for a field that was not sent."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@attrs.frozen(kw_only=True)
class _Bounds:
    about: str = ""
    least: int = 0
    most: int = _HIGHEST
    shortest: int = 0
    longest: int = _LONGEST_TEXT
    secret: bool = False


_NO_BOUNDS: Final = _Bounds()


def field(
    default: Any = attrs.NOTHING,
    *,
    about: str = "",
    least: int = 0,
    most: int = _HIGHEST,
    shortest: int = 0,
    longest: int = _LONGEST_TEXT,
    secret: bool = False,
) -> Any:
    """Return a field of a class that comes in or goes out: `least` and `most` are for numbers, `shortest` and `longest` for texts and the texts of a list."""
    bounds = _Bounds(
        about=about, least=least, most=most, shortest=shortest, longest=longest, secret=secret
    )
    return attrs.field(default=default, metadata={_SHAPE: bounds})


def _fields(kind: Any) -> Sequence[tuple[str, Any, Any, _Bounds]]:
    """Return name, type, default and bounds of the fields of a class, which may be one of another (`Page[SessionRow]`)."""
    plain = get_origin(kind) or kind
    filled = dict(zip(getattr(plain, "__parameters__", ()), get_args(kind), strict=False))
    hints = get_type_hints(plain)
    return [
        (
            each.name,
            _fill(hints[each.name], filled),
            each.default,
            each.metadata.get(_SHAPE, _NO_BOUNDS),
        )
        for each in attrs.fields(plain)
    ]


def _fill(kind: Any, filled: Mapping[Any, Any]) -> Any:
    if isinstance(kind, TypeVar):
        return filled[kind]
    if filled and get_origin(kind) is tuple:
        (item, *_) = get_args(kind)
        return tuple.__class_getitem__((_fill(item, filled), ...))
    return kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def read(kind: type[T], values: Mapping[str, Any], *, texts: bool = False, what: str = "") -> T:
    """Read an object into its class; with `texts` its values are texts, as they are in a URL.

    Raises:
        Problem: a field is not known, missing, or not as it has to be.
    """
    known = {name: (its, default, bounds) for name, its, default, bounds in _fields(kind)}
    for name in values:
        if name not in known:
            raise _invalid(what + _shown(name), "is not known here")
    found: dict[str, Any] = {}
    for name, (its, default, bounds) in known.items():
        if name in values:
            value = _from_text(its, values[name], what + name) if texts else values[name]
            found[name] = _checked(its, value, bounds, what + name)
        elif default is attrs.NOTHING:
            raise _invalid(what + name, "is missing")
    return kind(**found)


def _shown(name: str) -> str:
    """Return a name that somebody has made up as it is said back: short, and nothing in it but what can be seen."""
    shown = escape(name[:_SHOWN_CHARACTERS])
    return shown if len(name) <= _SHOWN_CHARACTERS else f"{shown}..."


def without_secrets(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was sent of an object, but for what is secret in it."""
    secret = {name for name, _, _, bounds in _fields(kind) if bounds.secret}
    return {name: value for name, value in values.items() if name not in secret}


def _invalid(name: str, reason: str) -> Problem:
    return Problem(Code.INVALID, f"{name} {reason}", field=name)


def _from_text(kind: Any, text: str, name: str) -> Any:
    kinds = get_args(kind) if _is_union(kind) else (kind,)
    if bool in kinds:
        if text not in ("true", "false"):
            raise _invalid(name, "is neither true nor false")
        return text == "true"
    if int in kinds:
        if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
            raise _invalid(name, "is not a whole number")
        return int(text)
    return text


def _checked(kind: Any, value: Any, bounds: _Bounds, name: str) -> Any:
    if _is_union(kind):
        kinds = [each for each in get_args(kind) if each is not Absent]
        if value is None and type(None) in kinds:
            return None
        (kind,) = (each for each in kinds if each is not type(None))
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise _invalid(name, f"is not one of {', '.join(get_args(kind))}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise _invalid(name, "is neither true nor false")
        return value
    if kind in (int, float):
        return _number(kind, value, bounds, name)
    if kind is str:
        return _text(value, bounds, name)
    if origin is tuple:
        if not isinstance(value, list):
            raise _invalid(name, "is not a list")
        items = cast("list[object]", value)
        if len(items) > _MOST_ITEMS:
            raise _invalid(name, f"has more than {_MOST_ITEMS} entries")
        each = get_args(kind)[0]
        return tuple(_checked(each, item, bounds, f"{name}[{n}]") for n, item in enumerate(items))
    if not isinstance(value, dict):
        raise _invalid(name, "is not an object")
    return read(kind, cast("dict[str, Any]", value), what=f"{name}.")


def _number(kind: type[int | float], value: Any, bounds: _Bounds, name: str) -> int | float:
    allowed = int if kind is int else (int, float)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise _invalid(name, "is not a whole number" if kind is int else "is not a number")
    if (
        not bounds.least <= value <= bounds.most
    ):  # asked before `float`, which an integer of 400 digits breaks
        raise _invalid(name, f"is not from {bounds.least} to {bounds.most}")
    return kind(value)


def _text(value: object, bounds: _Bounds, name: str) -> str:
    if not isinstance(value, str):
        raise _invalid(name, "is not a text")
    if not bounds.shortest <= len(value) <= bounds.longest:
        raise _invalid(name, f"has not {bounds.shortest} to {bounds.longest} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(name, "has half a surrogate pair in it")
    if "\0" in value:
        raise _invalid(name, f"has a character of no meaning in it: {quoted(value)}")
    return value


def name_of(kind: Any) -> str:
    """Return what a class is called in the document."""
    arguments = "".join(name_of(each) for each in get_args(kind))
    return f"{arguments}{(get_origin(kind) or kind).__name__}"


def schema_of(kind: Any, named: dict[str, Any], bounds: _Bounds = _NO_BOUNDS) -> dict[str, Any]:
    """Return the JSON schema of a type; those of the classes in it are put into `named`."""
    schema = _schema(kind, named, bounds)
    return {**schema, "description": bounds.about} if bounds.about else schema


def _schema(kind: Any, named: dict[str, Any], bounds: _Bounds) -> dict[str, Any]:
    origin = get_origin(kind)
    if kind is Any:
        return {}
    if _is_union(kind):
        kinds = [each for each in get_args(kind) if each is not Absent]
        schemas = [
            {"type": "null"} if each is type(None) else _schema(each, named, bounds)
            for each in kinds
        ]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if origin is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    if kind is bool:
        return {"type": "boolean"}
    if kind in (int, float):
        return {
            "type": "integer" if kind is int else "number",
            **({} if not bounds.least else {"minimum": bounds.least}),
            **({} if bounds.most == _HIGHEST else {"maximum": bounds.most}),
        }
    if kind is str:
        return {
            "type": "string",
            **({} if not bounds.shortest else {"minLength": bounds.shortest}),
            **({} if bounds.longest == _LONGEST_TEXT else {"maxLength": bounds.longest}),
            **({"format": "password"} if bounds.secret else {}),
        }
    if origin is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0], named, bounds)}
    if origin is not None and issubclass(origin, Mapping):
        values = _schema(get_args(kind)[1], named, _NO_BOUNDS)
        return {"type": "object", "additionalProperties": values}
    name = name_of(kind)
    if name not in named:
        named[name] = {}  # a class may hold itself
        named[name] = object_schema(kind, named)
    return {"$ref": f"#/components/schemas/{name}"}


def object_schema(kind: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a class."""
    fields = _fields(kind)
    return {
        "type": "object",
        "properties": {name: schema_of(its, named, bounds) for name, its, _, bounds in fields},
        "required": [name for name, _, default, _ in fields if default is attrs.NOTHING],
        "additionalProperties": False,
    }


def parameters_of(kind: Any, named: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, schema with the default, meaning of each field, and whether it has to be there, for those that stand in a URL."""
    found: list[dict[str, Any]] = []
    for name, its, default, bounds in _fields(kind):
        schema = _schema(_without_none(its), named, bounds)
        if default is not attrs.NOTHING and default is not None and default is not ABSENT:
            schema = {**schema, "default": default}
        required = default is attrs.NOTHING
        found.append({"name": name, "schema": schema, "about": bounds.about, "required": required})
    return found


def _without_none(kind: Any) -> Any:
    """Return the type without None, which stands for a parameter that is not there."""
    kinds = tuple(each for each in get_args(kind) if each is not type(None))
    if not _is_union(kind):
        return kind
    joined: Any = kinds[0]
    for each in kinds[1:]:
        joined |= each
    return joined
