"""An OpenAI-compatible service behind strop."""

from pathlib import Path

from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import running, settings_for
from swapped import swapped
from waiting import until


async def test_a_service_that_lists_its_models_to_its_customers_only_needs_a_key_of_strops(
    tmp_path: Path,
) -> None:
    """The list is asked for when no client is there: the error names the setting."""
    async with FakeEngine(FakeVllm(key="right")) as service:
        async with running(
            settings_for(service.url, kind="openai"), tmp_path / "home", ready=False
        ) as proxy:
            await until(lambda: "401" in proxy.services.serving.reason)
            refused = await proxy.chat()
        keyed = settings_for(service.url, kind="openai", engine={"key": "right"})
        async with running(keyed, tmp_path / "keyed") as proxy:
            served = await proxy.chat()

    assert (503, 200) == (refused.status_code, served.status_code)
    message = refused.json()["error"]["message"]
    assert "set engine.key, best as STROP_ENGINE_KEY" in message


async def test_another_strop_is_served_with_the_version_that_it_serves(tmp_path: Path) -> None:
    """Its own name is a model, and no adapter beside one; its pins can be named, each once."""
    async with swapped(tmp_path / "inner") as inner:
        await inner.publish()
        await inner.swapper.activate("v1", actor="api")
        settings = settings_for(inner.proxy.url, kind="openai")
        async with running(settings, tmp_path / "outer") as outer:
            answer = await outer.chat()
            listed = (await outer.client.get("/v1/models")).json()["data"]

    assert (200, "tiny@v1") == (answer.status_code, answer.json()["model"])
    assert ["tiny", "tiny@base"] == [one["id"] for one in listed]
