"""The tasks of this process, as they own each other."""

from __future__ import annotations

import re
from typing import Any, Final

import attrs
import trio

_PARTS: Final = re.compile(r"(\D*)(\d*)", re.ASCII)


@attrs.frozen
class Branch:
    """A task and the nurseries that it has open, or a nursery and its tasks."""

    name: str
    branches: tuple[Branch, ...]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Branch:
        """Return what `attrs.asdict` has made these values of."""
        return cls(values["name"], tuple(map(cls.of, values["branches"])))


def main_task() -> trio.lowlevel.Task:
    """Return the task that `trio.run` was called with; beside it there are only those that Trio has for itself."""
    root = trio.lowlevel.current_root_task()
    assert root is not None, "there is one as long as Trio runs"  # noqa: S101 - for type checkers
    (main,) = root.child_nurseries[-1].child_tasks
    return main


async def grow(task: trio.lowlevel.Task) -> Branch:
    """Return the tree of a task: everything that ends before it can end.

    Others get their turn after each task, so tasks that come and go meanwhile may be in it or not.
    """
    await trio.lowlevel.checkpoint()
    return Branch(task.name, await _nurseries(task, task.child_nurseries))


async def _nurseries(task: trio.lowlevel.Task, nurseries: list[trio.Nursery]) -> tuple[Branch, ...]:
    """A task's nurseries are inside of each other: the first is the outermost."""
    if not nurseries:
        return ()
    nursery, *inner = nurseries
    tasks = sorted([await grow(child) for child in nursery.child_tasks], key=_in_order)
    return (Branch(_name(task, nursery), (*tasks, *await _nurseries(task, inner))),)


def _name(task: trio.lowlevel.Task, nursery: trio.Nursery) -> str:
    """A nursery has no name of its own, but for that of the variable that holds it."""
    for frame, _ in task.iter_await_frames():
        for name, value in frame.f_locals.items():
            if value is nursery:
                return name if name == "nursery" else f"nursery {name}"
    return "nursery"


def _in_order(branch: Branch) -> list[tuple[str, int]]:
    """By name, and where there are numbers in names, by number."""
    return [(text, int(number or 0)) for text, number in _PARTS.findall(branch.name)]
