"""The command line: `python -m bench`."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from bench import machine, plots
from bench.report import Report
from bench.results import Results
from bench.scenarios import QUICK, SCENARIOS, Effort
from bench.suite import ASKED_FOR, CHAINS, run_suite
from bench.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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
        choices=[chain.name for chain in (*CHAINS, *ASKED_FOR)],
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
    named = [chain for chain in (*CHAINS, *ASKED_FOR) if chain.name in (options.chain or ())]
    chains = named or list(CHAINS)
    scenarios = [s for s in SCENARIOS if s.name in (options.scenario or [s.name])]

    # A thousand visitors take more than the usual soft limit, here and in all programs that are started.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    facts = machine.describe()
    results = Results()
    if not trio.run(_run_until_signalled, partial(run_suite, chains, scenarios, effort, results)):
        return 130
    report = Report(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        effort=effort,
        facts=facts,
        versions=trio.run(machine.versions),
        chains=chains,
        scenarios=scenarios,
        targets=[target for target in TARGETS if target.chain in chains],
        results=results,
    )
    report.write(output)
    plots.draw(report, output)
    print(f"written: {output / 'benchmarks.md'}")
    return 1 if results.failures else 0


async def _run_until_signalled(run: Callable[[], Awaitable[None]]) -> bool:
    """Run to the end and return True, or False after Ctrl-C or SIGTERM; all that was started is stopped in either case."""
    done = False
    async with trio.open_nursery() as nursery:

        async def watch_signals() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel("told to stop")

        nursery.start_soon(watch_signals)
        await run()
        done = True
        nursery.cancel_scope.cancel("done")
    return done


if __name__ == "__main__":
    sys.exit(main())
