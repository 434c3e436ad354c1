"""Endurance: `python -m tests.soak [--cluster] [--minutes M] [--visitors N] [--seed S] [--report FILE]`, as `nox -s soak` does.

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

from tests.soak.cluster import ClusterPlan, cluster_report, cluster_soak
from tests.soak.report import report
from tests.soak.soak import Plan, soak

DESCRIPTORS_EACH: Final = 8
"""Descriptors that a visitor costs in this process: its own, the service's, and four of a proxy; and room."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="three nodes with nginx, Redis and MariaDB, as docs/cluster.md sets them up; needs root, or user namespaces",
    )
    parser.add_argument(
        "--visitors", type=int, help="how many at a time; 1000, of a cluster 60 unless told"
    )
    parser.add_argument("--seed", type=int, help="of all chance but the machine's")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the report goes too")
    arguments = parser.parse_args()
    if arguments.visitors is None:
        arguments.visitors = 60 if arguments.cluster else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 1000 + DESCRIPTORS_EACH * arguments.visitors
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            parser.error(f"{needed} descriptors are needed, and {hard} allowed (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="trionat-soak-") as name:
        folder = Path(name)
        if arguments.cluster:
            nodes = ClusterPlan(seconds=seconds, visitors=arguments.visitors, seed=seed)
            outcome = trio.run(cluster_soak, nodes, folder)
            failed, text = bool(outcome.book.faults), cluster_report(outcome)
        else:
            plan = Plan(seconds=seconds, visitors=arguments.visitors, seed=seed)
            result = trio.run(soak, plan, folder)
            failed, text = bool(result.book.faults), report(result)
    print(text, end="", flush=True)
    if arguments.report is not None:
        arguments.report.write_text(text, encoding="utf-8")
    sys.exit(1 if failed else 0)


main()
