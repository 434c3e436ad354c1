"""What an answer says where there is none (RFC 9457)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE: Final = "application/problem+json"


class Problem(Exception):  # noqa: N818 - what RFC 9457 calls it
    """Why a request is not done: `code` is a stable word, `detail` is for people, `field` names a part of the request.

    Raised anywhere below a handler, it becomes the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        field: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.field = status, code, detail, field
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer."""
        content = {
            "type": "about:blank",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **({} if self.field is None else {"field": self.field}),
        }
        return Response(
            json.dumps(content), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )
