"""What not every system has is asked for in one place: `system.py`, `transport/kernel.py`, or where docs/platforms.md says."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.test_layers import SOURCE, parsed

ASKS = {
    "cli/approvals.py": "win32",
    "cli/output.py": "os.name",
    "cli/screen/choice.py": "win32",
    "cli/screen/keyboard.py": "win32",
    "cli/screen/painter.py": "win32",
    "doctor/files.py": "os.name",
    "log/writer.py": "os.name",
    "service_manager/daemon.py": "win32",
    "service_manager/manager.py": "darwin win32",
    "store/private_file.py": "os.name win32",
    "transport/dial.py": "linux",
    "transport/kernel.py": "linux",
    "transport/readiness.py": "linux",
}
"""Who asks what the system is called, and for which name: each of them has a row on the page."""

MODULES = {
    "fcntl": {"store/private_file.py", "system.py"},
    "grp": set[str](),
    "msvcrt": {"store/private_file.py"},
    "pwd": set[str](),
    "resource": {"system.py"},
    "termios": {"cli/approvals.py", "cli/screen/keyboard.py", "cli/screen/painter.py"},
    "tty": set[str](),
    "winreg": set[str](),
}
"""Modules that only some systems have, and who imports them."""

PAGE = (Path(__file__).parent.parent / "docs/platforms.md").read_text(encoding="utf-8")


def asked(tree: ast.Module) -> set[str]:
    """Return what is compared with `sys.platform`, and `os.name` where that is looked at."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "sys.platform":
            found |= {
                leaf.value
                for each in node.comparators
                for leaf in ast.walk(each)
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
            }
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "os.name":
            found.add("os.name")
    return found


def imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_only_these_ask_what_the_system_is_called() -> None:
    found = {path.as_posix(): " ".join(sorted(asked(tree))) for path, tree in parsed()}
    told = {name: " ".join(sorted(words.split())) for name, words in ASKS.items()}
    assert {name: words for name, words in found.items() if words} == told


def test_each_module_that_only_some_systems_have_has_one_place() -> None:
    found = {path.as_posix(): imported(tree) for path, tree in parsed()}
    for module, places in MODULES.items():
        assert {path for path, modules in found.items() if module in modules} == places


def test_the_page_names_each_place() -> None:
    for name in [*ASKS, "system.py", "transport/kernel.py"]:
        assert f"`{name}`" in PAGE, name
        assert (SOURCE / name).exists()
