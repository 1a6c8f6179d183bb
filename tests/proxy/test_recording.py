"""A body that was split for the client is recorded as one that is read whole."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.proxy import recording
from strop.proxy.alias import Served
from strop.proxy.engines.base import Ask, Capabilities
from strop.proxy.recording import Draft
from strop.proxy.redaction import Redaction
from strop.proxy.store.records import Completion
from strop.proxy.wire.restore import Restore, Split

RESTORE = Restore(("logprobs", "token_ids", "prompt_token_ids"))
ASKED: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}]}

logprob_entries = st.lists(
    st.fixed_dictionaries(
        {"token": st.text(max_size=4), "logprob": st.floats(-30, 0), "bytes": st.none()}
    ),
    min_size=1,
    max_size=4,
)


def body_of(content: list[Any], ids: object, prompt_ids: object = None, **beside: object) -> Any:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "so"},
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "token_ids": ids,
    }
    usage = {"prompt_tokens": 2, "completion_tokens": len(content)}
    return {
        "id": "x",
        "choices": [choice],
        "usage": usage,
        "prompt_token_ids": prompt_ids,
        **beside,
    }


def recorded(
    answer: bytes,
    split: Split | None,
    *,
    may_drop_tokens: bool = False,
    logprobs_show_penalties: bool = False,
    **asked: object,
) -> Completion:
    fields = {**ASKED, **asked}
    return recording.complete(
        Draft(
            id="cmp_1",
            created_ms=1,
            key_id="key",
            engine="vllm",
            capabilities=Capabilities(
                token_ids=True,
                stream_logprobs=True,
                score_tokens=False,
                adapters=0,
                is_local=True,
                may_drop_tokens=may_drop_tokens,
                logprobs_show_penalties=logprobs_show_penalties,
            ),
            ask=Ask("chat", orjson.dumps(fields), fields, "m"),
            served=Served("base", "m"),
            state="complete",
            delivered=True,
            status=200,
            error=None,
            answer=answer,
            stream=None,
            ttft_ms=1.0,
            total_ms=1.0,
            overhead_ms=1.0,
            request_id=None,
            session=None,
            redaction=Redaction(),
            split=split,
        )
    )


@given(content=logprob_entries, prompt_ids=st.lists(st.integers(0, 2**31 - 1), max_size=3))
def test_a_split_body_is_recorded_as_the_whole(content: list[Any], prompt_ids: list[int]) -> None:
    """Its ids, logprobs and prompt are those that the engine sent."""
    answer = orjson.dumps(body_of(content, list(range(len(content))), prompt_ids))

    split = RESTORE.split(answer)

    assert split is not None
    assert RESTORE.apply(answer, 1) == split.rest
    assert recorded(answer, None) == recorded(answer, split)


ENTRY = {"token": "a", "logprob": -0.5}


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({}, "raw"),
        ({"temperature": 0.3, "top_p": 0.5}, "raw"),
        ({"presence_penalty": 0, "repetition_penalty": 1.0, "logit_bias": {}}, "raw"),
        ({"frequency_penalty": 0.5}, "processed"),
        ({"presence_penalty": -1}, "processed"),
        ({"repetition_penalty": 1.1}, "processed"),
        ({"logit_bias": {"7": 100}}, "processed"),
    ],
)
def test_logprobs_that_show_what_was_asked_for_are_not_the_models_own(
    asked: dict[str, Any], kind: str
) -> None:
    """Where an engine computes them after penalties and biases; elsewhere they are raw."""
    answer = orjson.dumps(body_of([ENTRY], [1]))

    (shown,) = recorded(answer, None, logprobs_show_penalties=True, **asked).choices
    (raw,) = recorded(answer, None, **asked).choices

    assert (kind, "raw") == (shown.logprobs_kind, raw.logprobs_kind)


TWICE = body_of([ENTRY], [1])
TWICE["choices"][0]["logprobs"]["token_logprobs"] = [-1.0]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of([ENTRY], None), id="no ids"),
        pytest.param(body_of([ENTRY], [1, 2]), id="more ids than logprobs"),
        pytest.param(body_of([ENTRY], [2**31]), id="an id that is no C int"),
        pytest.param(body_of([ENTRY], ["token_id:1"]), id="ids that are texts"),
        pytest.param(body_of([{"token": "a", "logprob": None}], [1]), id="a hole"),
        pytest.param(body_of([{"token": "a", "logprob": -1e300}], [1]), id="beyond a float"),
        pytest.param(body_of([], []), id="no tokens"),
        pytest.param(TWICE, id="logprobs in both dialects' ways"),
        pytest.param(body_of([ENTRY], [1], {"a": 1}), id="prompt ids of another kind"),
    ],
)
def test_what_does_not_pair_is_read_whole(body: dict[str, Any]) -> None:
    """The body is not split, and still comes out as the client asked for it."""
    answer = orjson.dumps(body)

    assert RESTORE.split(answer) is None
    choice = {**body["choices"][0], "logprobs": None, "token_ids": None}
    plain = orjson.dumps({**body, "choices": [choice], "prompt_token_ids": None})
    assert plain == RESTORE.apply(answer, 1)


def test_an_object_before_the_finish_reason_is_not_taken_for_the_logprobs() -> None:
    """The likely end is the end of another member there."""
    body = body_of([ENTRY], [1])
    reason = body["choices"][0].pop("finish_reason")
    body["choices"][0] |= {"other": {"b": [1]}, "finish_reason": reason}

    assert RESTORE.split(orjson.dumps(body)) is None


@pytest.mark.parametrize("num_bytes", range(len(orjson.dumps(body_of([ENTRY], [1], [2])))))
def test_a_body_that_was_cut_off_is_not_split_inside_a_value(num_bytes: int) -> None:
    """Wherever it ends: what is passed on is what `apply` gives."""
    answer = orjson.dumps(body_of([ENTRY], [1], [2]))[:num_bytes]

    split = RESTORE.split(answer)

    assert split is None or RESTORE.apply(answer, 1) == split.rest


def test_a_client_that_asked_for_logprobs_keeps_them() -> None:
    """Only the ids are injected then, and the body is read whole."""
    answer = orjson.dumps(body_of([ENTRY], [1], [2]))

    assert Restore(("token_ids", "prompt_token_ids")).split(answer) is None


@pytest.mark.parametrize("key", ["logprobs", "token_ids", "prompt_token_ids"])
def test_a_member_of_the_same_name_elsewhere_is_not_recorded(key: str) -> None:
    """What is taken out may then be that one; the record has the choice's own."""
    elsewhere: dict[str, object] = {
        "logprobs": {"content": [{"token": "b", "logprob": -9.0}]},
        "token_ids": [8],
        "prompt_token_ids": [9],
    }
    answer = orjson.dumps(body_of([ENTRY], [1], [2], metrics={key: elsewhere[key]}))

    split = RESTORE.split(answer)

    assert recorded(answer, None) == recorded(answer, split)


def test_a_second_choice_that_nobody_asked_for_is_recorded_too() -> None:
    """A split is of a body of one choice; this one is read whole."""
    body = body_of([ENTRY], [1], [2])
    body["choices"].append({**body["choices"][0], "index": 1})
    answer = orjson.dumps(body)

    split = RESTORE.split(answer)

    assert split is not None
    assert recorded(answer, None) == recorded(answer, split)


def test_an_engine_that_drops_tokens_is_read_whole() -> None:
    """Whether each token is there is told by the texts of all of them."""
    body = body_of([ENTRY], [1], [2])
    body["usage"]["completion_tokens"] = 3
    answer = orjson.dumps(body)

    found = recorded(answer, RESTORE.split(answer), may_drop_tokens=True)

    assert recorded(answer, None, may_drop_tokens=True) == found
    assert found.choices[0].token_ids is None
