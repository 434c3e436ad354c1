"""Writes the reference of docs/library.md, from the docstrings: `python -m tests.library_page`. What stands before it is written by hand."""

from __future__ import annotations

import ast
import enum
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

import trionat
import trionat.testing
from trionat.config.key import keys_of
from trionat.config.values import STATE_DIR_UNSET

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parents[1] / "docs" / "library.md"
BEGIN: Final = "<!-- What follows is made from the docstrings: python -m tests.library_page -->\n"
WIDTH: Final = 100

CHAPTERS: Final = {
    "A client": ("connect", "Client", "ClientSnapshot", "VisitorView"),
    "A server": ("open_server", "serve", "Ready"),
    "Programs without Trio": ("TrioThread",),
    "Events of a client": (
        *("ClientEvent", "Connected", "PublicService", "Queued", "Disconnected", "Draining"),
        *("ServiceDown", "ServiceUp", "ApprovalAsked", "Inspecting"),
    ),
    "Services and addresses": (
        *("Service", "parse_service", "Address", "TCPAddress", "UnixAddress", "Network"),
        "parse_network",
    ),
    "Configuration": (
        *("ClientConfig", "AuthConfig", "ServerConfig", "DatabaseConfig", "AcmeConfig"),
        *("EventsConfig", "WebhookConfig", "ClusterConfig"),
    ),
    "Errors": (
        *("TrionatError", "ConfigError", "Problem", "StartupError", "EventLoopError"),
        *("StoreError", "StoreUnavailableError", "PeerError", "RefusedError", "RefusalCode"),
        *("IdentityError", "ConnectionLostError", "SessionOverError", "CloseCode"),
        *("PeerTimeoutError", "RemoteProtocolError"),
    ),
    "For tests": (
        *("trionat_expose", "trionat_server", "Expose", "MemoryEndpoint", "memory_pair"),
        *("receive_some", "receive_exactly", "receive_all", "echo"),
    ),
}
"""Every public name, where a reader looks for it."""

PLUGIN: Final = "trionat.testing.plugin"
FIXTURES: Final = ("trionat_expose", "trionat_server")

CONFIGURATION: Final = """
Each class is a section of a configuration file, and each argument a key of it, which [configuration.md](configuration.md) describes: `Server.VisitPort` there is `ServerConfig.visit_port` here,
`VisitorWait` is `visitor_wait`. What is said of logs and of reading a file again (`log_filename`, `log_level`, `start_log`, `reload_on_change`) is for the commands, and does nothing here.
"""

WITHOUT_HEAD: Final = ("MemoryEndpoint",)
"""Classes that others than trionat do not make."""

METHODS: Final = {
    "Client": ("run", "snapshot", "place", "approve"),
    "TrioThread": ("call",),
    "PublicService": ("shown",),
    "Expose": ("__call__",),
    "MemoryEndpoint": ("recv_into", "send", "send_eof", "is_lost", "close", "reset", "cut"),
}
"""What of a class is for others than trionat itself."""


def main() -> None:
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + reference(), encoding="utf-8")


def reference() -> str:
    """Return all that stands behind `BEGIN`."""
    parts: list[str] = []
    for chapter, names in CHAPTERS.items():
        where = "trionat.testing" if chapter == "For tests" else "trionat"
        parts.append(f"\n## Reference: {chapter[0].lower()}{chapter[1:]}\n")
        if chapter == "Configuration":
            parts.append(CONFIGURATION)
        parts.append(
            f"\nIn `{where}`; the two fixtures come by themselves.\n" * (where != "trionat")
        )
        for name in names:
            parts += entry(where, name)
    return "".join(parts)


def find(where: str, name: str) -> Any:
    return getattr(import_module(PLUGIN if name in FIXTURES else where), name)


def entry(where: str, name: str) -> Iterator[str]:
    """Yield what is said of one name."""
    thing = find(where, name)
    yield f"\n### {name}\n\n"
    if name in FIXTURES:
        yield f"A fixture{scope(thing)}. " + text(doc(thing))
    elif isinstance(thing, type) and issubclass(thing, enum.Enum):
        values = ", ".join(f"`{each.value}`" for each in thing)
        yield text(doc(thing)) + f"\nIts values are {values}.\n"
    elif isinstance(thing, type):
        yield from class_entry(name, thing)
    elif inspect.isfunction(thing):
        yield block(function_head(name, thing))
        yield text(doc(thing))
    else:
        code, told = alias(where, name)
        yield block(code) + told + "\n"


def scope(fixture: Any) -> str:
    found = getattr(fixture, "_fixture_function_marker", None)
    return "" if found is None else f" of the scope `{found.scope}`"


def class_entry(name: str, thing: type[Any]) -> Iterator[str]:
    bases = [each.__name__ for each in thing.__bases__ if each is not object]
    known = [base for base in bases if hasattr(trionat, base) or base == "RuntimeError"]
    keys = {} if not attrs.has(thing) else keyed(thing)
    if keys:
        yield block(f"{name}({'*, ' if kw_only(thing) else ''}...)")
    elif issubclass(thing, BaseException):
        yield block(f"class {name}({', '.join(known) or 'Exception'})")
    elif attrs.has(thing) and name not in WITHOUT_HEAD:
        yield block(attrs_head(name, thing))
    yield text(doc(thing))
    if keys:
        yield from key_table(thing, keys)
    for method in METHODS.get(name, ()):
        value = inspect.getattr_static(thing, method)
        if isinstance(value, property):
            yield f"\n#### {name}.{method}\n\n" + text(doc(value))
        else:
            shown = "call" if method == "__call__" else method
            yield f"\n#### {name}.{shown}\n\n"
            yield block(function_head("" if method == "__call__" else method, value))
            yield text(doc(value))


def keyed(thing: type[Any]) -> dict[str, Any]:
    """Return the keys of a configuration's class, by argument; of any other class nothing."""
    try:
        return {key.field: key for key in keys_of(thing)}
    except KeyError:
        return {}


def kw_only(thing: type[Any]) -> bool:
    return all(each.kw_only for each in attrs.fields(thing) if each.init)


def key_table(thing: type[Any], keys: dict[str, Any]) -> Iterator[str]:
    types = {each.name: each.type for each in attrs.fields(thing)}
    yield "\n| argument | type | meaning | default |\n| --- | --- | --- | --- |\n"
    for argument, key in keys.items():
        default = "required" if key.required else key.write(key.default)
        default = default.replace(STATE_DIR_UNSET, "none: in memory")
        yield f"| `{argument}` | `{cell(types[argument])}` | {cell(key.help)} | {cell(default)} |\n"


def cell(words: str) -> str:
    return words.replace("|", "\\|")


def function_head(name: str, function: Any) -> str:
    """Return a function as it is called."""
    plain = inspect.unwrap(function)
    gives = inspect.signature(plain).return_annotation
    prefix = "async " if inspect.iscoroutinefunction(plain) else ""
    if inspect.isasyncgenfunction(plain) and plain is not function:
        gives = str(gives).replace("AsyncGenerator", "AbstractAsyncContextManager")
    parameters: list[str] = []
    star = False
    for each in inspect.signature(plain).parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.VAR_POSITIONAL:
            parameters.append(f"*{each.name}: {each.annotation}")
            star = True
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        default = "" if each.default is each.empty else f" = {shown(each.default)}"
        parameters.append(f"{each.name}: {each.annotation}{default}")
    return head(f"{prefix}def {name}" if name else "expose", parameters, f" -> {gives}")


def attrs_head(name: str, thing: type[Any]) -> str:
    """Return how an object of attrs is made."""
    fields = [each for each in attrs.fields(thing) if each.init and not each.name.startswith("_")]
    parameters: list[str] = []
    star = False
    for each in fields:
        if each.kw_only and not star:
            parameters.append("*")
            star = True
        default = "" if each.default is attrs.NOTHING else f" = {shown(each.default)}"
        parameters.append(f"{each.name}: {each.type}{default}")
    return head(name, parameters, "")


def head(name: str, parameters: list[str], end: str) -> str:
    line = f"{name}({', '.join(parameters)}){end}"
    if len(line) <= WIDTH:
        return line
    inside = "".join(f"    {each},\n" for each in parameters)
    return f"{name}(\n{inside}){end}"


def shown(default: Any) -> str:
    """Return a default as people write it; what is made anew each time, and what is trio's own, are dots."""
    plain = default is None or isinstance(default, str | int | float | tuple)
    return repr(default) if plain else "..."


def alias(where: str, name: str) -> tuple[str, str]:
    """Return the code of a name for other types, and what is said below it."""
    homes: dict[str, str] = vars(trionat)["_HOMES"]
    source = Path(str(import_module(homes[name]).__file__)).read_text(encoding="utf-8")
    body = ast.parse(source).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if [ast.unparse(each) for each in targets] != [name]:
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        assert isinstance(after, ast.Expr), f"{where}.{name} has no docstring"
        assert node.value is not None
        code = f"{name} = {ast.unparse(node.value)}"
        if len(code) > WIDTH:
            inside = ast.unparse(node.value).replace(" | ", "\n    | ")
            code = f"{name} = (\n    {inside}\n)"
        return code, str(ast.literal_eval(after.value))
    raise AssertionError(f"{where}.{name} is not found")


def doc(thing: Any) -> str:
    found = inspect.getdoc(thing)
    assert found, f"{thing} has no docstring"
    return found


def block(code: str) -> str:
    return f"```python\n{code}\n```\n\n"


def text(docstring: str) -> str:
    """Return a docstring as Markdown: its sections are lists."""
    out: list[str] = []
    section = ""
    for line in docstring.splitlines():
        if found := re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            section = found[1]
            out.append(
                {"Args": "Arguments:", "Attributes": "Attributes:"}.get(section, f"{section}:")
            )
            out.append("")
        elif section and line.startswith("        "):
            out[-1] += f" {line.strip()}"
        elif section in {"Args", "Attributes", "Raises"} and line.startswith("    "):
            names, _, told = line.strip().partition(": ")
            marked = ", ".join(f"`{each}`" for each in names.split(", "))
            out.append(f"- {marked}: {told}")
        elif section == "Returns" and line.startswith("    "):
            out.append(line.strip())
        else:
            out.append(line)
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    main()
