"""Reading the configuration again while the program runs: what has changed, what of that counts at once, and what only after a restart.

All or nothing: a source that is wrong, or a new value that cannot be had, leaves everything as it was.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from trionat.config.key import Effect, Key, keys_of
from trionat.config.sections import SECTIONS
from trionat.errors import ConfigError, StartupError
from trionat.log import get_logger
from trionat.signals import AutoResetEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from trionat.config.load import Configuration

log = get_logger(__name__)

PATIENCE: Final = 60.0
"""Seconds for one reload, with its wait for the one before. Chosen: reading files and opening ports take milliseconds, a server that is asked for other services has 10 s; what takes longer hangs."""

_MOST_READERS: Final = 8
"""Threads that read, those included that were left behind since they hang: else a disk that is gone would take all threads that there are, one at each reload. Chosen."""

_LONGEST: Final = 80
"""Characters of a value that is told."""


@attrs.frozen(kw_only=True)
class Reloaded:
    """What came of a reload: keys by their paths. Where there are `problems`, nothing has changed.

    `changed` count from now on, `new_sessions` for sessions that begin from now on, `restart` are those that have changed and wait for a restart.
    `warnings` say what is not as the configuration has it all the same.
    """

    changed: tuple[str, ...] = ()
    new_sessions: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Reloaded:
        """Return what `attrs.asdict` has made these values of; a server of another version may tell more, or less."""
        known = attrs.fields_dict(cls)
        return cls(**{name: tuple(texts) for name, texts in values.items() if name in known})


class Reloadable(Protocol):
    """What runs by a configuration, and can change to another one."""

    def needs_restart(self, before: Configuration, wanted: Configuration) -> Collection[str]:
        """Return the paths of keys that cannot change here, although others of their kind can."""
        ...

    async def change(self, before: Configuration, after: Configuration) -> Sequence[str]:
        """Run by `after` from now on; a file of the same name may have other contents. Cancelling it leaves all as it was, or has done it.

        Returns:
            What may be left out, and is: a line for each. It is in the log already.

        Raises:
            StartupError: Something new cannot be had; all is as it was.
        """
        ...


@attrs.define(eq=False)
class Reloader:
    """Reads the configuration with `read`, which blocks, and has whoever runs change to it. `current` is the one in force.

    `on_change` is called with the one before and the one that is in force now. `wanted` asks for a reload, which `run` does.
    `tell` hears when one begins (True), and when it is over (False).
    """

    read: Callable[[], Configuration]
    current: Configuration
    on_change: Callable[[Configuration, Configuration], None] = lambda _, __: None
    tell: Callable[[bool], None] = lambda _: None
    wanted: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    reloadable: Reloadable | None = attrs.field(init=False, default=None)
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _readers: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, _MOST_READERS)
    )

    async def run(self) -> None:
        """Reload whenever it is wanted, until cancelled."""
        while True:
            await self.wanted.wait()
            await self.reload()

    async def reload(self) -> Reloaded:
        """Read the configuration again, and do what it says; one reload after another. The log tells what came of it."""
        outcome = Reloaded(
            problems=(f"not done within {PATIENCE:g} s: is a file on a disk that hangs?",)
        )
        with trio.move_on_after(PATIENCE):
            async with self._turn:
                self.tell(True)
                try:
                    outcome = await self._reload()
                except (ConfigError, StartupError) as error:
                    outcome = Reloaded(problems=tuple(str(error).splitlines()))
                finally:
                    self.tell(False)
        _log(outcome)
        return outcome

    async def _reload(self) -> Reloaded:
        if self.reloadable is None:
            raise StartupError("the configuration cannot be read again before the server is up")
        # A file may be a pipe, or on a network that is gone: a thread that waits for one is left behind.
        wanted = await trio.to_thread.run_sync(
            self.read, abandon_on_cancel=True, limiter=self._readers
        )
        before = self.current
        after, changed, waiting = merge(
            before, wanted, self.reloadable.needs_restart(before, wanted)
        )
        warnings = await self.reloadable.change(before, after)
        self.current = after
        self.on_change(before, after)
        return Reloaded(
            changed=tuple(
                _describe(key, before, after) for key in changed if key.effect is Effect.AT_ONCE
            ),
            new_sessions=tuple(
                _describe(key, before, after)
                for key in changed
                if key.effect is Effect.NEW_SESSIONS
            ),
            restart=waiting,
            warnings=tuple(warnings),
        )


def _log(outcome: Reloaded) -> None:
    for problem in outcome.problems:
        log.warning("the configuration was not reloaded: nothing has changed", reason=problem)
    if outcome.problems:
        return
    log.info(
        "configuration reloaded",
        changed=", ".join(outcome.changed) or None,
        new_sessions=", ".join(outcome.new_sessions) or None,
    )
    if outcome.restart:
        log.warning("changed, and needs a restart", keys=", ".join(outcome.restart))


def merge(
    before: Configuration, wanted: Configuration, held: Collection[str] = ()
) -> tuple[Configuration, tuple[Key, ...], tuple[str, ...]]:
    """Return the configuration that can be in force now, the keys that change with it, and the paths of those that wait for a restart.

    `held` are paths of keys that cannot change now. A key that goes only with one that waits, waits as well.
    """
    changed, waiting = list[Key](), list[str]()
    for key in _changed(before, wanted, waiting):
        if key.effect is Effect.RESTART or key.path in held:
            waiting.append(key.path)
        else:
            changed.append(key)
    while True:
        after = _with(before, wanted, changed)
        faulty = set(_faulty(after))
        kept = [key for key in changed if key.path not in faulty]
        if len(kept) == len(changed):
            return after, tuple(changed), tuple(waiting)
        waiting += [key.path for key in changed if key.path in faulty]
        changed = kept


def _changed(before: Configuration, wanted: Configuration, sections: list[str]) -> Iterator[Key]:
    """Go through the keys whose values differ; `sections` gets the names of those that have come, or gone."""
    for name, owner in SECTIONS.items():
        old, new = getattr(before, name.lower()), getattr(wanted, name.lower())
        if (old is None) != (new is None):
            sections.append(name)
        elif old is not None:
            for key in keys_of(owner):
                if getattr(old, key.field) != getattr(new, key.field):
                    yield key


def _with(before: Configuration, wanted: Configuration, keys: Iterable[Key]) -> Configuration:
    """Return the configuration with the wanted values of some keys."""
    values: dict[str, dict[str, Any]] = {}
    for key in keys:
        section = key.section.lower()
        values.setdefault(section, {})[key.field] = getattr(getattr(wanted, section), key.field)
    sections = {name: attrs.evolve(getattr(before, name), **new) for name, new in values.items()}
    origins = {**before.origins, **{key.path: wanted.origins[key.path] for key in keys}}
    return attrs.evolve(
        before, **sections, origins=origins, file=wanted.file, warnings=wanted.warnings
    )


def _faulty(configuration: Configuration) -> Iterator[str]:
    """Go through the paths of keys that do not go together."""
    for name, owner in SECTIONS.items():
        if (section := getattr(configuration, name.lower())) is None:
            continue
        paths = {key.field: key.path for key in keys_of(owner)}
        for fields, _ in section.faults():
            yield from (paths[field] for field in fields)


def _describe(key: Key, before: Configuration, after: Configuration) -> str:
    """Return what has changed, in a line; no secret, and not the whole of a long list."""
    section = key.section.lower()
    old, new = (key.write(getattr(getattr(each, section), key.field)) for each in (before, after))
    if key.secret or key.item is not None or max(len(old), len(new)) > _LONGEST:
        return key.path
    return f"{key.path}: {old} -> {new}"
