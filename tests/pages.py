"""What stands in the pages: their blocks, the lines in them that are typed, and the calls of trionat in those.

A block of commands has the language `sh`, or lines behind a prompt (`$ `, `host$ `, or `# ` for root), or begins with one of `PROGRAMS`. What
stands in a comment right above it, `<!-- not run: because -->`, says why no test runs it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (
    "README.md",
    "README.zh-CN.md",
    "CHANGELOG.md",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("docs", "examples")
        for path in sorted((ROOT / folder).rglob("*.md"))
    ),
)
ENGLISH: Final = tuple(page for page in PAGES if "zh-CN" not in page)
"""Those whose commands are run: `test_docs_in_chinese.py` sees to it that the others have the same ones."""

ELSEWHERE: Final = {
    "docs/cluster.md": "tests/soak/page.py",
    "docs/containers.md": "tests/containers/test_compose.py",
    "docs/install.md": "tests/e2e/test_distribution.py",
    "docs/names.md": "tests/e2e/test_names_page.py",
}
"""Pages that have a test of their own, on several machines or with other programs; all others are followed by `tests/e2e/test_pages.py`."""

PROGRAMS: Final = (
    *("chmod", "chown", "cp", "curl", "docker", "echo", "export", "git", "install", "journalctl"),
    *(
        "mysqldump",
        "nginx",
        "nox",
        "openssl",
        "pip",
        "pipx",
        "promtool",
        "python",
        "python3",
        "redis-cli",
    ),
    *("scp", "sed", "ssh", "sysctl", "systemctl", "tar", "trionat", "uv", "uvx"),
)

_BLOCK: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE
)
_MARK: Final = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
_OPERATOR: Final = re.compile(r"[();|&]+")
_REDIRECTION: Final = re.compile(r"[<>&]*[<>][<>&]*")


@attrs.frozen
class Block:
    """A block of a page, without its indentation; `section` is the heading of the second order above it."""

    page: str
    line: int
    section: str
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def prompt(self) -> str | None:
        """What stands before what is typed, as a pattern."""
        as_root = rf"# (?=(?:/\S+/)?(?:{'|'.join(PROGRAMS)})\b)"
        for pattern in (r"\w*\$ ", as_root):
            if re.search(f"^{pattern}", self.text, re.MULTILINE):
                return pattern
        return None

    @property
    def lines(self) -> list[str]:
        """Its lines, each with those in which it goes on."""
        return [line for line in re.sub(r"\\\n\s*", "", self.text).splitlines() if line.strip()]

    @property
    def typed(self) -> tuple[str, ...]:
        """The lines that are typed, without the prompt."""
        if (prompt := self.prompt) is not None:
            return tuple(
                re.sub(prompt, "", each, count=1) for each in self.lines if re.match(prompt, each)
            )
        begins = re.match(rf"(?:[A-Z_]+=\S+ )*(?:~/\S+/)?(?:{'|'.join(PROGRAMS)})\s", self.text)
        if self.language != "sh" and (self.language or not begins):
            return ()
        return tuple(line for line in self.lines if not line.startswith("#"))

    @property
    def shown(self) -> tuple[str, ...]:
        """The lines that are not typed, in a block with a prompt."""
        if (prompt := self.prompt) is None:
            return ()
        return tuple(line for line in self.lines if not re.match(prompt, line))


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, by its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        above = text[: match.start()]
        headings = re.findall(r"^## (.+)$", above, re.MULTILINE)
        mark = _MARK.search(above)
        found.append(
            Block(
                page=page,
                line=above.count("\n") + 1,
                section=headings[-1] if headings else "",
                language=match["language"],
                text=re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
                not_run=mark and " ".join(mark[1].split()),
            )
        )
    return found


def inline_calls(page: str) -> list[str]:
    """Return what a page's prose has as calls of trionat."""
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(?<!`)`((?:[A-Z_]+=\S+ |sudo -u \S+ )*(?:/\S+/)?trionat\s[^`]*)`", prose)
    return [" ".join(each.replace("\\|", "|").split()) for each in found]


def without_comment(line: str) -> str:
    """Return a typed line without what it says to people."""
    return re.sub(r"\s+# .*$", "", line)


def calls(line: str) -> list[list[str]]:
    """Return the arguments of each call of trionat in a line of a shell."""
    lexer = shlex.shlex(without_comment(line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[list[str]] = []
    simple: list[str] = []
    for word in [*lexer, ";"]:
        if not _OPERATOR.fullmatch(word):
            simple.append(word)
            continue
        if (arguments := _arguments(simple)) is not None:
            found.append(arguments)
        simple = []
    return found


def _arguments(words: list[str]) -> list[str] | None:
    """Return what trionat gets of a simple command; None: it is another program."""
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        if _REDIRECTION.fullmatch(word):
            next(rest, None)
        else:
            plain.append(word)
    while plain and re.match(r"[A-Z_]+=", plain[0]):
        del plain[0]
    for prefix in (
        r"sudo -u \S+ ",
        r"docker exec \S+ ",
        r"docker compose exec (?:-T )?\S+ ",
        r"docker compose run --rm (?:-T )?(?=node\d )",
        r"uvx (?:--from \S+ )?",
    ):
        joined = "\0".join(plain) + "\0"
        if found := re.match(prefix.replace(" ", "\0").replace(r"\S", r"[^\0]"), joined):
            plain = joined[found.end() :].split("\0")[:-1]
            break
    if plain and (plain[0].rpartition("/")[2] == "trionat" or re.fullmatch(r"node\d", plain[0])):
        return plain[1:]
    return None
