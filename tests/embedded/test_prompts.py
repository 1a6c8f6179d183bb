"""From requests to jobs in the embedded engine: what templates get, and how answers begin."""

from pathlib import Path
from typing import Any

import pytest
import scripted_models

pytest.importorskip("mlx_lm")

from strop.proxy.embedded import prompts
from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.grammar import Grammars
from strop.proxy.embedded.jobs import Job
from strop.proxy.embedded.loading import LoadedModel
from strop.proxy.embedded.protocol import parse_chat

HELLO = {"role": "user", "content": "Hello"}
MAX_MODEL_LEN = 20_000


@pytest.fixture
def tokenizer(qwen3: Path) -> Any:
    """The base's tokenizer in mlx-lm's wrapper, each test's own."""
    from mlx_lm.tokenizer_utils import load

    return load(qwen3)


def job(tokenizer: Any, *messages: Any, **fields: Any) -> Job:
    """Return the job of a chat."""
    model: Any = None  # Nothing is computed.
    loaded = LoadedModel(
        model,
        model,
        tokenizer,
        MAX_MODEL_LEN,
        len(tokenizer),
        {},
        Grammars(tokenizer, len(tokenizer)),
    )
    (made,) = prompts.jobs(parse_chat({"messages": [*messages], **fields}), loaded)
    return made


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"arguments": '{"x": 1}'}, '{"x": 1}'),
        ({"arguments": {"x": 1}}, '{"x": 1}'),
        ({"arguments": ""}, "{}"),
        ({"arguments": None}, "{}"),
        ({}, "{}"),
        ({"arguments": "{broken"}, "{broken"),
        ({"arguments": "[" * 9000}, "[" * 9000),
    ],
)
def test_a_template_gets_arguments_as_an_object(
    tokenizer: Any, fields: dict[str, Any], expected: str
) -> None:
    """However they came; what is no JSON is passed on as it is."""
    call = {"id": "a", "type": "function", "function": {"name": "f", **fields}}

    made = job(tokenizer, HELLO, {"role": "assistant", "tool_calls": [call]})

    assert f'"arguments": {expected}}}' in tokenizer.decode(made.prompt)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.nothing.more }}",
        "{{ '' }}",
        "{{ 'x' * (messages | length) ** -1.5 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_what_a_template_fails_on_is_refused(tokenizer: Any, template: str) -> None:
    """Whatever it raises, and where it says nothing at all, the request is at fault."""
    tokenizer.chat_template = template

    with pytest.raises(BadRequest, match="the chat template"):
        job(tokenizer, HELLO)


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ("", ["<tool_call>"]),
        ("<think>\\n", ["</think>", "<tool_call>"]),
        ("<think>\\n\\n</think>\\n\\n", ["<tool_call>"]),
    ],
)
def test_a_required_call_begins_outside_of_thoughts(
    tokenizer: Any, opening: str, expected: list[str]
) -> None:
    """A template that opens a thought, whatever it is told, has it closed before the call."""
    tokenizer.chat_template = "{{ '<|im_start|>assistant\\n" + opening + "' }}"

    made = job(tokenizer, HELLO, tools=scripted_models.TOOLS, tool_choice="required")

    assert expected == tokenizer.convert_ids_to_tokens(list(made.sampling.forced))


def test_minus_one_is_no_seed(tokenizer: Any) -> None:
    """As in vLLM, where it asks for another answer each time."""
    seeds = [job(tokenizer, HELLO, seed=seed).sampling.seed for seed in (-1, 0, 7)]

    assert [None, 0, 7] == seeds


def test_the_wanted_effort_reaches_the_template(tokenizer: Any) -> None:
    """As in vLLM; what `chat_template_kwargs` says of it goes first."""
    tokenizer.chat_template = "effort {{ reasoning_effort }}"

    asked = job(tokenizer, HELLO, reasoning_effort="low")
    named = job(
        tokenizer,
        HELLO,
        reasoning_effort="low",
        chat_template_kwargs={"reasoning_effort": "high"},
    )

    assert ["effort low", "effort high"] == [
        tokenizer.decode(each.prompt) for each in (asked, named)
    ]
