"""Turns what says no to a value, or knows of no such thing, into a `Problem`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from trionat.errors import LastAdministratorError, StoreDataError, StoreError, StoreUnavailableError
from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def valid(field: str) -> Generator[None]:
    """Say which field it is whose value is refused with a ValueError, or that the store does not take."""
    try:
        yield
    except ValueError as error:
        raise Problem(Code.INVALID, f"{field}: {error}", field=field) from error
    except StoreDataError as error:
        raise Problem(
            Code.INVALID, f"{field}: the accounts' store does not take it", field=field
        ) from error


@contextmanager
def there(what: str) -> Generator[None]:
    """Say that there is no such thing, where the store says so: it may have gone since it was looked for."""
    try:
        yield
    except (StoreUnavailableError, LastAdministratorError):
        raise
    except StoreError as error:
        raise Problem(Code.NOT_FOUND, f"there is no {what}") from error
