"""What a call of the API is: its route and its part of the document are made of the same value."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import attrs
import trio
from starlette.responses import Response

from trionat.protocol.fields import to_json, write_json
from trionat.server.console.principal import Permission, Principal
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from trionat.server.console.context import Context

ROOT: Final = "/api/v1"
"""Below which the API is."""

P = TypeVar("P")
B = TypeVar("B")
T = TypeVar("T")
K = TypeVar("K", int, str)


@attrs.frozen
class Nothing:
    """The parameters, or the body, of an operation that has none."""


NOTHING: Final = Nothing()

_NOBODY: Final = Principal(username="", account_id=0, is_admin=False, permissions=frozenset())


@attrs.frozen(kw_only=True)
class Call(Generic[P, B]):
    """A call of an operation, with what came in: read and checked. `host` is the address that it comes from, and the names in `headers` are in small letters."""

    context: Context
    host: str
    headers: Mapping[str, str]
    parameters: P
    body: B
    still_may: Callable[[], Awaitable[bool]]
    """Tells whether who asks is still who he was, and may do what he might, for an answer that takes long."""

    principal: Principal = _NOBODY
    sent: dict[str, Any] = attrs.field(factory=lambda: {})
    """What was sent, but for secrets, as the audit is to know it. A handler leaves out what was so before."""

    also: dict[str, object] = attrs.field(factory=lambda: {})
    """What the audit is to know besides what was sent."""


@attrs.frozen(kw_only=True)
class Reply:
    """An answer that is more than its values: another status, or headers. `changed` is whether it is for the audit: what was so before is no change."""

    values: Any = None
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=lambda: {})
    changed: bool = True


@attrs.frozen(kw_only=True)
class Operation:
    """One call of the API; `path` is below `ROOT`, and with `is_outside` it is the whole path.

    `parameters` is a class whose fields are those that stand in braces in `path`, and for the rest those of the query; `body` is that of the JSON object which is sent, or
    None where there is no body. `answer` describes the JSON that is answered with `status`, None where that is nothing, and with `other_statuses`; one with another `media_type` is a text.

    `handle` gets a `Call` and returns an attrs value, a JSON value, a `Reply`, or a whole response; it raises `Problem`. Where an answer may be long, `is_long` has it made in a thread.
    `permission` is what it takes, and `is_for_admins` that only an administrator may do it. An operation that needs `MANAGE` is told to `Context.on_change` when it is done.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    name: str
    summary: str
    handle: Callable[[Call[Any, Any]], Awaitable[Any]]
    permission: Permission = Permission.READ
    is_for_admins: bool = False
    parameters: type = Nothing
    body: type | None = None
    answer: Any = None
    status: int = 200
    other_statuses: tuple[int, ...] = ()
    media_type: str = "application/json"
    is_long: bool = False
    is_outside: bool = False

    @property
    def whole_path(self) -> str:
        """Where it is."""
        return self.path if self.is_outside else ROOT + self.path

    @property
    def needs_login(self) -> bool:
        """Whether somebody has to be logged in."""
        return self.permission is not Permission.OPEN

    def check(self, principal: Principal) -> None:
        """Check that somebody may do this.

        Raises:
            Problem: may not.
        """
        if self.permission not in principal.permissions:
            raise Problem(
                Code.FORBIDDEN,
                f"this token may not do that: it takes one of {self.permission.value}",
            )
        if self.is_for_admins and not principal.is_admin:
            raise Problem(
                Code.FORBIDDEN,
                "this is for administrators"
                if principal.token is None
                else f"this is for administrators, and the account of this token, {principal.username!r}, is none: trionat user admin makes it one",
            )
        if principal.is_remembered and self.permission is Permission.MANAGE:
            raise Problem(Code.STORE_UNAVAILABLE, "the accounts cannot be asked for now")


async def respond(operation: Operation, said: Any, scribe: trio.CapacityLimiter) -> Response:
    """Make the answer of what a handler has returned."""
    if isinstance(said, Response):
        return said
    reply = said if isinstance(said, Reply) else Reply(values=said, status=operation.status)
    if reply.values is None:
        return Response(status_code=204, headers=reply.headers)
    encode = partial(_encode, reply.values)
    text = await trio.to_thread.run_sync(encode, limiter=scribe) if operation.is_long else encode()
    return Response(
        text, status_code=reply.status, media_type="application/json", headers=reply.headers
    )


def _encode(values: Any) -> bytes:
    return write_json(values, to_json)


@attrs.frozen(kw_only=True)
class ByText:
    """The parameters of a list that is in the order of texts."""

    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: str | None = field(None, about="what `next` of the page before says")


@attrs.frozen(kw_only=True)
class ByNumber:
    """The parameters of a list that is in the order of numbers."""

    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: int | None = field(None, about="what `next` of the page before says")


@attrs.frozen
class Page(Generic[T]):
    """A part of a list. `next` is what to say as `after` for the rest, and null where there is none."""

    items: tuple[T, ...]
    next: str | None = None


def cut_page_behind(
    items: Iterable[T], mark: Callable[[T], str], *, limit: int, after: str | None
) -> Page[T]:
    """Cut a part out of a list that keeps its order while entries come and go, so that nothing in it but `mark` says where one is.

    Raises:
        Problem: the last entry of the page before is gone, and nobody knows what came behind it.
    """
    there = list(items)
    marks = list(map(mark, there))
    if after is not None and after not in marks:
        reason = "what the page before ended with is not there any more: begin with the first page"
        raise Problem(Code.CONFLICT, reason, field="after")
    start = 0 if after is None else marks.index(after) + 1
    part = tuple(there[start : start + limit])
    end = start + len(part)
    return Page(part, marks[end - 1] if end < len(there) else None)


def cut_page(
    items: Iterable[T], order: Callable[[T], K], *, limit: int, after: K | None
) -> Page[T]:
    """Cut a part out of a list, which gets its order here; no two may be the same in it."""
    rest = sorted((item for item in items if after is None or order(item) > after), key=order)
    part = tuple(rest[:limit])
    return Page(part, str(order(part[-1])) if len(rest) > limit else None)
