"""What strop asked for in addition is taken out of an answer, and no other byte."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy.wire.restore import Restore

ALL = ("logprobs", "token_ids", "prompt_token_ids")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def logprobs_of(tokens: list[str]) -> dict[str, object]:
    return {
        "content": [
            {
                "token": t,
                "logprob": -1.5,
                "bytes": list(t.encode("utf-8", "replace")),
                "top_logprobs": [],
            }
            for t in tokens
        ]
    }


@given(
    tokens=st.lists(st.text(max_size=6), max_size=5),
    content=st.text(max_size=30),
    beside=json_values,
)
def test_an_answer_with_the_members_is_byte_equal_to_one_with_nulls(
    tokens: list[str], content: str, beside: object
) -> None:
    """Whatever the tokens, the text and the members around it hold."""

    def body(logprobs: object, ids: object, prompt_ids: object) -> bytes:
        choice = {"message": {"content": content}, "logprobs": logprobs, "token_ids": ids}
        return orjson.dumps(
            {
                "before": beside,
                "choices": [choice, choice],
                "prompt_token_ids": prompt_ids,
                "z": beside,
            }
        )

    restored = Restore(ALL).apply(body(logprobs_of(tokens), list(range(len(tokens))), [1, 2]))

    # `beside` may itself hold keys of these names; then they are members like the others.
    if not any(f'"{key}":' in orjson.dumps(beside).decode() for key in ALL):
        assert body(None, None, None) == restored


def test_text_that_looks_like_a_member_stays() -> None:
    """Quotes inside a JSON string are escaped, so text can't be taken for a key."""
    said = 'he said "logprobs":{"x":[1]} and "token_ids":[1,2], then \\"logprobs\\": {}'
    body = orjson.dumps({"content": said, "logprobs": {"content": []}})

    assert orjson.dumps({"content": said, "logprobs": None}) == Restore(ALL).apply(body)


def test_only_what_was_injected_is_taken_out() -> None:
    """A client that asked for logprobs keeps them when the ids go."""
    body = b'{"logprobs":{"content":[{"token":"a"}]},"token_ids":[5]}'

    restored = Restore(("token_ids", "prompt_token_ids")).apply(body)

    assert restored == b'{"logprobs":{"content":[{"token":"a"}]},"token_ids":null}'


@pytest.mark.parametrize("space", [b"", b" "])
def test_spacing_stays_as_the_engine_writes_it(space: bytes) -> None:
    """Compact, or with a space after each colon and comma."""
    body = b'{"id":' + space + b'"x","token_ids":' + space + b'[1, 2],"n":' + space + b"1}"

    expected = b'{"id":' + space + b'"x","token_ids":' + space + b'null,"n":' + space + b"1}"
    assert expected == Restore(("token_ids",)).apply(body)


def test_events_that_exist_only_for_the_ids_are_dropped() -> None:
    """An empty delta with a finish reason is real and stays."""
    real = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null,"token_ids":[1]}]}\n\n'
    extra = b'data: {"choices":[{"delta":{},"finish_reason":null,"token_ids":[2]}]}\n\n'
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop","token_ids":[3]}]}\n\n'

    restored = Restore(("token_ids",), (b'"delta":{}', b'"finish_reason":null')).apply(
        real + extra + end + b"data: [DONE]\n\n"
    )

    assert restored == (
        real.replace(b"[1]", b"null") + end.replace(b"[3]", b"null") + b"data: [DONE]\n\n"
    )


@pytest.mark.parametrize("num_choices", [None, 3])
def test_a_body_is_restored_in_each_of_its_choices(num_choices: int | None) -> None:
    """Also where what is searched for is bounded by their number."""

    def body(logprobs: object, ids: object, prompt_ids: object) -> bytes:
        choice = {"message": {"content": "}"}, "logprobs": logprobs, "finish_reason": "stop"}
        choices = [{**choice, "index": index, "token_ids": ids} for index in range(3)]
        return orjson.dumps({"choices": choices, "prompt_token_ids": prompt_ids})

    asked = body(logprobs_of(["}]", '"token_ids":[']), [1, 2], [3])

    assert body(None, None, None) == Restore(ALL).apply(asked, num_choices)


def test_a_member_whose_value_is_no_json_stays() -> None:
    """Half an answer is passed on as it came."""
    body = b'{"id":"x","token_ids":[1,2'

    assert body == Restore(("token_ids",)).apply(body)


@given(
    before=st.lists(st.sampled_from(["a", "b"]), unique=True),
    behind=st.lists(st.sampled_from(["c", "d"]), unique=True),
    removed=st.lists(st.sampled_from(["logprobs", "usage"]), unique=True, min_size=1),
    tokens=st.lists(st.text(max_size=6), max_size=3),
    content=st.text(max_size=30),
    indent=st.sampled_from([None, 1]),
)
def test_an_answer_with_members_that_would_be_absent_is_the_one_without(
    before: list[str],
    behind: list[str],
    removed: list[str],
    tokens: list[str],
    content: str,
    indent: int | None,
) -> None:
    """Wherever they stand, and however the engine spaces its JSON."""
    separators = (", ", ": ") if indent else (",", ":")

    def body(members: list[str]) -> bytes:
        named: dict[str, object] = dict.fromkeys(before, content)
        named |= {name: logprobs_of(tokens) for name in members}
        named |= dict.fromkeys(behind, content)
        return json.dumps({"choices": [named, named]}, separators=separators).encode()

    assert body([]) == Restore(absent=("logprobs", "usage")).apply(body(removed))


def test_the_usage_that_nobody_asked_for_is_no_event() -> None:
    """Events with choices stay, whatever they say of usage."""
    chunk = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] \\"usage\\""}}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
    done = b"data: [DONE]\n\n"

    restored = Restore(drops_usage=True).apply(chunk + usage + done)

    assert chunk + done == restored
