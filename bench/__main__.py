"""The command line: `python -m bench`."""

from __future__ import annotations

import argparse
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

import attrs
import trio

from bench import machine, plots
from bench.report import Report
from bench.scenarios import QUICK, SCENARIOS, Effort
from bench.suite import CHAINS, run_suite
from bench.targets import TARGETS


def main() -> int:
    """Measure and report. Exit with 1 if a measurement failed; what is not installed is no failure."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description="Measure trionat.")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, one round: shows that it works"
    )
    parser.add_argument("--rounds", type=int, help="how many rounds, instead of three")
    parser.add_argument(
        *("--scenario", "-s"),
        choices=[scenario.name for scenario in SCENARIOS],
        action="append",
        help="only this one; may be given several times",
    )
    parser.add_argument(
        *("--chain", "-c"),
        choices=[chain.name for chain in CHAINS],
        action="append",
        help="only this one; may be given several times",
    )
    parser.add_argument(
        "--output", type=Path, help="the folder of the page: docs, or build for a part or --quick"
    )
    options = parser.parse_args()

    whole = not (options.quick or options.scenario or options.chain)
    output: Path = options.output or Path("docs" if whole else "build")
    effort = QUICK if options.quick else Effort()
    if options.rounds:
        effort = attrs.evolve(effort, rounds=options.rounds)
    chains = [chain for chain in CHAINS if chain.name in (options.chain or [chain.name])]
    scenarios = [s for s in SCENARIOS if s.name in (options.scenario or [s.name])]

    # A thousand visitors take more than the usual soft limit, here and in all programs that are started.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    facts = machine.describe()
    results = trio.run(run_suite, chains, scenarios, effort)
    report = Report(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        effort=effort,
        facts=facts,
        versions=trio.run(machine.versions),
        chains=chains,
        scenarios=scenarios,
        targets=TARGETS,
        results=results,
    )
    report.write(output)
    plots.draw(report, output)
    print(f"written: {output / 'benchmarks.md'}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
