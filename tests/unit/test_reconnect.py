from __future__ import annotations

import pytest

from trionat.client.reconnect import Backoff, foremost, is_final
from trionat.errors import (
    ConnectionLostError,
    IdentityError,
    PeerError,
    RefusedError,
    SessionOverError,
)
from trionat.protocol.messages import CloseCode, RefusalCode

FINAL_REFUSALS = {
    "auth-failed",
    "account-expired",
    "port-not-offered",
    "name-not-offered",
    "too-many-services",
    "unsupported-version",
    "evicted",
    "kicked",
}
FINAL_ENDS = {"evicted", "kicked", "account-expired", "account-removed"}


def gives_up(problem: PeerError) -> bool:
    return is_final(problem, connected_before=True)


@pytest.mark.parametrize("code", [*RefusalCode, "of a newer server"])
def test_refusals_that_end_a_client(code: str) -> None:
    assert gives_up(RefusedError(code, "")) == (code in FINAL_REFUSALS)


@pytest.mark.parametrize("code", [*CloseCode, "of a newer server"])
def test_ends_that_end_a_client(code: str) -> None:
    assert gives_up(SessionOverError(code, "")) == (code in FINAL_ENDS)


def test_another_server_ends_a_client_only_at_first() -> None:
    assert is_final(IdentityError("x"), connected_before=False)
    assert not is_final(IdentityError("x"), connected_before=True)
    assert not is_final(ConnectionLostError("x"), connected_before=False)


def test_what_the_server_said_comes_before_the_loss_that_it_caused() -> None:
    lost, said = ConnectionLostError("lost"), SessionOverError("kicked", "")
    assert foremost([lost, said]) is said
    assert foremost([said, lost]) is said
    assert foremost([lost]) is lost


def test_the_wait_doubles_up_to_five_seconds_and_a_session_that_worked_ends_it() -> None:
    backoff = Backoff()
    assert backoff.after(tried_for=9.0, up_for=8.0) == 0.0
    for longest in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert longest / 2 <= backoff.after(tried_for=0.0, up_for=None) <= longest
    assert 2.5 <= backoff.after(tried_for=0.9, up_for=0.9) <= 5.0
    assert backoff.after(tried_for=1.1, up_for=1.0) == 0.0


def test_a_try_that_hung_has_waited() -> None:
    assert Backoff().after(tried_for=0.5, up_for=None) == 0.0
    assert 0.0 <= Backoff().after(tried_for=0.2, up_for=None) <= 0.3
