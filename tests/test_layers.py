"""The house rules that a linter does not know: who may import whom, and who may print."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "trionat"

LAYERS = [
    {"cli", "__main__", "__init__"},
    {"doctor", "backup", "testing"},
    {"service_manager"},
    {"server", "client"},
    {"relay", "transport", "store"},
    {"protocol", "config", "events", "libraries", "event_loop", "trio_thread"},
    {
        "address",
        "networks",
        "errors",
        "signals",
        "interpreter",
        "log",
        "fingerprint",
        "hostnames",
        "default_labels",
        "version",
    },
    {"text", "system"},
]
"""From the top down. A room imports from itself and from lower layers; beside each other, only where `BESIDE` says so."""
BESIDE = {("__main__", "cli"), ("cli", "__init__"), ("relay", "transport")}
SERVER_ROOMS = [
    {"embedded"},
    {"app"},
    {"reload"},
    {"single", "workers"},
    {"serving_process"},
    {"console"},
    {"exposition"},
    {"admin"},
    {"upgrade"},
    {"control"},
    {"cluster"},
    {"sessions"},
    {"admission"},
    {"registry"},
    {"names"},
    {"visitors"},
    {"accounts"},
    {"certificates"},
    {"proxies"},
    {"connection_log", "handshakes"},
    {"change", "control_certificate"},
    {"listeners", "state_folder", "refusals", "tally"},
    {"events"},
]
"""The rooms of the server, from the top down; a room imports from itself and from those below."""
SANS_IO = {"trio", "socket", "ssl", "time", "asyncio", "anyio", "selectors", "threading"}
"""What protocol/ must not know; not for annotations either, since who names a socket's type is about to use one."""

FOREIGN = {
    "watchfiles": ["cli/file_watch.py"],
    "acme": ["server/certificates/acme_client.py"],
    "anycorn": ["transport/web_connection.py"],
    "anyio": ["store/mysql/pool.py"],
    "asyncio": ["store/mysql/pool.py", "trio_thread.py"],
    "asyncmy": ["store/mysql/pool.py", "store/mysql/faults.py"],
    "coredis": ["server/cluster/primary.py", "server/cluster/redis_link.py"],
    "h11": ["server/events/post.py", "transport/web_connection.py"],
    "httptools": ["protocol/http/fields.py", "protocol/http/body.py"],
    "josepy": ["server/certificates/acme_client.py"],
    "prometheus_client": [
        "server/exposition/collector.py",
        "server/exposition/exposition.py",
    ],
    "pytest": ["testing/plugin.py"],
    "rich": ["cli/screen/"],
    "starlette": [
        "client/inspector/",
        "server/console/",
        "transport/web_answer.py",
        "transport/web_body.py",
        "transport/web_connection.py",
        "transport/web_page.py",
        "transport/web_server.py",
    ],
    "requests": ["server/certificates/acme_client.py"],
    "urllib3": ["server/certificates/acme_client.py"],
}
"""What belongs to another event loop than Trio's or to a process of its own, or is not there for everybody, and who may know it: a module, or all in a folder."""


def rank(room: str) -> int:
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise AssertionError(f"trionat.{room} has no layer yet: give it one in LAYERS")


def may_import(importer: str, imported: str) -> bool:
    return importer == imported or rank(importer) < rank(imported) or (importer, imported) in BESIDE


def server_rank(room: str) -> int:
    for number, rooms in enumerate(SERVER_ROOMS):
        if room in rooms:
            return number
    raise AssertionError(f"trionat.server.{room} has no place yet: give it one in SERVER_ROOMS")


def may_import_in_server(path: Path, imported: str) -> bool:
    """Tell whether a module of the server may import `server.ROOM...`."""
    if len(path.parts) < 2 or path.parts[1] == "__init__.py":
        return False
    room, below = path.parts[1].removesuffix(".py"), imported.split(".")[1]
    return room == below or server_rank(room) < server_rank(below)


def parsed() -> list[tuple[Path, ast.Module]]:
    """Return every module of the package, by its path in the package."""
    return [
        (path.relative_to(SOURCE), ast.parse(path.read_text("utf-8"), str(path)))
        for path in sorted(SOURCE.rglob("*.py"))
    ]


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path, tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, relative ones resolved.

    Those under `if TYPE_CHECKING` and inside functions count like all others: they couple the rooms in the reader's head, and
    the first is turned into a real import by whoever next needs the class.
    """
    package = ["trionat", *path.parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def violations(path: Path, tree: ast.Module) -> list[str]:
    room, found = room_of(path), []
    for name in sorted(imports(path, tree)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "trionat" and target and not may_import(room, target_room(target)):
            found.append(f"{path}: {room} must not import {name}")
        if room == "server" and target == "server" and not may_import_in_server(path, rest):
            found.append(f"{path}: imports in server/ run downward only, and {name} is not below")
        if room == "protocol" and top in SANS_IO:
            found.append(f"{path}: protocol must not know {top}")
        if top in FOREIGN and not path.as_posix().startswith(tuple(FOREIGN[top])):
            found.append(f"{path}: only {FOREIGN[top]} may import {top}")
    if room not in {"cli", "__main__"}:
        found += [
            f"{path}:{node.lineno}: only cli/ prints"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "input"}
        ]
    if "utils" in {part.removesuffix(".py") for part in path.parts}:
        found.append(f"{path}: a module is named for what it is")
    return found


def target_room(name: str) -> str:
    """Return the room of a first-level name; what is no module is a name out of `trionat/__init__.py`."""
    if (SOURCE / f"{name}.py").exists() or (SOURCE / name).is_dir():
        return name
    return "__init__"


def test_imports_run_downward_only() -> None:
    modules = parsed()
    assert len(modules) > 5
    assert [problem for path, tree in modules for problem in violations(path, tree)] == []


def test_every_module_has_a_layer() -> None:
    for path, _ in parsed():
        rank(room_of(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("server/app.py", "from trionat.client import session"),
        ("server/app.py", "from trionat import client"),
        ("server/app.py", "from ..client.session import Session"),
        ("server/app.py", "from .. import cli"),
        ("client/app.py", "import trionat.server.app"),
        ("client/app.py", "def f():\n    from trionat.cli import app"),
        ("relay/tunnel.py", "from trionat.store import base"),
        ("store/base.py", "if TYPE_CHECKING:\n    from trionat.server.app import App"),
        ("errors.py", "from trionat.config import schema"),
        ("errors.py", "from trionat import Server"),
        ("protocol/frames.py", "import trio"),
        ("protocol/frames.py", "from socket import socket"),
        ("protocol/frames.py", "if TYPE_CHECKING:\n    import ssl"),
        ("protocol/frames.py", "import time"),
        ("store/sqlite.py", "import asyncmy.errors"),
        ("server/app.py", "print('up')"),
        ("server/accounts/accounts.py", "from trionat.server.sessions.session import Session"),
        ("server/visitors/queue.py", "from trionat.server.admission import lease"),
        ("server/refusals.py", "from trionat.server.accounts.limits import UserLimits"),
        ("server/utils.py", ""),
        ("utils/text.py", ""),
    ],
)
def test_the_rules_bite(path: str, source: str) -> None:
    assert violations(Path(path), ast.parse(source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/serve.py", "from trionat.server.app import serve\nprint('up')"),
        (
            "server/app.py",
            "from trionat.server.sessions.session import Session\nfrom .visitors import ports\nimport trio",
        ),
        ("server/app.py", "from ..relay import tunnel\nfrom trionat.errors import PeerError"),
        ("protocol/frames.py", "import struct\nfrom ..errors import RemoteProtocolError"),
        ("store/mysql/pool.py", "import asyncmy"),
        ("log.py", "import logging\nprinter.print('x')"),
    ],
)
def test_the_rules_allow(path: str, source: str) -> None:
    assert violations(Path(path), ast.parse(source)) == []
