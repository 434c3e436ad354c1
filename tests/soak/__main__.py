"""Endurance: `python -m tests.soak [--minutes M] [--visitors N] [--seed S] [--report FILE]`, as `nox -s soak` does.

Ends with 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Final

import trio

from tests.soak.report import report
from tests.soak.soak import Plan, soak

DESCRIPTORS_EACH: Final = 8
"""Descriptors that a visitor costs in this process: its own, the service's, and four of a proxy; and room."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--visitors", type=int, default=1000, help="how many at a time")
    parser.add_argument("--seed", type=int, help="of all chance but the machine's")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the report goes too")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 1000 + DESCRIPTORS_EACH * arguments.visitors
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            parser.error(f"{needed} descriptors are needed, and {hard} allowed (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    plan = Plan(seconds=arguments.minutes * 60, visitors=arguments.visitors, seed=seed)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="trionat-soak-") as folder:
        outcome = trio.run(soak, plan, Path(folder))
    text = report(outcome)
    print(text, end="", flush=True)
    if arguments.report is not None:
        arguments.report.write_text(text, encoding="utf-8")
    sys.exit(1 if outcome.book.faults else 0)


main()
