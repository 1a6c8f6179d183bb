"""What the routes answer where there is nothing, or something goes wrong."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from routes_app import Running, running
from starlette.applications import Starlette
from starlette.routing import Route

from strop.proxy.errors import (
    EngineNotReady,
    NotFound,
    StoreUnavailable,
    StropError,
    Unauthorized,
)
from strop.proxy.routes import routing
from strop.proxy.routes.operations import RELAYED
from strop.proxy.routes.responses import error_response


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop without client keys."""
    async with running(tmp_path) as app:
        yield app


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/feedback/", "/v1/files/1", "/v1/responses/1"])
async def test_an_unknown_path_under_v1_is_answered_with_those_there_are(
    app: Running, path: str
) -> None:
    """404 as an OpenAI error object of strop's own, and no redirect."""
    answer = await app.client.get(path)

    error = answer.json()["error"]
    assert (404, "not_found", "proxy") == (
        answer.status_code,
        error["code"],
        answer.headers["x-strop-error-source"],
    )
    assert all(
        one in error["message"]
        for one in (*RELAYED, "/v1/models", "/v1/feedback", "/v1/feedback/export")
    )


async def test_an_error_may_repeat_what_is_no_text(app: Running) -> None:
    """JSON can name a field by half a character."""
    answer = await app.client.post("/v1/feedback", content=b'{"\\ud800": 1, "rating": "\xc3\xa9"}')

    assert (400, "?") == (answer.status_code, answer.json()["error"]["param"])


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/feedback", "/v1/feedback"),
    ],
)
async def test_a_base_url_without_its_v1_or_with_two_is_said(
    app: Running, path: str, meant: str
) -> None:
    """The path is what the client made of it, and a person sees only the error."""
    answer = await app.client.post(path, json={})

    message = answer.json()["error"]["message"]
    assert 404 == answer.status_code
    assert f"it is at {meant}: let the base URL of your client end in one /v1" in message


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/v1/responses/resp_1", "only POST /v1/responses is spoken here"),
        ("/api/chat", "OpenAI's, whose base URL ends in /v1 (Open WebUI: an OpenAI connection)"),
        ("/v1/messages/batches?beta=true", "not a part of Anthropic's Messages API"),
        ("/v1/v1/messages?beta=true", "let the base URL of your client end without /v1"),
        ("/messages", "let the base URL of your client end without /v1"),
    ],
)
async def test_what_is_not_there_of_other_dialects_is_said(
    app: Running, path: str, why: str
) -> None:
    """With what to do."""
    answer = await app.client.post(path, json={})

    assert 404 == answer.status_code
    assert why in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/nothing", "/v2/models", "/v1", "/admin", "/docs/../x"])
async def test_an_unknown_path_elsewhere_is_an_error_object(app: Running, path: str) -> None:
    """404, and it says where to look."""
    answer = await app.client.get(path)

    assert (404, "not_found") == (answer.status_code, answer.json()["error"]["code"])
    assert "/openapi.json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/feedback", "GET, HEAD, POST"),
        ("POST", "/v1/feedback/fb_1", "DELETE, GET, HEAD, PUT"),
        ("POST", "/v1/feedback/export", "GET, HEAD"),
        ("DELETE", "/v1/feedback/export", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        *(("GET", path, "POST") for path in RELAYED),
    ],
)
async def test_another_method_is_answered_with_those_there_are(
    app: Running, method: str, path: str, allowed: str
) -> None:
    """405, with every method of the path in Allow."""
    answer = await app.client.request(method, path)

    assert (405, "method_not_allowed", allowed) == (
        answer.status_code,
        answer.json()["error"]["code"],
        answer.headers["allow"],
    )


async def test_methods_under_admin_are_told_to_the_admin(app: Running) -> None:
    """405 behind the admin key."""
    answer = await app.client.post("/admin/completions", headers=app.admin)

    assert (405, "GET, HEAD") == (answer.status_code, answer.headers["allow"])


@pytest.mark.parametrize("path", RELAYED)
async def test_relayed_paths_are_taken_before_the_routes(app: Running, path: str) -> None:
    """A POST there is not the routes' to refuse."""
    answer = await app.client.post(path, json={})

    assert answer.json().get("error", {}).get("code") != "method_not_allowed"


async def test_no_path_can_be_used_to_write_a_long_message(app: Running) -> None:
    """A message repeats only the beginning of a path."""
    answer = await app.client.get("/" + "x" * 5000)

    assert len(answer.content) < 500


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (StoreUnavailable, "retry-after", "2"),
        (EngineNotReady, "retry-after", "2"),
        (Unauthorized, "www-authenticate", "Bearer"),
        (Unauthorized, "x-should-retry", "false"),
        (StoreUnavailable, "x-should-retry", None),
        (NotFound, "retry-after", None),
    ],
)
def test_errors_carry_what_clients_act_on(
    error: type[StropError], name: str, value: str | None
) -> None:
    """503 says when to come again, 401 how to authenticate, and that the same again won't do."""
    answer = error_response(error("no"))

    assert (error.status, value) == (answer.status_code, answer.headers.get(name))


async def test_an_error_that_nobody_foresaw_is_500_and_logged(
    app: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns nothing of it, the log all, and others are served as before."""

    async def broken(_request: object) -> None:
        raise ZeroDivisionError("the secret cause")

    made = routing.make(app.services)
    assert isinstance(made, Starlette)
    made.router.routes.insert(0, Route("/broken", broken))
    monkeypatch.setattr(app.app, "_routes", made)

    with caplog.at_level(logging.ERROR):
        answer = await app.client.get("/broken")

    assert (500, "internal_error") == (answer.status_code, answer.json()["error"]["code"])
    assert "secret" not in answer.text
    assert "the secret cause" in caplog.text
    assert 200 == (await app.client.get("/livez")).status_code


async def test_refusals_are_counted_by_code(app: Running) -> None:
    """Each once."""
    await app.client.get("/v1/nothing")
    await app.client.patch("/v1/feedback")
    await app.client.get("/v1/feedback?limit=0")
    await app.client.get("/admin/completions")

    registry = app.services.metrics.registry
    codes = ("not_found", "method_not_allowed", "invalid_request", "invalid_api_key")
    assert [1, 1, 1, 1] == [
        registry.get_sample_value("strop_refused_requests_total", {"code": code}) for code in codes
    ]
