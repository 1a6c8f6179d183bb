"""An OpenAI-compatible service behind strop."""

from pathlib import Path

from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import running, settings_for
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
