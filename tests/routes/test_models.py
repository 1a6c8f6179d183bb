"""The model names that requests may use."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import shelved
from fake_adapters import FakeAdapters
from routes_app import Running, running

from strop.adapters.library import Library
from strop.proxy.errors import EngineNotReady
from strop.proxy.serving import Serving


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop that calls the engine's model by another name, with a slash in it."""
    async with running(tmp_path, model__name="org/small") as app:
        yield app


async def test_models_are_the_name_and_its_pins(app: Running) -> None:
    """The public name stands for the active version; the engine's own names don't appear."""
    answer = await app.client.get("/v1/models")

    found = answer.json()
    assert ("list", ["org/small", "org/small@base"]) == (
        found["object"],
        [one["id"] for one in found["data"]],
    )
    assert {
        "id": "org/small",
        "object": "model",
        "owned_by": "strop",
        "root": "org/small@base",
        "parent": None,
        "version": "base",
        "max_model_len": 1024,
    } == {key: value for key, value in found["data"][0].items() if key != "created"}


async def test_versions_name_their_parent(tmp_path: Path) -> None:
    """Each was made from its parent; the public name, which stands for the active one, has none.

    Who knows vLLM's dialect takes a name with a parent for an adapter, and may hide it.
    """
    async with running(tmp_path, vllm=FakeAdapters()) as app:
        store, library = app.services.store, Library(tmp_path / "adapters")
        v1 = await shelved.publish(store, library)
        v2 = await shelved.publish(store, library, parent=v1)
        for version in (v1, v2):
            await app.services.swapper.activate(version, actor="api")

        found = (await app.client.get("/v1/models")).json()["data"]
        alone = (await app.client.get("/v1/models/tiny@v2")).json()

    assert [
        ("tiny", "tiny@v2", None),
        ("tiny@base", "tiny@base", None),
        ("tiny@v1", "tiny@v1", "tiny@base"),
        ("tiny@v2", "tiny@v2", "tiny@v1"),
    ] == [(one["id"], one["root"], one["parent"]) for one in found]
    assert "tiny@v1" == alone["parent"]


async def test_a_further_name_of_the_model_has_no_parent_either(tmp_path: Path) -> None:
    """As Ollama's `tiny:latest` for `tiny`: it stands for the active version too."""
    async with running(tmp_path, vllm=FakeAdapters()) as app:
        store, serving = app.services.store, app.services.serving
        v1 = await shelved.publish(store, Library(tmp_path / "adapters"))
        await app.services.swapper.activate(v1, actor="api")
        serving.put(replace(serving.alias, synonyms=("tiny:latest",)))

        found = (await app.client.get("/v1/models/tiny:latest")).json()

    assert ("tiny:latest", "tiny@v1", None) == (found["id"], found["root"], found["parent"])


class TwoModels(FakeAdapters):
    """Serves another model too, as an Ollama does."""

    def _cards(self) -> list[dict[str, object]]:
        return [*super()._cards(), {"id": "other", "object": "model", "root": "other"}]


async def test_another_model_of_the_engine_is_its_own_root(tmp_path: Path) -> None:
    """It is neither the base that learns, nor as long."""
    async with running(tmp_path, vllm=TwoModels()) as app:
        found = (await app.client.get("/v1/models/other")).json()

    assert ("other", None, None) == (found["root"], found["parent"], found["max_model_len"])


@pytest.mark.parametrize("name", ["org/small", "org/small@base", "org%2Fsmall"])
async def test_each_model_is_found_by_its_name(app: Running, name: str) -> None:
    """Slashes in a name need no escape, and may have one."""
    answer = await app.client.get(f"/v1/models/{name}")

    assert (200, name.replace("%2F", "/")) == (answer.status_code, answer.json()["id"])


@pytest.mark.parametrize("name", ["tiny", "org/small@v9", "org"])
async def test_another_name_is_answered_with_those_there_are(app: Running, name: str) -> None:
    """404, and the message lists the models."""
    answer = await app.client.get(f"/v1/models/{name}")

    error = answer.json()["error"]
    assert (404, "model_not_found", "model") == (answer.status_code, error["code"], error["param"])
    assert "org/small, org/small@base" in error["message"]


async def test_models_are_unknown_until_the_engine_has_answered(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 until then, and the engine's reason is said."""
    silent = Serving(app.services.serving.engine, app.services.settings)
    monkeypatch.setattr(app.services, "serving", silent)

    answers = await asyncio.gather(
        app.client.get("/v1/models"), app.client.get("/v1/models/org/small")
    )

    assert [(503, EngineNotReady.code)] * 2 == [
        (answer.status_code, answer.json()["error"]["code"]) for answer in answers
    ]
    assert "it has not answered yet" in answers[0].json()["error"]["message"]


async def test_client_keys_guard_models(tmp_path: Path) -> None:
    """401 without one, the list with one."""
    async with running(tmp_path, server__client_keys=["client-key-1"]) as app:
        refused = await app.client.get("/v1/models")
        answer = await app.client.get(
            "/v1/models", headers={"authorization": "Bearer client-key-1"}
        )

        assert (401, 200) == (refused.status_code, answer.status_code)
