"""The site of the pages: what can be checked without building it, which `nox -s docs` does."""

from __future__ import annotations

import posixpath
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from tests.pages import PAGES, ROOT
from tests.unit.test_docs import anchors
from tools.site import foreign, indent_by_four, navigation, places, rewrite, slug

if TYPE_CHECKING:
    from pathlib import Path

PLACES = places()
LISTED = navigation((ROOT / "docs/README.md").read_text(encoding="utf-8"))


def links(name: str) -> set[str]:
    """Return which files a page links to."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    return {posixpath.normpath(posixpath.join(posixpath.dirname(name), each)) for each in found}


def test_every_page_is_listed_once() -> None:
    """A new page comes into docs/README.md, which is the site's navigation."""
    pages = [page for section in LISTED.values() for page in section.values()]
    assert sorted([*pages, "README.md", "docs/README.md"]) == sorted(PAGES)
    assert [*LISTED] == ["Start", "Publish", "Operate", "Reference", "Understand", "中文"]


def test_every_page_is_two_clicks_from_the_readme() -> None:
    near = links("README.md")
    within = near.union(*(links(page) for page in near if page.endswith(".md")))
    assert [page for page in PAGES if page not in within | {"README.md"}] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_what_is_on_the_site(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    here = posixpath.dirname(PLACES[name])
    sources = {place: source for source, place in PLACES.items()}
    prose = re.sub(r"```.*?```|`[^`]+`", "", rewrite(text, name), flags=re.DOTALL)
    found = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)]*))?\)", prose)
    assert found or "](" not in text
    for target, anchor in found:
        place = posixpath.normpath(posixpath.join(here, target)) if target else PLACES[name]
        assert place in sources, target
        if anchor:
            assert anchor in anchors((ROOT / sources[place]).read_text(encoding="utf-8")), anchor


def test_a_file_that_is_not_on_the_site_is_named_only() -> None:
    text = "See [the `parser`](../src/trionat/text.py#L3), [it](../README.md#the-idea), `[x](y)`.\n"
    told = rewrite(text, "docs/api.md")
    assert told == "See the `parser`, [it](index.md#the-idea), `[x](y)`.\n"
    shown = rewrite(text, "docs/api.md", "https://example.org/tree/")
    assert "[the `parser`](https://example.org/tree/src/trionat/text.py#L3)" in shown
    wrong = "[x](nowhere.md)"
    assert rewrite(wrong, "docs/api.md") == wrong  # mkdocs says so


def test_anchors_are_those_of_github() -> None:
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        assert {slug(heading) for heading in headings} == anchors(text)


def test_lists_are_indented_as_python_markdown_wants_it() -> None:
    page = "Text:\n- one\n  goes on\n  - below\n\n1. first\n\n   ```sh\n   - no item\n   ```\n2. second\n\nEnd\n"
    assert indent_by_four(page) == (
        "Text:\n\n- one\n    goes on\n    - below\n\n1. first\n\n    ```sh\n    - no item\n    ```\n\n2. second\n\nEnd\n"
    )


def test_what_a_page_would_fetch_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(
        '<link rel="canonical" href="https://example.org/"><a href="https://example.org"><img src="a.png">'
    )
    (tmp_path / "good.css").write_text(
        "@import 'b.css'; a { background: url(data:image/png;base64,//) }"
    )
    assert foreign(tmp_path) == []
    for number, text in enumerate(
        (
            '<script src="https://cdn.example/x.js"></script>',
            "<link rel=stylesheet href=//fonts.example/css>",
            '<p style="background: url(https://example.org/x)">',
            "<style>@font-face { src: url(//fonts.example/a.woff2) }</style>",
            '<img srcset="https://example.org/a.png 2x">',
        )
    ):
        (tmp_path / f"bad{number}.html").write_text(text)
    (tmp_path / "bad.css").write_text('@import "https://fonts.example/css";')
    assert len(foreign(tmp_path)) == 6


def test_the_picture_of_the_idea() -> None:
    path = ROOT / "docs/images/idea.svg"
    text = path.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    named = "{http://www.w3.org/2000/svg}"
    described = {
        each.get("id")
        for each in (root.find(f"{named}title"), root.find(f"{named}desc"))
        if each is not None
    }
    assert described == set(str(root.get("aria-labelledby")).split())
    assert path.stat().st_size < 8192
    assert "prefers-color-scheme: dark" in text
    light, dark = text.split("@media")
    colours = [set(re.findall(r"\.(\w+) \{", part)) for part in (light, dark)]
    assert colours[0] - colours[1] == {"mono"}, "a class has no colour in the dark"
    assert not re.search(r"(?:href|src|url\()", text)
    for page in ("README.md", "README.zh-CN.md"):
        assert "](docs/images/idea.svg)" in (ROOT / page).read_text(encoding="utf-8")
