"""Answers of the embedded engine that have to have a form: a schema's, a choice, an expression."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import engine_process
import httpx
import models
import pytest
import scripted_models
from engine_process import EngineProcess
from waiting import LIMIT_S

pytestmark = pytest.mark.engine

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "is_far": {"type": "boolean"}},
    "required": ["city", "is_far"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
WAYS: tuple[dict[str, Any], ...] = (
    {"response_format": FORMAT},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
)


@pytest.fixture(scope="module")
def actor(scripted: Path) -> EngineProcess:
    """An engine that calls tools and thinks."""
    return engine_process.shared(scripted)


def check(text: str) -> None:
    said = json.loads(text)
    assert {"city", "is_far"} == said.keys()
    assert isinstance(said["city"], str)
    assert isinstance(said["is_far"], bool)


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    assert "stop" == choice["finish_reason"]
    return str(choice["message"]["content"])


@pytest.mark.parametrize("way", WAYS, ids=["openai", "vllm", "vllm-text"])
def test_an_answer_has_its_schemas_form(
    engine: EngineProcess, tokenizer: Any, way: dict[str, Any]
) -> None:
    """Whatever the model would rather say, in JSON and in a stream, and each of several answers."""
    thought = tokenizer.convert_tokens_to_ids("<think>")
    ask = {"seed": 1, "max_tokens": 300, "logit_bias": {str(thought): -100}, **way}

    answers = engine.chat(n=4, **ask)["choices"]
    events = engine.stream("/v1/chat/completions", {"messages": engine_process.HELLO, **ask})

    for choice in answers:
        assert "stop" == choice["finish_reason"]
        check(choice["message"]["content"])
    assert 1 < len({choice["message"]["content"] for choice in answers})
    check(engine_process.text_of(events))


def test_any_object_will_do_where_no_schema_is_given(engine: EngineProcess) -> None:
    """As `json_object` has it, which text completions take too."""
    answer = engine.complete(
        "Hello", seed=3, max_tokens=400, temperature=0.7, response_format={"type": "json_object"}
    )

    (choice,) = answer["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)
    else:
        assert choice["text"].lstrip().startswith("{")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"choice": ["yes", 'no, "never"', "café"]}, r'yes|no, "never"|café'),
        ({"regex": "[0-9]{4}-[0-9]{2}"}, "[0-9]{4}-[0-9]{2}"),
    ],
)
def test_a_choice_and_an_expression_are_held_to(
    engine: EngineProcess, form: dict[str, Any], expected: str
) -> None:
    """As vLLM's `structured_outputs` has them."""
    asked = {"temperature": 4, "max_tokens": 50, "structured_outputs": form}
    said = [engine.complete("Hello", seed=seed, **asked)["choices"][0] for seed in range(6)]

    assert all(re.fullmatch(expected, one["text"]) for one in said)
    assert 1 < len({one["text"] for one in said})


async def test_answers_without_a_form_are_not_touched_by_those_beside_them(
    engine: EngineProcess, qwen3: Path
) -> None:
    """A seed gives the same tokens as alone, and logprobs are raw, with a form too."""
    plain = {
        "prompt": "Hello",
        "seed": 5,
        "max_tokens": 40,
        "logprobs": 1,
        "return_token_ids": True,
    }
    bound = {**plain, "structured_outputs": {"regex": "[a-z]{60}"}}
    alone = engine.complete(**plain)["choices"][0]
    async with httpx.AsyncClient(base_url=engine.url, timeout=LIMIT_S) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=one) for one in [plain, bound] * 4)
        )
    together = [answer.json()["choices"][0] for answer in answers]

    assert {alone["text"]} == {one["text"] for one in together[::2]}
    assert all(re.fullmatch("[a-z]{1,60}", one["text"]) for one in together[1::2])
    one = together[1]
    expected = await asyncio.to_thread(
        models.reference_logprobs, qwen3, None, one["prompt_token_ids"], one["token_ids"]
    )
    assert expected == pytest.approx(one["logprobs"]["token_logprobs"], abs=1e-4)


def test_a_model_may_think_before_the_form(actor: EngineProcess) -> None:
    """Its thought is as free as ever; the answer behind it is bound."""
    form = {"structured_outputs": {"choice": ["Hello!", "Bye!"]}}

    (choice,) = actor.chat(temperature=0, **form)["choices"]

    assert scripted_models.THOUGHT in choice["message"]["reasoning"]
    assert choice["message"]["content"] in ("Hello!", "Bye!")


def test_a_tool_may_be_called_in_place_of_the_form(actor: EngineProcess, tokenizer: Any) -> None:
    """And what is said of its result has the form."""
    ask: dict[str, Any] = {"temperature": 0, "tools": scripted_models.TOOLS, **WAYS[0]}

    (choice,) = actor.chat(**ask)["choices"]
    (forced,) = actor.chat(**ask, tool_choice="required")["choices"]

    for one in (choice, forced):
        (call,) = one["message"]["tool_calls"]
        assert scripted_models.CALL["name"] == call["function"]["name"]
    result = {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"}
    called = {"role": "assistant", "content": None, "tool_calls": choice["message"]["tool_calls"]}
    messages = [*engine_process.HELLO, called, result]
    no_more = {str(tokenizer.convert_tokens_to_ids(name)): -100 for name in models.MARKERS}
    told = engine_process.expect_ok(
        actor.post(
            "/v1/chat/completions",
            {"messages": messages, "max_tokens": 300, "logit_bias": no_more, **ask},
        )
    ).json()
    check(text_of(told))
