"""Who may do what: the role that each route needs, and the check of a request's key before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.keys import Keyring, Role
from sparsecbm.errors import ForbiddenError, UnauthorizedError

# None: no key is needed. Everything that the application answers is here, or it does not start.
NEEDED: dict[str, Role | None] = {
    "GET /": None,
    "GET /console/*": None,
    "GET /docs": None,
    "GET /docs/page/*": None,
    "GET /docs/swagger/*": None,
    "GET /openapi.json": None,
    "GET /healthz": None,
    "GET /readyz": None,
    "GET /metrics": "operate",
    "GET /v1/model": "predict",
    "POST /v1/predict": "predict",
    "POST /v1/intervene": "correct",
    # The ledger holds what users wrote.
    "GET /v1/interventions": "correct",
    "GET /v1/interventions/{id}": "correct",
    "GET /v2": "predict",
    "GET /v2/health/live": None,
    "GET /v2/health/ready": None,
    "GET /v2/models/{model_name}": "predict",
    "GET /v2/models/{model_name}/ready": None,
    "POST /v2/models/{model_name}/infer": "predict",
    "GET /v2/models/{model_name}/versions/{model_version}": "predict",
    "GET /v2/models/{model_name}/versions/{model_version}/ready": None,
    "POST /v2/models/{model_name}/versions/{model_version}/infer": "predict",
}

_BEARER = b"bearer"
_SCHEME = "key"  # its name in OpenAPI
_REFUSALS = {
    "401": "No key was sent as 'Authorization: Bearer', or one that is not known.",
    "403": "The key's role does not reach as far, or a rule against requests of other sites' pages refused it.",
}


def table(open_metrics: bool) -> dict[str, Role | None]:
    """`NEEDED`, or with metrics for everybody who can reach the server."""
    return {**NEEDED, "GET /metrics": None} if open_metrics else NEEDED


def names(route: BaseRoute) -> list[str]:
    """What a route is called in the table: its methods and its path's template."""
    if isinstance(route, Mount):
        return [f"GET {route.path}/*"]
    if isinstance(route, Route):
        return [f"{method} {route.path}" for method in sorted((route.methods or {"*"}) - {"HEAD"})]
    return [repr(route)]


def guard(routes: Iterable[BaseRoute], needed: dict[str, Role | None], keyring: Keyring | None) -> None:
    """Puts the check of the key before each route that needs one.

    Args:
        routes: all of an application's.
        needed: the role by a route's name.
        keyring: the keys; None where nobody needs one.

    Raises:
        LookupError: a route is not in the table, or its methods need different roles.
    """
    for route in routes:
        roles = set()
        for name in names(route):
            if name not in needed:
                raise LookupError(f"'{name}' is not in the table of serving/access.py: say there which role it needs")
            roles.add(needed[name])
        if len(roles) > 1:
            raise LookupError(f"the methods of '{names(route)[0]}' need different roles: make them routes of their own")
        [role] = roles
        if keyring is not None and role is not None:
            assert isinstance(route, Route | Mount)
            route.app = _Guarded(route.app, role, keyring)


def describe(document: dict[str, Any], needed: dict[str, Role | None]) -> None:
    """Writes into an OpenAPI document which operations need a key, and of which role."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = needed[f"{method.upper()} {path}"]
            if role is None:
                continue
            operation["security"] = [{_SCHEME: []}]
            operation["description"] = (
                f"{operation.get('description', '')}\n\nNeeds a key of the role `{role}`.".strip()
            )
            shape = operation["responses"]["500"]["content"]  # of every error of this operation
            for status, description in _REFUSALS.items():
                operation["responses"][status] = {"description": description, "content": shape}
    document["components"]["securitySchemes"] = {
        _SCHEME: {"type": "http", "scheme": "bearer", "description": "A key made by `sparsecbm keys create`."}
    }


class _Guarded:
    """A route behind the check of the key. The request's `state.who` is then the key's name."""

    def __init__(self, app: ASGIApp, role: Role, keyring: Keyring) -> None:
        self._app = app
        self._role = role
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _given(scope)
        if given is None:
            raise UnauthorizedError("This needs a key: send it as 'Authorization: Bearer' and the key.")
        key = self._keyring.find(given)
        if key is None:
            raise UnauthorizedError("The key is not known: it may have been revoked, or not copied whole.")
        if not key.may(self._role):
            raise ForbiddenError(
                f"This needs a key of the role '{self._role}', and this one's is '{key.role}'.",
                {"needed": self._role, "role": key.role},
            )
        scope.setdefault("state", {})["who"] = key.name
        structlog.contextvars.bind_contextvars(who=key.name)
        await self._app(scope, receive, send)


def _given(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = bytes(value).partition(b" ")
            return key.strip() if scheme.lower() == _BEARER and key.strip() else None
    return None
