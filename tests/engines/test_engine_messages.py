"""Chat messages in the one form that engines of few forms take."""

from typing import Any

import pytest

from strop.proxy.engines import messages


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def call(arguments: object) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (
            {"role": "user", "content": [text("a"), text("b")]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": [text("a")]},
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
        ),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        (
            {"role": "assistant", "content": None, "reasoning_content": "hm"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "reasoning": "hm"},
        ),
        (
            {"role": "assistant", "content": "", "reasoning": "hm"},
            {"role": "assistant", "content": "", "reasoning": "hm", "reasoning_content": "hm"},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [call(""), call('{"a": 1}')]},
            {"role": "assistant", "content": "", "tool_calls": [call("{}"), call('{"a": 1}')]},
        ),
    ],
)
def test_a_message_has_the_one_form(came: dict[str, Any], expected: dict[str, Any]) -> None:
    """Nothing that it says is lost, and what came is not changed itself."""
    before = repr(came)

    assert [expected] == messages.plain([came])
    assert before == repr(came)


@pytest.mark.parametrize(
    "came",
    [
        None,
        "hi",
        [],
        ["hi", 5],
        [{"role": "user", "content": None}],
        [
            {
                "role": "user",
                "content": [text("a"), {"type": "image_url", "image_url": {"url": "x"}}],
            }
        ],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "assistant", "content": "a", "reasoning": None, "reasoning_content": ""}],
        [{"role": "assistant", "content": "", "tool_calls": [call("{oops"), {"id": "c2"}, 5]}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    ],
    ids=repr,
)
def test_what_has_no_other_form_stays_as_it_is(came: object) -> None:
    """The very same, so that a request without it goes on as its bytes."""
    assert came is messages.plain(came)
