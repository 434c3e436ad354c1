"""Fuzz for minutes: `python -m tests.fuzz [--minutes M] [TARGET ...]`, as `nox -s fuzz` does.

Decoders are fuzzed by atheris, which follows coverage; what it learns is kept in `.hypothesis/corpus`. Tunnels and sessions take
structured input, so they are run by hypothesis, which can shrink what it finds, with one seed after another. Every target gets the same
share of the time. The first finding ends it: hypothesis keeps its example, so that the next run of pytest shows it again, and atheris
leaves a file, for `python -m tests.fuzz.guided TARGET FILE`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import pytest_trio.plugin  # noqa: F401 - makes Trio's scheduler repeat itself under hypothesis

from tests.fuzz.decoders import DECODERS
from tests.fuzz.streams import SAMPLES
from tests.fuzz.test_client_sessions import test_a_rogue_server_costs_its_own_session_at_most
from tests.fuzz.test_raw_machine import test_ends_hear_each_other
from tests.fuzz.test_resume_machine import test_every_byte_arrives_once_whatever_is_cut
from tests.fuzz.test_server_sessions import test_a_rogue_harms_nobody_else
from tests.fuzz.test_tunnel_machine import test_both_sides_keep_the_law_and_lose_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS: Final = Path(".hypothesis/corpus")

PROPERTIES: Final[dict[str, Callable[[], None]]] = {
    "tunnels": test_both_sides_keep_the_law_and_lose_nothing,
    "resumed-streams": test_every_byte_arrives_once_whatever_is_cut,
    "raw-tunnels": test_ends_hear_each_other,
    "servers": test_a_rogue_harms_nobody_else,
    "clients": test_a_rogue_server_costs_its_own_session_at_most,
}


def follow_coverage(name: str, seconds: float) -> None:
    """Fuzz a decoder in a process of its own, since atheris ends its process."""
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(SAMPLES):
        # The first byte says how the rest is cut.
        (corpus / f"sample-{number}").write_bytes(b"\x03" + sample)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-artifact_prefix={corpus}-",
        "-max_len=8192",
    ]
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *options, str(corpus)]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{name}: see above; the input is in {CORPUS}")


def try_seeds(name: str, seconds: float) -> None:
    """Run a property again and again."""
    test: Any = PROPERTIES[name]
    deadline = time.monotonic() + seconds
    number = first = random.SystemRandom().randrange(2**32)
    while time.monotonic() < deadline:
        print(f"{name}: seed {number}", flush=True)
        hypothesis.seed(number)(test)()
        number += 1
    print(f"{name}: {number - first} seeds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=5.0)
    names = [*DECODERS, *PROPERTIES]
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=", ".join(names), default=names
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    seconds = arguments.minutes * 60 / len(arguments.targets)
    for name in arguments.targets:
        (follow_coverage if name in DECODERS else try_seeds)(name, seconds)


main()
