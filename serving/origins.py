"""What a web page elsewhere can't do: address this server by its own name, or have a visitor's browser post to it."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import problems

_SAFE = ("GET", "HEAD", "OPTIONS")


class OriginMiddleware:
    """Refuses requests that a browser makes for somebody else's page.

    Args:
        app: what answers.
        hosts: names under which the server may be addressed, in lower case; None where any will do. A page whose name
            is pointed at this machine (DNS rebinding) counts as of this server for a browser, but not here.
        origins: origins whose pages may send requests besides the server's own, in lower case.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._knows(headers.get("host", "")):
            message = (
                "The Host header names no host of this server. Address it as localhost, or name the host in "
                "the setting allowed_hosts."
            )
            await problems.problem(403, problems.TYPES[403], message)(scope, receive, send)
        elif scope["method"] not in _SAFE and not self._may_post(headers):
            message = (
                "A page of another site sent this request. Name its origin in the setting cors_origins to allow it."
            )
            await problems.problem(403, "cross_site", message)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        if self._hosts is None:
            return True
        name = host.lower() if host.endswith("]") else host.lower().rsplit(":", 1)[0]
        return name in self._hosts

    def _may_post(self, headers: Headers) -> bool:
        """As Go's `http.CrossOriginProtection` has it: the browser's own word, else whether origin and host agree.

        Programs other than browsers send neither header.
        """
        origin = headers.get("origin", "").lower()
        if origin in self._origins:
            return True
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        return not origin or urlsplit(origin).netloc == headers.get("host", "").lower()
