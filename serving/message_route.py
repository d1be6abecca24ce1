"""A route that reads its own message: from the body's JSON in one step, within the limits and the request's time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response

from serving import bodies, deadlines, problems
from serving.contract import Message
from serving.settings import Settings
from sparsecbm.errors import InputError

_MOST_ERRORS = 1000  # that are read out one by one


class MessageRoute(APIRoute):
    """A route that answers with bytes, and reads its message itself where its endpoint takes one.

    The message is the endpoint's parameter of a `Message` type; FastAPI describes it in OpenAPI as usual. Its own way
    of reading takes longer, lets unpaired surrogates through and, in its older versions, has no limit.
    """

    must_declare = True  # whether a body needs a Content-Type

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        messages = [
            (name, hint)
            for name, hint in get_type_hints(self.endpoint).items()
            if isinstance(hint, type) and issubclass(hint, Message)
        ]
        answer = self._message_handler(*messages[0]) if messages else super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await deadlines.within(request, _settings(request), answer)

        return handle

    def _message_handler(self, name: str, model: type[Message]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            settings = _settings(request)
            body = await bodies.read(
                request, settings.max_body_bytes, settings.max_json_depth, must_declare=self.must_declare
            )
            try:
                message = model.model_validate_json(body)
            except ValidationError as error:
                if error.error_count() > _MOST_ERRORS:
                    raise InputError(
                        f"The body is wrong in {error.error_count()} places; /docs says what it may hold."
                    ) from None
                found = error.errors(include_url=False, include_context=False, include_input=False)
                raise problems.from_validation(found, "The body") from None
            return await endpoint(request, **{name: message})

        return handle


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.services.settings
    return settings
