"""What fuzz tests share with the unit tests."""

from __future__ import annotations

from tests.unit.conftest import tidy

__all__ = ["tidy"]
