"""The one place that decides between a peer's fault and ours."""

from __future__ import annotations

import logging

import pytest
import trio

from trionat.errors import ConnectionLostError, LocalProtocolError, PeerError, RemoteProtocolError
from trionat.log import get_logger
from trionat.transport.isolation import isolated, leaves

log = get_logger("trionat.tests.isolation")


def fail(error: Exception) -> None:
    raise error


def test_the_peers_fault_is_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with isolated(log, "connection closed", address="192.0.2.1:5"):
        inner = ExceptionGroup("", [RemoteProtocolError("rude")])
        fail(ExceptionGroup("", [ConnectionLostError("gone"), inner]))
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.INFO]
    assert all(record.exc_info is None for record in caplog.records)
    for record, reason in zip(caplog.records, ("gone", "rude"), strict=True):
        assert "connection closed" in record.getMessage()
        assert reason in record.getMessage()
        assert "192.0.2.1:5" in record.getMessage()


@pytest.mark.parametrize(
    "error", [ValueError("x"), LocalProtocolError("x"), OSError("x"), trio.ClosedResourceError()]
)
def test_our_fault_keeps_its_traceback(
    error: Exception, expected_errors: list[logging.LogRecord]
) -> None:
    with isolated(log, "connection closed"):
        fail(error)
    (record,) = expected_errors
    assert record.exc_info


def test_both_at_once_are_both_told(
    caplog: pytest.LogCaptureFixture, expected_errors: list[logging.LogRecord]
) -> None:
    caplog.set_level(logging.INFO)
    with isolated(log, "connection closed"):
        fail(ExceptionGroup("", [PeerError("theirs"), ValueError("ours")]))
    assert len(expected_errors) == 1
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.ERROR]


async def test_cancellation_passes_through() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with isolated(log, "connection closed"):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_cancellation_passes_beside_an_error() -> None:
    with trio.CancelScope() as scope:
        with isolated(log, "connection closed"):
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise PeerError("while leaving")

                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
    assert scope.cancel_called


def test_what_is_no_exception_of_a_program_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt), isolated(log, "x"):
        raise KeyboardInterrupt


def test_leaves() -> None:
    one, two, three = ValueError("1"), KeyError("2"), OSError("3")
    group = ExceptionGroup("", [one, ExceptionGroup("", [ExceptionGroup("", [two]), three])])
    assert list(leaves(group)) == [one, two, three]
