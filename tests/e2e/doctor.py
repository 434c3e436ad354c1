"""`trionat doctor` as a process, and what it has found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.e2e import services

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@attrs.frozen
class Seen:
    """What `--json` told."""

    code: int
    findings: list[dict[str, Any]]

    def of(self, check: str, verdict: str = "wrong") -> str:
        """Return what a check has told with that verdict, advice included; nothing where it has not."""
        return "\n".join(
            f"{finding['text']} -> {finding['advice']}"
            for finding in self.findings
            if (finding["check"], finding["verdict"]) == (check, verdict)
        )

    @property
    def wrong(self) -> set[str]:
        """Which checks have found something wrong."""
        return {each["check"] for each in self.findings if each["verdict"] == "wrong"}


async def examine(
    *arguments: object,
    cwd: Path,
    inside: Sequence[str] = (),
    environ: dict[str, str] | None = None,
) -> Seen:
    """Run `trionat doctor`; it says nothing but what it is asked for, and tells in its exit code whether something is wrong. `inside`: what runs it."""
    done = await trio.run_process(
        [*inside, *services.trionat_command("doctor", *map(str, arguments), "--json")],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=cwd,
        env=services.trionat_environ(**environ or {}),
    )
    assert done.stderr == b"", done.stderr.decode()
    seen = Seen(done.returncode, [json.loads(line) for line in done.stdout.splitlines()])
    assert seen.code == (6 if seen.wrong else 0)
    assert seen.findings
    assert all(each["advice"] for each in seen.findings if each["verdict"] == "warning")
    return seen
