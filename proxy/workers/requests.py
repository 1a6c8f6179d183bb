"""HTTP requests that a worker can't answer, on their way to the process that decides and back.

Knows no route. Such requests and their answers are small, and are carried whole.
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Scope
from starlette.types import Receive as Receives
from starlette.types import Send as Sends

from strop.proxy.intake import read_body
from strop.proxy.settings.settings import Server
from strop.proxy.workers.frames import Request, Response


def passing_on(ask: Callable[[Request], Awaitable[Response]], limits: Server) -> ASGIApp:
    """Return an application that lets `ask` answer.

    Args:
        ask: carries a request to the process that decides.
        limits: how long a body may be.
    """

    async def serve(scope: Scope, receive: Receives, send: Sends) -> None:
        body = await read_body(receive, scope["headers"], limits)
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        answer = await ask(
            Request(scope["method"], scope["path"], scope["query_string"], headers, body)
        )
        start = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        await send(start)
        await send({"type": "http.response.body", "body": answer.body})

    return serve


async def answered(app: ASGIApp, request: Request) -> Response:
    """Return what `app` answers to a request that was passed on."""
    unread = [{"type": "http.request", "body": request.body, "more_body": False}]
    said: list[Message] = []

    async def receive() -> Message:
        if unread:
            return unread.pop()
        # The client's own connection is its worker's business.
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": request.headers,
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    head = said[0]
    body = b"".join(one.get("body", b"") for one in said[1:])
    return Response(head["status"], list(head["headers"]), body)
