"""The example file and the documentation say what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trionat.config.key import Key, keys_of
from trionat.config.load import load
from trionat.config.sections import KEYS, SECTIONS

ROOT = Path(__file__).parents[3]
EXAMPLE = (ROOT / "config.example.yml").read_text(encoding="utf-8")
EVERYTHING = re.sub(r"^( *)#(?=\w+:)", r"\1", EXAMPLE, flags=re.MULTILINE)
"""The example with every key that has no default uncommented: `#Key:` is such a key, `# words` are a comment."""


def flag(key: Key) -> str:
    names = [f"-{key.letter}"] if key.letter else []
    return " ".join(f"`{name}`" for name in (*names, key.flag, *key.aliases) if name) or "none"


def table(section: str) -> str:
    lines = [
        "| key | default | value | flag | environment | after a reload | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = keys_of(SECTIONS[section])
    listed = keys[0].item if not keys[0].name else None  # the section is a list
    for key in keys if listed is None else keys_of(listed):
        effect = (key if listed is None else keys[0]).effect
        default = "required" if key.required else key.write(key.default)
        names = () if listed is not None else key.environment
        environment = " ".join(f"`{name}`" for name in names) or "none"
        cells = (
            f"`{key.name}`",
            default,
            key.kind.words,
            flag(key),
            environment,
            effect.value,
            key.meaning,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_documentation_has_the_table(section: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"## {section}\n" in text
    assert table(section) in text


def test_the_example_holds_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "example.yml"
    file.write_text(EXAMPLE, encoding="utf-8")
    written = load("server", file=file, environ={})
    file.write_text("", encoding="utf-8")
    default = load("server", file=file, environ={})
    assert (written.server, written.client, written.auth) == (
        default.server,
        default.client,
        default.auth,
    )
    assert written.database is None
    assert written.cluster is None
    live = {path for path, origin in written.origins.items() if origin != "default"}
    assert live == {
        path
        for path, key in KEYS.items()
        if key.section not in ("Database", "Cluster") and key.default not in (None, (), "")
    }


def test_the_example_holds_the_defaults_of_the_sections_that_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "example.yml"
    file.write_text(EVERYTHING, encoding="utf-8")
    loaded = load("server", file=file, environ={})
    for section in ("Database", "Cluster"):
        values = getattr(loaded, section.lower())
        for key in keys_of(SECTIONS[section]):
            if key.default not in (None, ""):
                assert getattr(values, key.field) == key.default


def test_the_example_with_everything_loads_and_has_every_key(tmp_path: Path) -> None:
    file = tmp_path / "example.yml"
    file.write_text(EVERYTHING, encoding="utf-8")
    loaded = load("server", file=file, environ={})
    assert [path for path, origin in loaded.origins.items() if origin == "default"] == []


def test_the_node_of_the_cluster_is_what_was_meant() -> None:
    loaded = load("server", file=ROOT / "examples/cluster/server.yml", environ={})
    assert loaded.warnings == ()
    assert loaded.server.proxy_visit_addr != loaded.server.proxy_control_addr


@pytest.mark.parametrize("path", KEYS)
def test_every_key_of_the_example_is_explained_in_the_same_words(path: str) -> None:
    key = KEYS[path]
    section = EVERYTHING.split(f"\n{key.section}:", 1)[1].split("\n\n")[0]
    if key.name:
        (line,) = re.findall(rf"^  {key.name}: .*$", section, flags=re.MULTILINE)
    else:
        line = section.split("\n")[0]
    assert line.endswith(f"  # {key.help}")
