"""The table of keys: what one field of a configuration class is called, in every place where it can be given.

A field is described once, by `key` in its metadata. The file reader, the environment, the flags' names in messages,
`config show`, the example file and the documentation all follow from that description.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

import attrs

from trionat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.config.values import Kind

Fault: TypeAlias = tuple[tuple[str, ...], str]
"""The fields that do not go together, the one most likely at fault first, and why."""

_METADATA = "trionat.config.key"


class Effect(enum.Enum):
    """From when on a value counts that was changed while the program runs, and was read by a reload; the words are for people."""

    AT_ONCE = "at once"
    NEW_SESSIONS = "new sessions"
    RESTART = "restart"


AT_ONCE: Final = Effect.AT_ONCE
NEW_SESSIONS: Final = Effect.NEW_SESSIONS
RESTART: Final = Effect.RESTART


@attrs.frozen(kw_only=True)
class Key:
    """One key. That of a section which is a list itself has no name.

    `section` and `field` are the YAML section and the attribute; `name` is the key in YAML. `many` keys take a list, and
    their kind reads one item into a tuple; `item` is the class of those items that may also be mappings. A section is
    incomplete without its `required` keys; `default` is the value of the others, `unset` says what None stands for, and `derived` is the property that works
    it out. `flag` is a flag with its dashes, an argument in capitals, or None where there is neither; `aliases` are
    other flags that mean the same, from before it had this name. `short` is a second, shorter environment variable.
    `effect` is from when on a value counts that was changed while the program runs.
    """

    name: str
    kind: Kind[Any]
    meaning: str
    many: bool = False
    item: type[Any] | None = None
    secret: bool = False
    unset: str = "none"
    derived: str | None = None
    letter: str | None = None
    flag: str | None = None
    aliases: tuple[str, ...] = ()
    short: str | None = None
    effect: Effect = RESTART
    section: str = ""
    field: str = ""
    required: bool = False
    default: Any = None

    @property
    def path(self) -> str:
        """The key with its section, such as `Server.VisitPort`; of a section that is a list, that alone."""
        return ".".join(filter(None, (self.section, self.name)))

    @property
    def environment(self) -> tuple[str, ...]:
        """The names of its environment variables; the first one that is set counts."""
        words = ("TRIONAT", self.section.upper(), self.field.upper() if self.name else "")
        full = "_".join(filter(None, words))
        return (full,) if self.short is None else (full, self.short)

    @property
    def help(self) -> str:
        """One line for help texts: what it is for, and which values it takes, with unit and range."""
        return f"{self.meaning} ({self.kind.words})"

    def write(self, value: Any) -> str:
        """Write a value for people to read; None and what is empty become the words of `unset`."""
        if value in (None, (), ""):
            return self.unset
        if self.many and self.item is not None:
            return ", ".join(map(self.kind.write, value))
        return self.kind.write(value)


def key(
    name: str,
    kind: Kind[Any],
    meaning: str,
    *,
    many: bool = False,
    item: type[Any] | None = None,
    unset: str = "none",
    derived: str | None = None,
    letter: str | None = None,
    flag: str | None = "",
    aliases: tuple[str, ...] = (),
    short: str | None = None,
    effect: Effect = RESTART,
) -> dict[str, Key]:
    """Describe a field, as the metadata of its `attrs.field`; see `Key`.

    An empty `flag` stands for the field's name in `--kebab-case`. A secret is a field with `repr=False`.
    """
    entry = Key(
        name=name,
        kind=kind,
        meaning=meaning,
        many=many,
        item=item,
        unset=unset,
        derived=derived,
        letter=letter,
        flag=flag,
        aliases=aliases,
        short=short,
        effect=effect,
    )
    return {_METADATA: entry}


class Section(Protocol):
    """A section of the configuration, such as `ServerConfig`."""

    section: ClassVar[str]

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        ...


def check_faults(section: Section) -> None:
    """Check a section that a program has made itself, and no file or flag.

    Raises:
        ConfigError: Something in it does not go together.
    """
    keys = {key.field: key.path for key in keys_of(type(section))}
    problems = [
        Problem(type(section).__name__, reason, keys[fields[0]])
        for fields, reason in section.faults()
    ]
    if problems:
        raise ConfigError(*problems)


def keys_of(owner: type[Any]) -> tuple[Key, ...]:
    """The keys of a configuration class, in the order of its fields."""
    keys: list[Key] = []
    for attribute in attrs.fields(owner):
        entry: Key = attribute.metadata[_METADATA]
        entry = attrs.evolve(
            entry,
            section=getattr(owner, "section", ""),
            field=attribute.name,
            required=attribute.default is attrs.NOTHING,
            default=None if attribute.default is attrs.NOTHING else attribute.default,
            secret=not attribute.repr,
        )
        if entry.flag == "":
            entry = attrs.evolve(entry, flag=f"--{attribute.name.replace('_', '-')}")
        keys.append(entry)
    return tuple(keys)
