"""What Anthropic's Messages API has beside messages: how many tokens a prompt has.

Relays nothing: messages themselves are answered by a chat completion (see `translating`).
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strop.proxy.alias import Alias, Served
from strop.proxy.errors import StropError, VersionNotLoaded
from strop.proxy.inline import without_commands
from strop.proxy.routes.requests import caller, json_object, services
from strop.proxy.routes.responses import error_response, json_response
from strop.proxy.wire import chat
from strop.proxy.wire.messages.dialect import MESSAGES


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    try:
        caller(request)
        return json_response({"input_tokens": await _count(request)})
    except StropError as error:
        services(request).metrics.refused.labels(error.code).inc()
        said = {"message": error.message, "type": error.type}
        return error_response(error, body=MESSAGES.error(error.status, said))


ROUTES: Final = [Route("/v1/messages/count_tokens", count_tokens, methods=["POST"])]


async def _count(request: Request) -> int:
    asked = MESSAGES.to_count(await json_object(request))
    messages = chat.messages_of(asked)
    kept = without_commands(messages)
    serving = services(request).serving
    served = _served(serving.alias, asked.get("model"))
    said = {**asked, "messages": messages if kept is None else kept}
    return await serving.engine.count_prompt(served.name, said)


def _served(alias: Alias, model: object) -> Served:
    try:
        return alias.resolve(model)
    except VersionNotLoaded:
        # Every version reads as its base does.
        return alias.base
