"""Whether the server can do what it is there for."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StoreError
from trionat.server.accounts.first_user import FIRST_USER

if TYPE_CHECKING:
    from trionat.store.base import Store

_HOLDS: Final = 2.0
"""Seconds for which what was found out counts: whoever asks all the time does not ask the store."""

_PATIENCE: Final = 5.0


@attrs.define(eq=False)
class Health:
    """Asks the store."""

    store: Store
    is_well: bool = attrs.field(init=False, default=True)
    """As it was found last."""

    _looked: float = attrs.field(init=False, default=float("-inf"))
    _looking: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def store_answers(self) -> bool:
        """Tell whether accounts can be asked for."""
        async with self._looking:
            if trio.current_time() - self._looked >= _HOLDS:
                self.is_well = await self._ask()
                self._looked = trio.current_time()
            return self.is_well

    async def _ask(self) -> bool:
        with suppress(StoreError), trio.move_on_after(_PATIENCE):
            await self.store.find_user(FIRST_USER)
            return True
        return False
