"""What the API says where it does not do what it was asked for (RFC 9457)."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from trionat.protocol.fields import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE: Final = "application/problem+json"


class Code(Enum):
    """Why not: a stable word for programs, with the status that goes with it."""

    INVALID = ("invalid", HTTPStatus.UNPROCESSABLE_ENTITY)
    NO_JSON = ("no_json", HTTPStatus.BAD_REQUEST)
    UNAUTHORIZED = ("unauthorized", HTTPStatus.UNAUTHORIZED)
    FORBIDDEN = ("forbidden", HTTPStatus.FORBIDDEN)
    NOT_FOUND = ("not_found", HTTPStatus.NOT_FOUND)
    METHOD_NOT_ALLOWED = ("method_not_allowed", HTTPStatus.METHOD_NOT_ALLOWED)
    TIMEOUT = ("timeout", HTTPStatus.REQUEST_TIMEOUT)
    CONFLICT = ("conflict", HTTPStatus.CONFLICT)
    TOO_LARGE = ("too_large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    MISDIRECTED = ("misdirected", HTTPStatus.MISDIRECTED_REQUEST)
    RATE_LIMITED = ("rate_limited", HTTPStatus.TOO_MANY_REQUESTS)
    INTERNAL = ("internal", HTTPStatus.INTERNAL_SERVER_ERROR)
    UNAVAILABLE = ("unavailable", HTTPStatus.SERVICE_UNAVAILABLE)
    STORE_UNAVAILABLE = ("store_unavailable", HTTPStatus.SERVICE_UNAVAILABLE)

    def __init__(self, word: str, status: HTTPStatus) -> None:
        self.word = word
        self.status = status


class Problem(Exception):  # noqa: N818 - what RFC 9457 calls it
    """Why a request is not done. `detail` is for people, and `field` is which part of the request is wrong, where it is one.

    Raised anywhere below a handler, it becomes the answer.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})

    def values(self) -> dict[str, Any]:
        """Return what the answer says."""
        values: dict[str, Any] = {
            "type": "about:blank",
            "title": self.code.status.phrase,
            "status": self.code.status.value,
            "detail": self.detail,
            "code": self.code.word,
        }
        return values if self.field is None else {**values, "field": self.field}

    def response(self) -> Response:
        """Return the answer."""
        return Response(
            to_json(self.values()),
            status_code=self.code.status.value,
            media_type=MEDIA_TYPE,
            headers=self.headers,
        )


SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "for people"},
        "code": {
            "type": "string",
            "enum": [code.word for code in Code],
            "description": "for programs: stays as it is",
        },
        "field": {"type": "string", "description": "which part of the request is wrong"},
    },
}
"""For the document of the API."""
