"""What the vLLM driver asks for, and what it must not ask for or pass on."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_vllm import FakeVllm
from running import running, settings_for
from waiting import LIMIT_S

from strop.proxy.embedded.protocol import parse_completion
from strop.proxy.engines.base import AdaptersFolder, Ask
from strop.proxy.engines.vllm import Vllm
from strop.proxy.errors import BadRequest
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire.hide import Hide
from strop.proxy.wire.restore import Restore

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def asked(driver: Vllm, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what the driver sends for a chat."""
    plan = driver.plan(Ask("chat", json.dumps(fields).encode(), fields, served="tiny"))
    sent: dict[str, Any] = json.loads(plan.body)
    return sent


@pytest.mark.parametrize(
    "own", [{"logprobs": True}, {"return_token_ids": True}], ids=lambda own: next(iter(own))
)
async def test_events_with_what_a_client_asked_for_reach_it(
    own: dict[str, Any], tmp_path: Path
) -> None:
    """Also those without text: a part of a tool call's markup, say, has its logprob and its id."""
    body = {**CHAT, **own, "stream": True, "max_tokens": 40}
    async with (
        FakeEngine(FakeVllm(has_parser=True)) as engine,
        running(settings_for(engine.url), tmp_path / "home") as proxy,
        httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as direct,
    ):
        expected = await direct.post("/v1/chat/completions", json=body)
        relayed = await proxy.client.post("/v1/chat/completions", json=body)

    assert '"delta":{},' in expected.text
    assert expected.text.count("data: ") == relayed.text.count("data: ")
    assert expected.text.count('"logprob":') == relayed.text.count('"logprob":')


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**CHAT, "echo": True}, "echo"),
        ({**CHAT, "prompt_logprobs": 0}, "prompt_logprobs"),
    ],
    ids=["echo", "prompt_logprobs"],
)
async def test_a_chat_that_would_end_the_engine_is_refused(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Of a chat with `echo`, vLLM computes the logprobs of the prompt, whether wanted or not."""
    driver = Vllm(Upstream("http://127.0.0.1:1"), adapters=AdaptersFolder(tmp_path))

    with pytest.raises(BadRequest) as raised:
        asked(driver, fields)

    assert named == raised.value.param


async def test_an_engine_without_adapters_echoes_a_chat() -> None:
    """Nothing ends there."""
    assert asked(Vllm(Upstream("http://127.0.0.1:1")), {**CHAT, "echo": True})["echo"]


@pytest.mark.parametrize("alone", [{"top_logprobs": 2}, {"logprob_token_ids": [5]}], ids=str)
async def test_what_is_an_error_without_logprobs_stays_one(alone: dict[str, Any]) -> None:
    """They would be asked for in its place, and the error be gone."""
    assert "logprobs" not in asked(Vllm(Upstream("http://127.0.0.1:1")), {**CHAT, **alone})


@pytest.mark.parametrize("own", ['"logprobs": 1', '"logprobs": 5', '"return_token_ids": 1'])
async def test_what_vllm_may_take_for_true_stays_as_it_came(own: str) -> None:
    """A chat with `"logprobs": 1` gets its logprobs, and one with 5 vLLM's own error."""
    sent = asked(Vllm(Upstream("http://127.0.0.1:1")), {**CHAT, **json.loads(f"{{{own}}}")})

    assert own in json.dumps(sent)


@pytest.mark.parametrize("nothing", [None, False, 0])
async def test_what_asks_for_no_logprobs_does_not_keep_strop_from_it(nothing: object) -> None:
    """Nor from the ids."""
    own = {"logprobs": nothing, "return_token_ids": nothing}

    sent = asked(Vllm(Upstream("http://127.0.0.1:1")), {**CHAT, **own})

    assert [True, True] == [sent["logprobs"], sent["return_token_ids"]]


@pytest.mark.parametrize("wanted", [False, True, 0, 3])
async def test_a_text_completion_that_says_anything_of_logprobs_gets_what_vllm_gives(
    wanted: int,
) -> None:
    """It takes false for 0, and so does strop's own engine."""
    fields = {"model": "tiny", "prompt": "Hello", "logprobs": wanted}
    driver = Vllm(Upstream("http://127.0.0.1:1"))

    plan = driver.plan(Ask("completions", json.dumps(fields).encode(), fields, served="tiny"))

    assert wanted is json.loads(plan.body)["logprobs"]
    assert Restore(("token_ids", "prompt_token_ids")) == plan.restore
    assert int(wanted) == parse_completion(fields).logprobs


@pytest.mark.parametrize("wanted", [1, True, 0, False, None])
async def test_who_wants_ids_and_no_reasoning_keeps_those_of_the_prompt(wanted: object) -> None:
    """As vLLM gives them, which takes 1 for true."""
    driver = Vllm(Upstream("http://127.0.0.1:1"))
    driver.hides_ids = True
    fields = {**CHAT, "include_reasoning": False, "return_token_ids": wanted}

    plan = driver.plan(Ask("chat", json.dumps(fields).encode(), fields, served="tiny"))

    assert Hide(keeps_prompt_ids=bool(wanted)) == plan.restore
