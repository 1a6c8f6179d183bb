"""What a client gets of a vLLM's answer to the driver is what vLLM answers to the client itself.

On pairs recorded from vLLM 0.32.0, so that every run of the tests checks it.
"""

import json

import pytest
import vllm_pairs
from vllm_pairs import Pair

from strop.proxy.engines.base import Ask
from strop.proxy.engines.vllm import Vllm
from strop.proxy.upstream.upstream import Upstream
from strop.proxy.wire.hide import Hide

PAIRS = vllm_pairs.load()
HIDDEN = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "include_reasoning": False,
}


@pytest.fixture
def driver() -> Vllm:
    """A driver of an engine that is not asked."""
    return Vllm(Upstream("http://127.0.0.1:1"))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
async def test_the_answer_is_restored_byte_for_byte(pair: Pair, driver: Vllm) -> None:
    """Text, tools, reasoning and usage, in JSON and streams."""
    driver.hides_ids = pair.hides_ids

    assert vllm_pairs.in_order(pair.plain) == vllm_pairs.in_order(vllm_pairs.restored(driver, pair))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
async def test_the_engine_is_asked_for_ids_and_logprobs(pair: Pair, driver: Vllm) -> None:
    """But where that would change the answer: an echo, or a form that reasoning would escape."""
    driver.hides_ids = pair.hides_ids

    sent = json.loads(vllm_pairs.plan(driver, pair.fields).body)

    is_asked = not pair.fields.get("echo")
    assert is_asked == (sent.get("return_token_ids") is True)
    assert is_asked == (sent.get("logprobs") is not None)
    assert not pair.hides_ids or sent.get("include_reasoning") is not False


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a+"}},
        {"guided_choice": ["a", "b"]},
        {"tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
    ],
    ids=lambda form: next(iter(form)),
)
async def test_an_answer_in_a_form_and_without_reasoning_is_left_alone(
    form: dict[str, object], driver: Vllm
) -> None:
    """With reasoning, vLLM would hold only what follows it to the form."""
    driver.hides_ids = True
    fields = {**HIDDEN, **form}

    plan = driver.plan(Ask("chat", b"as it came", fields, served="tiny"))

    assert (b"as it came", None) == (plan.body, plan.restore)


async def test_reasoning_is_asked_for_only_where_its_absence_hides_ids(driver: Vllm) -> None:
    """An engine without a parser gives the ids anyway, and its answer stays as it writes it."""
    plan = driver.plan(Ask("chat", b"", HIDDEN, served="tiny"))

    assert json.loads(plan.body)["include_reasoning"] is False
    assert not isinstance(plan.restore, Hide)


@pytest.mark.parametrize("event", [b"data: [DONE]\n\n", b": ping\n\n", b'data: {"half\n\n'])
def test_what_is_no_chunk_goes_through_a_hidden_stream(event: bytes) -> None:
    """Its end, comments, and what can't be read."""
    assert event == Hide(keeps_prompt_ids=False).apply(event)
