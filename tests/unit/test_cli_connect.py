"""What `trionat connect` makes of its arguments, and that nothing it says about them shows a ticket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from trionat.cli import app
from trionat.cli.connect import read_arguments, split_arguments
from trionat.errors import ConfigError, Problem
from trionat.protocol.ticket import TOKEN_BYTES, Ticket

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(
    host="example.com", port=8007, fingerprint=bytes(32), username="alice", token=b"t" * TOKEN_BYTES
).encode()
SECRETS = [TICKET[start : start + 12] for start in range(4, len(TICKET) - 12)]
"""Every piece of the ticket that is long enough to be no accident."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "services"),
    [
        ([TICKET], []),
        ([TICKET, "8080", "22"], ["8080", "22"]),
        (["8080", TICKET, "22"], ["8080", "22"]),
        (["8080", "22", TICKET], ["8080", "22"]),
        (["8080", TICKET[:50], TICKET[50:90], TICKET[90:], "22"], ["8080", "22"]),
    ],
)
def test_the_ticket_may_stand_anywhere(arguments: list[str], services: list[str]) -> None:
    ticket, others = split_arguments(arguments)
    assert ticket == TICKET
    assert others == services


def test_a_ticket_keeps_what_its_paste_had_around_it() -> None:
    ticket, services = split_arguments(["8080", f"\ufeff{TICKET[:50]}\r\n  {TICKET[50:]}\r"])
    assert ticket is not None
    assert Ticket.decode(ticket).encode() == TICKET
    assert services == ["8080"]


@pytest.mark.parametrize("around", ['""', "<>"])
def test_a_ticket_in_quotes_is_one(around: str) -> None:
    """A shell leaves them where a file of variables or a page had them twice."""
    cut = [f"{around[0]}{TICKET[:50]}", f"{TICKET[50:]}{around[1]}"]
    for arguments in (["8080", "".join(cut)], [*cut, "8080"]):
        ticket, services = split_arguments(arguments)
        assert ticket is not None
        assert Ticket.decode(ticket).encode() == TICKET
        assert services == ["8080"]


@pytest.mark.parametrize("arguments", [[TICKET, "8080"], ["8080", f"<{TICKET}>"], ["user", TICKET]])
def test_a_ticket_in_place_of_a_command_is_explained(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: did you mean `trionat connect TICKET SERVICE`?\n")


def test_without_a_ticket_all_are_services() -> None:
    assert split_arguments(["8080", "/run/tn1_x.sock"]) == (None, ["8080", "/run/tn1_x.sock"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            [TICKET, "8080", TICKET],
            "there are 2 tickets: give one, and start one client for each server",
        ),
        (["8080", TICKET[:-5]], "the ticket is damaged: copy it again, whole"),
        ([TICKET[:50], TICKET[50:-5], "8080"], "the ticket is damaged: copy it again, whole"),
        (
            ["tn4_abcdefghijklmnop", "8080"],
            "the ticket was made by a newer trionat: update this one",
        ),
    ],
)
def test_a_wrong_ticket_is_told_and_not_shown(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_arguments(arguments)
    where = "argument TICKET" if "2 tickets" in reason else "ticket"
    assert str(caught.value) == f"{where}: {reason}"


@pytest.mark.parametrize("command", ["connect", "doctor"])
def test_a_mistyped_ticket_is_told_as_one(command: str) -> None:
    result = CliRunner().invoke(app, [command, "nonsense", "8080"])
    assert result.exit_code == 2
    assert "'nonsense' is not a valid address: write HOST:PORT" in result.stderr
    assert result.stderr.endswith("; a ticket begins with tn1_, tn2_ or tn3_\n")


def test_one_that_lost_its_first_letters_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        read_arguments([TICKET[4:], "8080"])
    reason = (
        "the first word is neither a service nor a ticket; a ticket begins with tn1_, tn2_ or tn3_"
    )
    assert str(caught.value) == f"argument SERVICE: {reason}"


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["connect", TICKET[1:], "8080"], {}),
        (["connect", "8080", f"x{TICKET}"], {}),
        (["connect", "8080", "-c", TICKET], {}),
        (["connect", "8080", "--ticket-file", TICKET], {}),
        (["connect", "8080", "--config", TICKET], {}),
        (["connect", "8080"], {"TRIONAT_CLIENT_CONTROLLER_ADDR": TICKET}),
        (["connect"], {"TRIONAT_CLIENT_SERVICES": f"8080,{TICKET}"}),
        (["connect", "8080"], {"TRIONAT_TICKET": TICKET[:-5]}),
        (["connect", "8080", "--no-such", TICKET], {}),
        (["connect", "8080", f"--{TICKET}"], {}),
        ([TICKET, "8080"], {}),
        (["serve", TICKET], {}),
        (["config", "check", TICKET], {}),
        (["config", "show", "--role", TICKET], {}),
        (["user", TICKET], {}),
        (["user", "ticket", TICKET], {}),
        (["user", "expire", "alice", TICKET], {}),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_no_complaint_shows_a_ticket(
    arguments: list[str], environ: dict[str, str], tmp_path: Path
) -> None:
    environ = {"TRIONAT_STATE_DIR": str(tmp_path / "state"), **environ}
    result = CliRunner().invoke(app, arguments, env=environ, terminal_width=400)
    assert result.exit_code in (2, 3)
    assert result.stderr
    assert [piece for piece in SECRETS if piece in result.output] == []


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["-P", "hunter2\udcff"], {}),
        ([], {"TRIONAT_AUTH_PASSWORD": "hunter2\udcff"}),
        (["-c", "https://alice:hunter2@example.com:8007"], {}),
    ],
)
def test_no_complaint_shows_a_password(arguments: list[str], environ: dict[str, str]) -> None:
    result = CliRunner().invoke(app, ["connect", "-u", "alice", "8080", *arguments], env=environ)
    assert result.exit_code == 2
    assert "hunter2" not in result.output


def test_more_services_than_one_message_carries_are_no_reason_to_try_for_ever() -> None:
    ports = [str(port) for port in range(10_000, 10_800)]
    result = CliRunner().invoke(app, ["connect", TICKET, *ports, "--identity", "x", "--once"])
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "trionat: configuration: Client.Services: to ask for 800 services takes "
    )


def test_a_problem_shows_no_ticket_in_any_part() -> None:
    problem = Problem("flag tn1_c2VjcmV0", "'tn2_c2VjcmV0' is wrong", "Client.tn1_c2VjcmV0", 7)
    shown = "flag tn1_********:7: Client.tn1_********: 'tn2_********' is wrong"
    assert str(problem) == shown
    assert str(ConfigError(problem)) == shown
