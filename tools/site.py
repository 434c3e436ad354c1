"""The hook of mkdocs.yml: makes one site of docs/ and of what its pages point at outside of it.

A page stays as it is read in a checkout, with links from file to file. Here each file of the site has its place, links are written
anew from place to place, and the navigation is what docs/README.md lists. What is not on the site, such as the source, is named
without a link, unless `extra: {repository: …}` in mkdocs.yml says where the repository shows its files. (`repo_url` would have each page ask that host for its stars.)

It imports mkdocs only while that runs, so that tests can ask for places and links without it.
"""

from __future__ import annotations

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]

OUTSIDE: Final = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh-CN/index.md",
    "CHANGELOG.md": "changelog.md",
    "docs/README.md": "pages.md",
    "examples/README.md": "examples/index.md",
    "examples/cluster/README.md": "examples/cluster/index.md",
}
"""Pages that are elsewhere on the site than in the repository, as the paths of both."""

BESIDE: Final = ("config.example.yml", "examples/**/*")
"""What pages show or point at, and what the site has under the same path."""

_CODE_OR_LINK: Final = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence) *$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
_ITEM: Final = re.compile(r" *(?:[-*]|\d+\.) +(?=\S)")
_FENCE: Final = re.compile(r" *(`{3,}|~{3,})")


def places() -> dict[str, str]:
    """Return all files of the site: the path in the repository, and that on the site."""
    found = dict(OUTSIDE)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            found.setdefault(name, name.removeprefix("docs/"))
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                found.setdefault(name, name)
    return found


def navigation(text: str) -> dict[str, dict[str, str]]:
    """Return what docs/README.md lists: the pages under each heading, as titles and paths in the repository."""
    sections = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return {
        heading: {
            title: posixpath.normpath(posixpath.join("docs", target))
            for title, target in re.findall(r"^- \[(.+?)\]\((.+?)\)", body, flags=re.MULTILINE)
        }
        for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


def slug(heading: str, separator: str = "-") -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def rewrite(text: str, source: str, repository: str | None = None) -> str:
    """Return a page with its links as they have to be on the site; what is not there is named without a link, or with one to the repository.

    Args:
        text: The page.
        source: Its path in the repository.
        repository: The address at which a path of the repository is shown, if there is one.
    """
    known = places()
    here = posixpath.dirname(known[source])

    def change(found: re.Match[str]) -> str:
        if found["code"]:
            # In a table GitHub wants a bar escaped, and Python-Markdown shows the backslash.
            return found[0] if found["fence"] else found[0].replace("\\|", "|")
        if re.match(r"[a-z]+:|#", found["target"]):
            return found[0]
        path, hash_, anchor = found["target"].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        for name in (target, f"{target}/README.md"):
            if name in known:
                link = posixpath.relpath(known[name], here or ".")
                return f"{found['image']}[{found['text']}]({link}{hash_}{anchor})"
        if not (ROOT / target).exists():
            return found[0]  # for mkdocs to say so
        if repository is not None:
            return f"[{found['text']}]({repository.rstrip('/')}/{target}{hash_}{anchor})"
        return found["text"]

    return _CODE_OR_LINK.sub(change, text)


def indent_by_four(text: str) -> str:
    """Return a page whose lists Python-Markdown reads as GitHub does: what belongs to an entry is four further in, and a blank line is before the first one."""
    lines: list[str] = []
    columns: list[int] = []  # where the text of each entry begins that holds this line
    fence = ""
    apart = True  # whether a blank line has come since the last entry began
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            lines.append("")
            apart = True
            continue
        if not fence:
            while columns and indent < columns[-1]:
                columns.pop()
        depth, column = len(columns), (columns[-1] if columns else 0)
        item = None if fence else _ITEM.match(line)
        if item and apart and lines and lines[-1]:
            lines.append("")
        lines.append("    " * depth + line[min(indent, column) :])
        if item:
            columns.append(item.end())
            apart = False
        if mark := _FENCE.match(line):
            fence = "" if fence and line.strip() == fence else fence or mark[1]
    return "\n".join(lines) + "\n"


class Loads(HTMLParser):
    """Collects what a page makes a browser fetch from elsewhere by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at what it has in attributes."""
        given = dict(attrs)
        names = ["src", "srcset", "poster", "data"]
        if tag == "link" and given.get("rel") != "canonical":
            names.append("href")
        for name in names:
            if re.match(r"\s*(?:[a-z]+:)?//", value := given.get(name) or ""):
                self.found.append(value)
        self.found += foreign_in_style(given.get("style") or "")

    def handle_data(self, data: str) -> None:
        """Look at what a style sheet inside of the page has."""
        if self.lasttag == "style":
            self.found += foreign_in_style(data)


def foreign_in_style(text: str) -> list[str]:
    """Return what a style sheet has a browser fetch from elsewhere."""
    return re.findall(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^)'\"\s]+)", text)


def foreign(folder: Path) -> list[str]:
    """Return what the pages of a built site fetch from elsewhere."""
    found: list[str] = []
    for path in sorted(folder.rglob("*.html")):
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        found += [f"{path}: {name}" for name in loads.found]
    for path in sorted(folder.rglob("*.css")):
        found += [f"{path}: {name}" for name in foreign_in_style(path.read_text(encoding="utf-8"))]
    return found


# --- what mkdocs calls ---


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the navigation from docs/README.md, with the README as the first page."""
    listed = navigation((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    known = places()
    sections = [
        {heading: [{title: known[path]} for title, path in pages.items()]}
        for heading, pages in listed.items()
    ]
    config.nav = [
        {"trionat": known["README.md"]},
        *sections,
        {"All pages": known["docs/README.md"]},
    ]
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Bring the files of the site to their places."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - see above

    docs = Path(config.docs_dir)
    for file in list(files):  # besides those there are those of the theme
        if file.abs_src_path is not None and Path(file.abs_src_path).is_relative_to(docs):
            files.remove(file)
    for source, place in places().items():
        file = File.generated(config, place, abs_src_path=str(ROOT / source))
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links, and indent its lists."""
    [source] = [path for path, place in places().items() if place == page.file.src_uri]
    return indent_by_four(rewrite(markdown, source, config.extra.get("repository")))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Say which pages are Chinese, for screen readers and line breaks."""
    if page.file.src_uri.startswith("zh-CN/"):
        return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1)
    return output


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that fetches anything from elsewhere."""
    from mkdocs.exceptions import PluginError  # noqa: PLC0415 - see above

    if found := foreign(Path(config.site_dir)):
        raise PluginError("the site fetches from elsewhere:\n" + "\n".join(found))
