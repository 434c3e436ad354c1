"""A client or a server for programs that are not Trio's: it runs in a thread, which has a Trio loop of its own."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import attrs
import trio

from trionat.errors import EventLoopError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

T = TypeVar("T")
ResultT = TypeVar("ResultT")


@attrs.define(eq=False)
class TrioThread(Generic[T]):
    """Runs an asynchronous context manager, such as `trionat.connect(...)`, in a thread with a Trio loop of its own, for programs that have another loop or none.

    In a plain thread (Flask, a script, a notebook) it is entered by `with`, which blocks until the manager is entered; in an
    asyncio program by `async with`, which does not block the loop. What the manager gives is what the block gets. It is entered once.

    Leaving the block leaves the manager and waits for that; no thread is left behind. For a client or a server that is the planned
    stop, which takes up to its `drain_grace`. Ctrl-C and the cancellation of the asyncio task stop at once, whether they come while
    it is entered, in the block, or while it is left. Without a block (a notebook), an `ExitStack` keeps it. A thread that nobody
    has left ends with the process, as if that had been killed.

    An error of the block leaves it as it is, and leaves the manager first. An error of the manager comes out where it is entered, or
    at the end of the block: the block itself is not interrupted, so `on_event` is how to hear of the end of a client before. It comes
    without the exception group of a nursery, where it is alone in it. If the block has raised as well, it is a note on that error.

    Args:
        manager: What to run; its code and the functions that it was given, such as `on_event`, run in the thread.
        timeout: Seconds that entering may take; None: as long as it takes.

    Raises:
        EventLoopError: this is Trio, where the manager can be used itself.
        TimeoutError: entering has taken longer than `timeout`; all is stopped.
    """

    manager: AbstractAsyncContextManager[T]
    timeout: float | None = attrs.field(default=None, kw_only=True)
    _thread: threading.Thread | None = attrs.field(init=False, default=None)
    _token: Future[trio.lowlevel.TrioToken] = attrs.field(init=False, factory=lambda: Future())
    _entered: Future[T] = attrs.field(init=False, factory=lambda: Future())
    _ended: Future[None] = attrs.field(init=False, factory=lambda: Future())
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _leave: trio.Event = attrs.field(init=False, factory=trio.Event)

    def call(self, function: Callable[..., ResultT], *args: object) -> ResultT:
        """Call a function in the Trio thread, and return what it returns; for methods such as `Client.snapshot`, which are for that thread.

        Blocks until it has run: milliseconds. In an asyncio program that may be done on the loop; in the Trio thread itself, as in `on_event`, it may not.

        Raises:
            trio.RunFinishedError: the thread has ended.
            RuntimeError: it was not entered.
        """
        if self._thread is None or self._thread.ident is None:
            raise RuntimeError("this TrioThread was not entered: call it in its block")
        return trio.from_thread.run_sync(function, *args, trio_token=self._token.result())

    # -- plain threads -----------------------------------------------------------------------------------------------

    def __enter__(self) -> T:
        self._start()
        try:
            wait([self._entered], self.timeout)
            return self._find_entered()
        except BaseException:  # Ctrl-C as well
            self._stop_at_once()
            self._join()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stop(error)
            wait([self._ended])
        except BaseException:  # Ctrl-C
            self._stop_at_once()
            raise
        finally:
            self._join()
        self._tell_end(error)

    def _join(self) -> None:
        wait([self._ended])
        if self._thread is not None:
            self._thread.join()

    # -- asyncio -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> T:
        import asyncio  # noqa: PLC0415 - who is here has it

        self._start()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.timeout):
                    await self._wait(self._entered)
            return self._find_entered()
        except BaseException:  # cancelled as well
            self._stop_at_once()
            await self._wait_ended()  # noqa: ASYNC102 - asyncio has no shields, so it goes on waiting
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stop(error)
            await self._wait(self._ended)  # noqa: ASYNC102 - as above
        except BaseException:  # cancelled
            self._stop_at_once()
            raise
        finally:
            await self._wait_ended()  # noqa: ASYNC102 - as above
        self._tell_end(error)

    @staticmethod
    async def _wait(future: Future[ResultT]) -> None:
        """Wait until it is done, in whatever way."""
        import asyncio  # noqa: PLC0415 - as above

        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(tell)
        await done.wait()

    async def _wait_ended(self) -> None:
        """Wait for the end, which takes a moment, however often this is cancelled meanwhile: whoever did has an error on its way."""
        import asyncio  # noqa: PLC0415 - as above

        while not self._ended.done():
            with suppress(asyncio.CancelledError):
                await self._wait(self._ended)
        self._join()  # which it does at once

    # -- the thread --------------------------------------------------------------------------------------------------

    def _check_loop(self) -> None:
        if trio.lowlevel.in_trio_task():
            raise EventLoopError(
                "this is a Trio program: write async with trionat.connect(...) without TrioThread (docs/library.md)"
            )

    def _start(self) -> None:
        self._check_loop()
        if self._thread is not None:
            raise RuntimeError("a TrioThread is entered once: make another one")
        self._thread = threading.Thread(target=self._run, name="trionat", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C, when it may have begun; it ends by itself then
            self._stop_at_once()
            raise

    def _run(self) -> None:
        try:
            trio.run(self._enter)
        except BaseException as group:  # noqa: ASYNC103, BLE001 - it is raised by whoever waits
            error = _alone(group)
            futures: tuple[Future[Any], ...] = (self._token, self._entered, self._ended)
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        else:
            if not self._entered.done():
                self._entered.cancel()
            self._ended.set_result(None)

    async def _enter(self) -> None:
        self._token.set_result(trio.lowlevel.current_trio_token())
        with self._scope:
            async with self.manager as given:
                self._entered.set_result(given)
                await self._leave.wait()

    def _stop(self, error: BaseException | None) -> None:
        """Have the manager left as planned, or at once where somebody is in a hurry."""
        if error is None or isinstance(error, Exception):
            self._tell(self._leave.set)
        else:
            self._stop_at_once()

    def _stop_at_once(self) -> None:
        self._tell(lambda: self._scope.cancel("the program stops"))

    def _tell(self, job: Callable[[], object]) -> None:
        """Have the Trio thread do something soon, as soon as it has a loop; where it has none, for want of descriptors, there is nothing to do."""

        def tell(token: Future[trio.lowlevel.TrioToken]) -> None:
            if token.exception() is None:
                with suppress(trio.RunFinishedError):
                    token.result().run_sync_soon(job)

        self._token.add_done_callback(tell)

    def _tell_end(self, error: BaseException | None) -> None:
        """Raise what went wrong in the thread, or note it on what went wrong outside."""
        if error is None:
            self._ended.result()
        elif (other := self._ended.exception()) is not None:
            error.add_note(f"besides, what ran in the thread has failed: {other!r}")

    def _find_entered(self) -> T:
        """Return what the manager has given, or raise what went wrong, or that it takes too long."""
        if not self._entered.done():
            raise TimeoutError(
                f"not there within {self.timeout:g} s: is the server up, and has it a free visit port?"
            )
        return self._entered.result()


def _alone(error: BaseException) -> BaseException:
    """Return the error that is alone in its group, else the group."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        if len(group.exceptions) != 1:
            return group
        error = group.exceptions[0]
    return error
