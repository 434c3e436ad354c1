"""The manual page, trionat(1), out of what the commands say of themselves: man(7)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from trionat.cli.running import ExitCode
from trionat.cli.topics import EXAMPLES, OTHER, TOPICS, rank, topic_of
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXIT_CODES: Final = {
    ExitCode.DONE: "stopped as planned, or done",
    ExitCode.BUG: "a bug of trionat; a traceback says where",
    ExitCode.CONFIGURATION: "wrong configuration, or the server does not offer what was asked for",
    ExitCode.STARTUP: "an address or a file cannot be used, or the server cannot be reached",
    ExitCode.REFUSED: "the server refuses us, or is not the right server",
    ExitCode.REPLACED: "another client with the same identity took over",
    ExitCode.FINDINGS: "something was found, or somebody was left",
    ExitCode.INTERRUPTED: "stopped at once, by a second signal",
}


def manual(root: Any) -> str:
    """Return the page; `root` is the context of the whole command line."""
    return "\n".join(_lines(root)) + "\n"


def _lines(root: Any) -> Iterator[str]:
    yield f'.TH TRIONAT 1 "" "trionat {VERSION}"'
    yield from (".SH NAME", r"trionat \- make a service behind NAT reachable, encrypted")
    yield ".SH SYNOPSIS"
    yield r".B trionat serve"
    yield from ("[OPTIONS]", ".br", ".B trionat connect", "[OPTIONS] [TICKET] [SERVICE]...", ".br")
    yield from (".B trionat", "COMMAND [OPTIONS] [ARGUMENTS]")
    yield ".SH DESCRIPTION"
    yield _roff(str(root.command.help))
    yield from _options(root)
    yield ".SH COMMANDS"
    yield from _commands(root)
    yield ".SH EXIT STATUS"
    for code, meaning in _EXIT_CODES.items():
        yield from (".TP", f".B {code.value}", _roff(meaning))


def _commands(context: Any) -> Iterator[str]:
    for name in context.command.list_commands(context):
        inner = context.command.get_command(context, name)
        found = inner.make_context(name, [], parent=context, resilient_parsing=True)
        if hasattr(found.command, "list_commands"):
            yield from _commands(found)
            continue
        usage = " ".join(found.command.collect_usage_pieces(found))
        yield f".SS {_roff(f'{found.command_path} {usage}')}"
        for paragraph in (found.command.help or "").split("\n\n"):
            yield from (_roff(" ".join(paragraph.split())), ".PP")
        yield from _options(found)
        for line, meaning in EXAMPLES.get(name, ()):
            yield from (".TP", f".B {_roff(line)}", _roff(meaning))


def _options(context: Any) -> Iterator[str]:
    name = str(context.info_name)
    by_topic: dict[str, list[tuple[str, str]]] = {topic: [] for topic in TOPICS.get(name, ())}
    parameters = context.command.get_params(context)
    for parameter in sorted(parameters, key=lambda each: rank(name, each.opts)):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            by_topic.setdefault(topic_of(name, parameter.opts), []).append(record)
    for topic, records in by_topic.items():
        if topic != OTHER and records:
            yield from (".PP", rf"\fI{_roff(topic)}\fR")
        for words, meaning in records:
            yield from (".TP", f".B {_roff(words)}", _roff(meaning))


def _roff(text: str) -> str:
    """Write text so that troff takes none of it for a request: groff_man_style(7), "Portability"."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^([.'])", r"\\&\1", " ".join(text.split()))
