"""What `trionat connect` makes of its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from trionat.cli import app
from trionat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

TICKET = "tn1_c2VjcmV0"
OTHER = "tn2_c2VjcmV0"


def connect(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["connect", *arguments], env=env, catch_exceptions=False)
    assert "c2VjcmV0" not in result.output
    return result.exit_code, result.stderr


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments", [(TICKET, "8080"), ("8080", TICKET), ("8080", f" {TICKET}\n", "8081")]
)
def test_a_ticket_is_one_wherever_it_stands(arguments: tuple[str, ...]) -> None:
    told = "trionat: ticket: the ticket is damaged: copy it again, whole\n"
    assert connect(*arguments) == (2, told)


def test_two_tickets_are_a_mistake_and_neither_is_shown() -> None:
    told = "trionat: argument TICKET: there are 2 tickets: give one, and start one client for each server\n"
    assert connect(TICKET, "8080", OTHER) == (2, told)


@pytest.mark.parametrize("service", [f"{TICKET}:22", f"127.0.0.1:{TICKET}", f"/x:{TICKET}:y"])
def test_what_looks_like_a_ticket_in_a_wrong_place_is_not_shown(service: str) -> None:
    code, told = connect("--once", "--controller-addr", "127.0.0.1:1", "8080", "--local-server-addr", f"({service}", env={"TRIONAT_CLIENT_PROXY_PROTOCOL": TICKET})  # fmt: skip
    assert code == 2
    assert "tn1_********" in told


def test_a_problem_shows_no_ticket_in_any_part() -> None:
    problem = Problem(f"flag {TICKET}", f"{OTHER!r} is wrong", f"Client.{TICKET}", 7)
    shown = "flag tn1_********:7: Client.tn1_********: 'tn2_********' is wrong"
    assert str(problem) == shown
    assert str(ConfigError(problem)) == shown
