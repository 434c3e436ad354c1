"""What helps to find one's way on the command line: help by topics, the manual page, completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from trionat.cli import COMMANDS, app
from trionat.cli.manual import manual
from trionat.cli.topics import EXAMPLES, TOPICS, topic_of

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "man/trionat.1"


def trionat(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.argv[0] = 'trionat'; from trionat.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", **environ},
    )


def command(name: str) -> Any:
    context = typer.main.get_command(app).make_context("trionat", [name], resilient_parsing=True)
    inner: Any = context.command.get_command(context, name)  # type: ignore[attr-defined]
    return inner.make_context(name, [], parent=context, resilient_parsing=True)


@pytest.mark.parametrize("name", TOPICS)
def test_each_flag_has_one_topic(name: str) -> None:
    context = command(name)
    flags = {
        opt
        for parameter in context.command.params
        if parameter.param_type_name == "option"
        for opt in parameter.opts
    }
    members = [member for topic in TOPICS[name].values() for member in topic]
    assert len(members) == len(set(members))
    assert set(members) <= flags
    for parameter in context.command.params:
        if parameter.param_type_name == "option":
            assert topic_of(name, parameter.opts) in TOPICS[name], parameter.opts


@pytest.mark.parametrize("name", TOPICS)
def test_topics_and_examples_are_shown(name: str) -> None:
    shown = trionat(name, "--help").stdout
    places = [shown.index(f"\n{topic}:\n") for topic in TOPICS[name]]
    assert places == sorted(places)
    for line, meaning in EXAMPLES[name]:
        assert f"  {line}\n      {meaning}\n" in shown


@pytest.mark.parametrize("words", [("serve",), ("user", "add"), ("service",)], ids=" ".join)
def test_help_is_that_of_the_command(words: tuple[str, ...]) -> None:
    assert trionat("help", *words).stdout == trionat(*words, "--help").stdout


def test_help_without_a_command_lists_all() -> None:
    assert trionat("help").stdout == trionat("--help").stdout


@pytest.mark.parametrize("group", ["", "user", "token", "service", "state"])
def test_each_command_has_its_whole_first_sentence(group: str) -> None:
    _, listed = trionat("help", *group.split()).stdout.split("Commands:\n")
    assert "..." not in listed
    if not group:
        assert len(listed.splitlines()) == len(COMMANDS), "one does not fit into its line"


def test_help_shows_no_type_of_python() -> None:
    assert "list[" not in trionat("help", "connect").stdout
    assert "<str>" not in trionat("help", "user", "add").stdout


def test_help_for_what_is_not_there() -> None:
    result = trionat("help", "user", "nope")
    assert result.returncode == 2
    assert "there is no command 'user nope': trionat help lists all" in result.stderr


def test_the_version_in_short() -> None:
    assert trionat("-V").stdout == trionat("--version").stdout


def test_the_manual_page_is_of_today() -> None:
    """`trionat help --man > man/trionat.1` makes it anew. How arguments and values are written (`PATH`, `<path>`) is Typer's affair, and changes with it."""
    made = trionat("help", "--man").stdout
    assert without_usage(made) == without_usage(MANUAL.read_text(encoding="utf-8"))


def without_usage(page: str) -> list[str]:
    lines = [line for line in page.splitlines() if not line.startswith(".SS")]
    flags = re.compile(r"\.B \\-.*")
    return [
        " ".join(re.findall(r"\\-[^ ,]*", line)) if flags.fullmatch(line) else line
        for line in lines
    ]


def test_a_formatter_understands_the_manual_page() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed (Debian: groff-base)")
    result = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-K", "utf8", str(MANUAL)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stderr
    shown = re.sub("\x1b\\[[0-9;]*m|.\x08", "", result.stdout)
    assert "--public-addr HOST[:PORT]" in " ".join(shown.split())


def test_a_line_that_begins_with_a_dot_is_no_request() -> None:
    context = typer.main.get_command(app).make_context("trionat", ["help"], resilient_parsing=True)
    lines = manual(context).splitlines()
    known = {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".br"}
    assert {line.split()[0] for line in lines if line.startswith((".", "'"))} <= known


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (("service", "in"), "install"),
        (("serve", "--console-a"), "--console-addr"),
        (("user", "ad"), "add"),
        (("help", "us"), "user"),
        (("help", "user", "ad"), "add"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_bash_completes(typed: tuple[str, ...], found: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    program = tmp_path / "trionat"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'trionat'\nfrom trionat.cli import main\nmain()\n"
    )
    program.chmod(0o755)
    script = trionat("completion", "bash").stdout
    words = " ".join(typed)
    typing = f"""
        {script}
        COMP_WORDS=(trionat {words}); COMP_CWORD={len(typed)}
        _trionat_completion trionat
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [bash, "-c", typing],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert found in result.stdout.split(), result.stderr


def test_another_shell_is_told_which_there_are() -> None:
    result = trionat("completion", "csh")
    assert result.returncode == 2
    assert result.stderr.endswith("'csh' is not one of 'bash', 'zsh', 'fish', 'powershell'.\n")
    assert "Value error" not in result.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish", "powershell"])
def test_a_script_for_each_shell(shell: str) -> None:
    script = trionat("completion", shell).stdout
    assert "trionat" in script
    assert "_TRIONAT_COMPLETE" in script
    program = shutil.which(shell)
    if program is not None and shell in {"zsh", "fish"}:
        subprocess.run([program, "-n"], input=script, text=True, check=True)
