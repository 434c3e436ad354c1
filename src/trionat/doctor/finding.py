"""What a check has found."""

from __future__ import annotations

import enum

import attrs


class Verdict(enum.StrEnum):
    """How it stands. Only `wrong` counts for the exit code."""

    OK = "ok"
    WARNING = "warning"  # it works now, and may not always
    WRONG = "wrong"
    UNKNOWN = "unknown"  # it could not be looked at


@attrs.frozen
class Finding:
    """What was seen, in a line, and what to do about it, which is empty where nothing has to be done. Whoever shows it masks secrets and escapes it."""

    verdict: Verdict
    text: str
    advice: str = ""


def fine(text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(Verdict.OK, text)


def warning(text: str, advice: str) -> Finding:
    """Return that something may go wrong."""
    return Finding(Verdict.WARNING, text, advice)


def wrong(text: str, advice: str) -> Finding:
    """Return that something is wrong."""
    return Finding(Verdict.WRONG, text, advice)


def unknown(text: str, advice: str = "") -> Finding:
    """Return that nobody can say."""
    return Finding(Verdict.UNKNOWN, text, advice)
