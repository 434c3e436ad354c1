"""The arguments of `trionat connect`: what is a ticket is understood wherever it stands, and never shown."""

from __future__ import annotations

import pytest

from trionat.cli.connect import _split
from trionat.errors import ConfigError, Problem

TICKET = "tn1_AR9H-XVDa5JzSecretSecret"


@pytest.mark.parametrize(
    ("arguments", "services"),
    [
        ([TICKET, "8080"], ["8080"]),
        (["8080", TICKET], ["8080"]),
        ([TICKET], []),
        (["a", TICKET, "b"], ["a", "b"]),
    ],
)
def test_a_ticket_anywhere(arguments: list[str], services: list[str]) -> None:
    assert _split(arguments) == (TICKET, services)


@pytest.mark.parametrize("service", ["8080", "tn:8080", "tunnel_1:80", "/run/tn1_x.sock"])
def test_what_is_no_ticket(service: str) -> None:
    assert _split([service]) == (None, [service])


def test_two_tickets_are_not_shown() -> None:
    with pytest.raises(ConfigError, match="2 tickets") as caught:
        _split([TICKET, "tn2_other", "8080"])
    assert "Secret" not in str(caught.value)


def test_no_message_shows_a_ticket() -> None:
    told = str(ConfigError(Problem("argument SERVICE", f"{TICKET!r} is no address")))
    assert told == "argument SERVICE: 'tn1_********' is no address"
