"""Draws the pictures of docs/screen.md and README.zh-CN.md: `python -m tests.screen_picture`."""

from __future__ import annotations

import html
import itertools
import re
import time
from pathlib import Path

from rich.cells import cell_len
from rich.console import Group

from trionat.cli.screen.client_page import ClientView, ServiceRow, VisitorRow, client_parts
from trionat.cli.screen.language import Language, language_of
from trionat.cli.screen.page import new_console

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PICTURES = {"screen.svg": "C.UTF-8", "screen.zh-CN.svg": "zh_CN.UTF-8"}
COLUMNS, LINES = 80, 18
WIDE = 2
CELL = 12.2
"""How wide a character is in rich's pictures."""


def draw(say: Language) -> str:
    server = (
        "tunnel.example.com:50000",
        say("round trip {milliseconds} ms", milliseconds=23),
        say("encrypted"),
        say("logged in as {user}", user="ann"),
    )
    view = ClientView(
        language=say,
        state=say("connected"),
        style="green",
        since=time.monotonic() - 4711,
        services=(
            ServiceRow("https://shop.tunnel.example.com", "127.0.0.1:8080"),
            ServiceRow("tunnel.example.com:60022", "127.0.0.1:22"),
        ),
        server=say(", ").join(server),
        visitors=(
            VisitorRow("198.51.100.7:51544", "127.0.0.1:8080", 3, 1200, 310_000, 940_000, False),
            VisitorRow("[2001:db8::12]:40112", "127.0.0.1:8080", 75, 0, 0, 48_200, False),
            VisitorRow("203.0.113.9:38230", "127.0.0.1:22", 2113, 95, 240, 3_200_000, False),
        ),
        present=3,
        events=(
            "12:03:40 info    visitor closed visitor=41 address=203.0.113.9:38112",
            "12:04:02 warning visitor refused visitor=44 reason='too many'",
        ),
    )
    console = new_console(COLUMNS, LINES, record=True)
    console.print(Group(*client_parts(view, COLUMNS, LINES)), no_wrap=True, crop=True)
    svg = console.export_svg(title="trionat connect", unique_id="screen")
    # Nothing is loaded from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    svg = re.sub(
        r'<text ([^>]*) x="([0-9.]+)"([^>]*) textLength="[0-9.]+"([^>]*)>([^<]*)</text>',
        by_width,
        svg,
    )
    return svg.replace("Fira Code", "Fira Code,Menlo,Consolas")


def by_width(text: re.Match[str]) -> str:
    """Return a text as rich has it, with a part of its own for each run of wide characters: rich takes them for narrow ones."""
    before, x, between, after, content = text.groups()
    if all(cell_len(character) < WIDE for character in content):
        return text[0]
    parts: list[str] = []
    at = float(x)
    for _, run in itertools.groupby(html.unescape(content), cell_len):
        part = "".join(run)
        length = cell_len(part) * CELL
        shown = html.escape(part).replace(" ", "&#160;").replace("\xa0", "&#160;")
        parts.append(
            f'<text {before} x="{at:g}"{between} textLength="{length:g}"{after}>{shown}</text>'
        )
        at += length
    return "".join(parts)


def main() -> None:
    for name, locale in PICTURES.items():
        (IMAGES / name).write_text(draw(language_of({"LANG": locale})))


if __name__ == "__main__":
    main()
