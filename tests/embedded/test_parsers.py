"""What models write where a tool call should be: mlx-lm's parsers, and what becomes of the rest."""

import importlib
import json
from typing import Any

import pytest

pytest.importorskip("mlx_lm")

from strop.proxy.embedded.text_parts import Markup, Splitter
from strop.proxy.embedded.tool_calls import Delta

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"properties": {"x": {"type": "number"}, "o": {"type": "object"}}},
        },
    }
]
XML = "<function=f><parameter=x>{}</parameter></function>"


def read(parser: str, text: str, *, is_single: bool = False, **end: Any) -> tuple[Delta, str]:
    """Return what one of mlx-lm's parsers makes of a text between its markers, and the whole."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    closing = "" if end.get("is_cut") else module.tool_call_end
    whole = f"{module.tool_call_start}{text}{closing}"
    markers = (module.tool_call_start, module.tool_call_end)
    splitter = Splitter(Markup(None, markers, module.parse_tool_call), TOOLS, is_single=is_single)
    return splitter.add(whole, is_last=True, **end), whole


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("json_tools", "[" * 100_000),
        ("json_tools", '{"name": "f", "arguments": "Paris"}'),
        ("json_tools", '{"name": "f", "arguments": ["Paris"]}'),
        ("json_tools", '{"name": "f", "arguments": {"x": NaN}}'),
        ("json_tools", '[{"name": "f", "arguments": {}}, {"nom": "f"}]'),
        ("qwen3_coder", XML.format("inf")),
        ("qwen3_coder", XML.format("twelve")),
        ("minimax_m2", '<invoke name="f"><parameter name="x">inf</parameter></invoke>'),
        ("qwen3_coder", f"<function=f><parameter=o>{'[' * 100_000}</parameter></function>"),
        # This parser would name the function `{"name":`.
        ("glm47", '{"name": "cut'),
        ("kimi_k2", 'functions.f:0<|tool_call_argument_begin|>{"x": '),
        ("glm47", "f<arg_key>x</arg_key><arg_value>{1, 2}</arg_value>"),
    ],
)
def test_what_is_no_call_stays_as_the_model_wrote_it(parser: str, text: str) -> None:
    """Whatever a parser raises or returns, nothing is lost and nothing broken is called."""
    delta, whole = read(parser, text)

    assert not delta.tool_calls
    assert whole == delta.content


@pytest.mark.parametrize(
    ("parser", "text", "arguments"),
    [
        ("json_tools", '{"name": "f", "arguments": {"x": 1}}', {"x": 1}),
        ("json_tools", '{"name": "f", "parameters": {"x": 1}}', {"x": 1}),
        ("json_tools", '{"name": "f", "arguments": "{\\"x\\": 1}"}', {"x": 1}),
        ("json_tools", '{"name": "f", "arguments": null}', {}),
        ("json_tools", '{"name": "f"}', {}),
        ("json_tools", '{"name": "f", "arguments": {"x": "\\ud83d"}}', {"x": "\ud83d"}),
        ("json_tools", '{"name": "f", "arguments": {"x": "😀"}}', {"x": "😀"}),
        ("qwen3_coder", XML.format(1), {"x": 1}),
        ("glm47", "f<arg_key>x</arg_key><arg_value>1</arg_value>", {"x": 1}),
        ("mistral", 'f[ARGS]{"x": 1}', {"x": 1}),
        ("pythonic", "[f(x=1)]", {"x": 1}),
    ],
)
def test_arguments_are_always_the_json_of_an_object(
    parser: str, text: str, arguments: dict[str, Any]
) -> None:
    """However a model writes them; and the JSON can be sent, whatever the strings in it."""
    delta, _ = read(parser, text)

    (call,) = delta.tool_calls
    assert ("f", arguments) == (call.name, json.loads(call.arguments))
    assert call.arguments.encode()
    assert "" == delta.content


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("minicpm5", '"f"><param name="x">1</param><param name="o">{'),
        ("muse_spark", '<atem:invoke name="f"><atem:parameter name="x">1</atem:parameter>'),
    ],
)
def test_a_call_that_max_tokens_cut_is_none(parser: str, text: str) -> None:
    """Some parsers would take the arguments that were written so far for all of them."""
    delta, whole = read(parser, text, is_cut=True)

    assert not delta.tool_calls
    assert whole == delta.content


def test_a_whole_call_without_its_end_marker_counts() -> None:
    """A model that forgets the marker ends its answer by itself."""
    delta = Splitter(Markup(None, ("<call>", "</call>"), lambda *_: {"name": "f"}), None).add(
        "<call>f", is_last=True
    )

    assert ["f"] == [call.name for call in delta.tool_calls]


def test_ids_are_those_that_every_template_takes() -> None:
    """Nine letters and digits, or what the model itself wrote; never one twice in an answer."""
    delta, _ = read("mistral", 'f[ARGS]{"x": 1}[TOOL_CALLS]f[ARGS]{"x": 2}')
    call = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    own, _ = read("kimi_k2", call + call)

    for each in (*delta.tool_calls, own.tool_calls[1]):
        assert 9 == len(each.id)
        assert each.id.isalnum()
    assert 2 == len({call.id for call in delta.tool_calls})
    assert "functions.f:0" == own.tool_calls[0].id


def test_a_client_that_takes_one_call_gets_the_first() -> None:
    """What `parallel_tool_calls` false asks for; the other calls are no content either."""
    delta, _ = read("mistral", 'f[ARGS]{"x": 1}[TOOL_CALLS]f[ARGS]{"x": 2}', is_single=True)

    assert ['{"x": 1}'] == [call.arguments for call in delta.tool_calls]
    assert "" == delta.content
