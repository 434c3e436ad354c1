"""Draws the picture of docs/screen.md: `python -m tests.screen_picture`."""

from __future__ import annotations

import re
import time
from pathlib import Path

from rich.console import Group

from trionat.cli.screen.client_page import ClientView, ServiceRow, VisitorRow, client_parts
from trionat.cli.screen.page import new_console

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "screen.svg"
COLUMNS, LINES = 80, 18


def main() -> None:
    view = ClientView(
        state="connected",
        style="green",
        since=time.monotonic() - 4711,
        services=(
            ServiceRow("https://shop.tunnel.example.com", "127.0.0.1:8080"),
            ServiceRow("tunnel.example.com:60022", "127.0.0.1:22"),
        ),
        server="tunnel.example.com:50000, round trip 23 ms, encrypted, logged in as ann",
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
    PICTURE.write_text(svg.replace("Fira Code", "Fira Code,Menlo,Consolas"))


if __name__ == "__main__":
    main()
