"""One answer of the embedded engine, token by token: where it ends, and with which text."""

from pathlib import Path
from typing import Any

import pytest
import scripted_models

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import TokenizerWrapper, load
from mlx_lm.tool_parsers import kimi_k2, mistral
from tokenizers import AddedToken

from strop.proxy.embedded.answer import Answer
from strop.proxy.embedded.jobs import Finish, Sampled, Scored
from strop.proxy.embedded.protocol import parse_chat, parse_completion
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.embedded.text_parts import Markup


@pytest.fixture(scope="module")
def tokenizer(qwen3: Path) -> Any:
    """The base's tokenizer in mlx-lm's wrapper."""
    return load(qwen3)


def answer(tokenizer: Any, pieces: list[str], finish: Finish = "length", **fields: Any) -> Answer:
    """Return the answer of the tokens of `pieces`, up to where it ends."""
    request = parse_completion({"prompt": "Hello", **fields})
    made = Answer(request, (), Vocabulary(tokenizer), Markup())
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    for at, token in enumerate(ids):
        if not made.is_finished:
            is_last = at + 1 == len(ids)
            made.add(Sampled(0, Scored(token, -1.0), finish if is_last else None))
    return made


def test_a_stop_string_that_begins_within_min_tokens_ends_the_answer(tokenizer: Any) -> None:
    """As in vLLM: it counts where its last token may end the answer, however early it began."""
    made = answer(tokenizer, ["a", "b", "c"], stop="ab", min_tokens=1)
    later = answer(tokenizer, ["a", "b", "a", "b", "c"], stop="ab", min_tokens=2)
    never = answer(tokenizer, ["a", "b", "c"], stop="ab", min_tokens=2)

    assert ("", "stop", 2) == (made.content, made.pieces[-1].finish_reason, len(made.pieces))
    assert ("ab", "stop", 4) == (later.content, later.pieces[-1].finish_reason, len(later.pieces))
    assert ("abc", "length") == (never.content, never.pieces[-1].finish_reason)


def test_the_text_of_a_stop_token_is_given_where_it_is_asked_for(tokenizer: Any) -> None:
    """`include_stop_str_in_output` covers stop tokens too; special ones stay silent."""
    (stop,) = tokenizer.encode("b")
    fields = {"stop_token_ids": [stop], "include_stop_str_in_output": True}

    included = answer(tokenizer, ["a", "b"], "stop", **fields)
    plain = answer(tokenizer, ["a", "b"], "stop", stop_token_ids=[stop])
    special = answer(tokenizer, ["a", "<|im_end|>"], "stop", **fields)

    assert ["ab", "a", "a"] == [each.content for each in (included, plain, special)]
    assert [stop, stop, None] == [
        each.pieces[-1].stop_reason for each in (included, plain, special)
    ]


def test_half_a_stop_string_at_the_end_is_text(tokenizer: Any) -> None:
    """Whatever ends the answer, what was held back for a stop string is given."""
    for finish in ("stop", "length"):
        made = answer(tokenizer, ["x", "a", "<|im_end|>"], finish, stop=["ab"])

        assert "xa" == made.content


@pytest.mark.parametrize(
    ("parser", "special", "text"),
    [
        (mistral, ["[TOOL_CALLS]", "[ARGS]"], '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        (
            kimi_k2,
            [
                kimi_k2.tool_call_start,
                kimi_k2.tool_call_end,
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>'
            "<|tool_calls_section_end|>",
        ),
    ],
)
def test_special_tokens_count_within_a_call_alone(
    qwen3: Path, parser: Any, special: list[str], text: str
) -> None:
    """Some models part names from arguments by them; everywhere else they are silent."""
    hugging_face = load(qwen3)._tokenizer
    tokens = [AddedToken(each, special=True) for each in special]
    hugging_face.add_tokens(tokens, special_tokens=True)
    tokenizer = TokenizerWrapper(
        hugging_face,
        tool_call_start=parser.tool_call_start,
        tool_call_end=parser.tool_call_end,
        tool_parser=parser.parse_tool_call,
    )
    fields = {"messages": [{"role": "user", "content": "Hello"}], "tools": scripted_models.TOOLS}
    markup = Markup.of(tokenizer, (), has_tools=True)
    made = Answer(parse_chat(fields), (), Vocabulary(tokenizer), markup)

    ids = tokenizer.encode(f"I{special[-1]} look.{text}<|im_end|>")
    for at, token in enumerate(ids):
        made.add(Sampled(0, Scored(token, -1.0), "stop" if at + 1 == len(ids) else None))

    assert "I look." == made.content
    assert [("get_weather", '{"city": "Paris"}')] == [
        (call.name, call.arguments) for call in made.tool_calls
    ]
    assert "tool_calls" == made.pieces[-1].finish_reason
