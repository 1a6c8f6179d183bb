"""An answer read from its stream is the answer read from its JSON."""

from array import array

import orjson
import pytest

from strop.proxy.errors import BadRequest
from strop.proxy.wire import body, chat, completions


def entry(
    delta: dict[str, object], ids: list[int] | None, reason: str | None = None
) -> dict[str, object]:
    logprobs = {"content": [{"token": "t", "logprob": -0.5 * i} for i in ids]} if ids else None
    return {
        "id": "chatcmpl-1",
        "choices": [
            {
                "index": 0,
                "delta": delta,
                "logprobs": logprobs,
                "token_ids": ids,
                "finish_reason": reason,
            }
        ],
    }


def test_a_streams_pieces_join_to_the_message_ids_and_logprobs() -> None:
    """A piece without text may still carry ids, one with several tokens several."""
    answer = chat.read_stream(
        [
            orjson.dumps(chunk)
            for chunk in [
                {**entry({"role": "assistant", "content": ""}, None), "prompt_token_ids": [1, 2]},
                entry({"content": "Hé"}, [4, 5]),
                entry({}, [6]),
                entry({"content": "!"}, [2], "stop"),
                {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 4}},
            ]
        ]
    )

    choice = answer.choices[0]
    assert {"role": "assistant", "content": "Hé!"} == choice.message
    assert (array("i", [4, 5, 6, 2]), "stop") == (choice.token_ids, choice.finish_reason)
    assert array("f", [-2.0, -2.5, -3.0, -1.0]) == choice.logprobs
    assert (array("i", [1, 2]), 2, 4) == (
        answer.prompt_ids,
        answer.prompt_tokens,
        answer.completion_tokens,
    )


def test_a_streams_tool_calls_join_by_index() -> None:
    """Arguments come in pieces, names once."""

    def call(index: int, **function: str) -> dict[str, object]:
        return {
            "tool_calls": [
                {"index": index, "id": f"c{index}", "type": "function", "function": function}
            ]
        }

    answer = chat.read_stream(
        [
            orjson.dumps(chunk)
            for chunk in [
                entry(call(0, name="f", arguments='{"a"'), [1]),
                entry({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, [2]),
                entry(call(1, name="g", arguments="{}"), [3], "tool_calls"),
            ]
        ]
    )

    calls = [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert {"role": "assistant", "content": None, "tool_calls": calls} == answer.choices[0].message


def test_a_streams_function_call_and_audio_join_as_tool_calls_do() -> None:
    """Each delta has a piece of the texts in them; names and ids come once."""
    deltas: list[dict[str, object]] = [
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"x":'}},
        {"function_call": {"name": None, "arguments": "1}"}},
        {"audio": {"id": "audio_1", "transcript": "Hel"}},
        {"audio": {"data": "AAAA"}},
        {"audio": {"data": "BBBB", "transcript": "lo"}},
        {"audio": {"expires_at": 5}},
    ]

    answer = chat.read_stream([orjson.dumps(entry(delta, None)) for delta in deltas])

    assert {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "f", "arguments": '{"x":1}'},
        "audio": {"id": "audio_1", "transcript": "Hello", "data": "AAAABBBB", "expires_at": 5},
    } == answer.choices[0].message


def test_a_new_id_begins_a_new_call_under_the_same_index() -> None:
    """Some engines number each call 0; some give each piece an id of its own."""

    def call(id_: str | None, **function: str) -> bytes:
        part = {"index": 0, "function": function} | ({"id": id_} if id_ else {})
        return orjson.dumps(entry({"tool_calls": [part]}, None))

    answer = chat.read_stream(
        [
            call("c0", name="f", arguments="{"),
            call("other", arguments="}"),
            call("c1", name="g", arguments="["),
            call(None, arguments="]"),
        ]
    )

    assert [
        {"id": "other", "function": {"name": "f", "arguments": "{}"}},
        {"id": "c1", "function": {"name": "g", "arguments": "[]"}},
    ] == answer.choices[0].message["tool_calls"]


def test_what_a_later_piece_leaves_empty_stays_as_it_was() -> None:
    """Some engines write empty strings there; a call without its name is not what comes back."""
    named = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}
    empty = {"id": "", "type": "", "function": {"name": "", "arguments": "{}"}}
    old = {"name": "g", "arguments": "["}
    deltas: list[dict[str, object]] = [
        {"role": "assistant", "tool_calls": [{"index": 0, **named}], "function_call": old},
        {
            "role": "",
            "tool_calls": [{"index": 0, **empty}],
            "function_call": {"name": "", "arguments": "]"},
        },
    ]

    answer = chat.read_stream([orjson.dumps(entry(delta, None)) for delta in deltas])

    assert {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**named, "function": {"name": "f", "arguments": "{}"}}],
        "function_call": {"name": "g", "arguments": "[]"},
    } == answer.choices[0].message


def test_reasoning_and_text_join_apart() -> None:
    """Reasoning is part of the message and not of its text."""
    answer = chat.read_stream(
        [
            orjson.dumps(chunk)
            for chunk in [
                entry({"reasoning": "h"}, [1]),
                entry({"reasoning": "m"}, [2]),
                entry({"content": "x"}, [3]),
            ]
        ]
    )

    assert {"reasoning": "hm", "content": "x", "role": "assistant"} == answer.choices[0].message


def test_a_json_answer_reads_as_its_stream_does() -> None:
    """The choices are told apart by their index."""
    logprobs = {"content": [{"token": "a", "logprob": -1.0}]}
    answer = chat.read_json(
        orjson.dumps(
            {
                "id": "chatcmpl-2",
                "choices": [
                    {
                        "index": 1,
                        "message": {"content": "b"},
                        "token_ids": [9],
                        "finish_reason": "length",
                    },
                    {
                        "index": 0,
                        "message": {"content": "a"},
                        "token_ids": [8],
                        "logprobs": logprobs,
                    },
                ],
                "prompt_token_ids": [1],
            }
        )
    )

    assert [array("i", [8]), array("i", [9])] == [answer.choices[i].token_ids for i in (0, 1)]
    assert [array("f", [-1.0]), None] == [answer.choices[i].logprobs for i in (0, 1)]


def test_ids_inside_the_logprob_entries_are_found() -> None:
    """mlx_lm.server and llama-server write them there."""
    content = [{"id": 5, "logprob": -1.0}, {"id": 6, "logprob": -2.0}]
    answer = chat.read_json(
        orjson.dumps({"choices": [{"index": 0, "message": {}, "logprobs": {"content": content}}]})
    )

    assert array("i", [5, 6]) == answer.choices[0].token_ids


@pytest.mark.parametrize(
    ("ids", "values"),
    [([1, 2], [-1.0]), ([1, 2], [-1.0, None])],
    ids=["one missing", "a hole"],
)
def test_logprobs_that_do_not_pair_with_the_ids_are_dropped(
    ids: list[int], values: list[object]
) -> None:
    """A missing logprob is never padded."""
    content = [{"logprob": value} for value in values]
    answer = chat.read_json(
        orjson.dumps(
            {"choices": [{"message": {}, "token_ids": ids, "logprobs": {"content": content}}]}
        )
    )

    assert (array("i", ids), None) == (answer.choices[0].token_ids, answer.choices[0].logprobs)


def test_a_text_completion_is_read_in_pieces_and_whole() -> None:
    """Prompt ids stand inside the choice here."""
    pieces = [
        {
            "id": "cmpl-1",
            "choices": [
                {
                    "index": 0,
                    "text": text,
                    "token_ids": [i],
                    "prompt_token_ids": [7] if i == 0 else None,
                    "logprobs": {"token_logprobs": [-float(i)]},
                    "finish_reason": reason,
                }
            ],
        }
        for i, (text, reason) in enumerate([("a", None), ("b", "stop")])
    ]

    answer = completions.read_stream([orjson.dumps(piece) for piece in pieces])

    assert ({"text": "ab"}, "stop") == (answer.choices[0].message, answer.choices[0].finish_reason)
    assert (array("i", [0, 1]), array("f", [0.0, -1.0])) == (
        answer.choices[0].token_ids,
        answer.choices[0].logprobs,
    )
    assert array("i", [7]) == answer.prompt_ids


@pytest.mark.parametrize(
    ("prompts", "kept"),
    [([[5, 6], [5, 6]], [5, 6]), ([[5, 6], [7]], []), ([[5], [7], [7]], []), ([[5], [7], [5]], [])],
    ids=str,
)
def test_choices_of_several_prompts_have_none_in_common(
    prompts: list[list[int]], kept: list[int]
) -> None:
    """What the second prompt was answered would be learned as an answer to the first."""
    choices = [
        {"index": index, "text": "x", "token_ids": [9], "prompt_token_ids": ids}
        for index, ids in enumerate(prompts)
    ]
    whole = completions.read_json(orjson.dumps({"choices": choices}))
    pieces = completions.read_stream(orjson.dumps({"choices": [one]}) for one in choices)

    for answer in (whole, pieces):
        assert kept == list(answer.prompt_ids or ())
        assert [array("i", [9])] * len(prompts) == [
            choice.token_ids for choice in answer.choices.values()
        ]


def test_an_answer_may_begin_with_a_byte_order_mark() -> None:
    """Which is none of its JSON, and which some servers write."""
    answer = chat.read_json(b'\xef\xbb\xbf{"id":"a","choices":[{"message":{"content":"b"}}]}')

    assert ("a", "b", None) == (
        answer.upstream_id,
        answer.choices[0].message["content"],
        answer.error,
    )


def test_each_choice_has_the_texts_of_its_tokens() -> None:
    """In the order they came in, of a stream's chunks as of a body."""
    chunk = b'{"choices":[{"index":%d,"delta":{},"logprobs":{"content":[%b]}}]}'
    entry = b'{"token":"%b","logprob":-1}'
    pieces = [chunk % (one, entry % said) for one, said in ((0, b"a"), (1, b"b"), (0, b"c"))]
    answer = chat.read_stream(pieces)

    answer.read_texts(pieces)

    assert [("a", "c"), ("b",)] == [one.token_texts for one in answer.choices.values()]


def test_a_text_without_a_logprob_is_none_of_a_tokens() -> None:
    """Nor is one beside an id: that says more."""
    entries = [b'{"token":"a"}', b'{"token":"a","logprob":-1,"id":7}']
    found = []
    for entry in entries:
        said = b'{"choices":[{"message":{},"logprobs":{"content":[%b]}}]}' % entry
        answer = chat.read_json(said)
        answer.read_texts([said])
        found.append(answer.choices[0].token_texts)

    assert [None, None] == found


def test_a_piece_that_is_no_text_has_none() -> None:
    """And costs no record: that a token is missing shows in the text of the others."""
    said = b'{"choices":[{"logprobs":{"content":[{"token":"%b","logprob":-1}]}}]}'
    deep = b'{"deep":%b%b}' % (b"[" * 10_000, b"]" * 10_000)

    pieces = [said % b"a", said % b"\xff", deep, said % b"c"]
    answer = chat.read_stream(pieces)

    answer.read_texts(pieces)

    assert ["a", "c"] == answer.choices[0].texts


def test_a_malformed_snapshot_does_not_cost_the_message() -> None:
    """What was said is kept, without ids."""
    choice = {"message": {"content": "a"}, "token_ids": "abc", "finish_reason": "stop"}
    answer = chat.read_json(orjson.dumps({"id": "x", "choices": [choice]}))

    assert ("x", {"content": "a"}, "stop", None, None) == (
        answer.upstream_id,
        answer.choices[0].message,
        answer.choices[0].finish_reason,
        answer.choices[0].token_ids,
        answer.error,
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": None},
        {"choices": [None, 1, "x"]},
        {"choices": [{"index": "x", "message": 3, "token_ids": "abc", "logprobs": []}]},
        {"choices": [{"delta": [], "token_ids": [2**40], "logprobs": {"content": [None]}}]},
        {"id": 7, "usage": [], "error": "gone", "prompt_token_ids": [None]},
    ],
)
def test_an_odd_answer_is_read_as_far_as_it_goes(odd: dict[str, object]) -> None:
    """An engine's nonsense is recorded, never an error of ours."""
    dumped = orjson.dumps(odd)
    for read in (chat.read_json, completions.read_json):
        for choice in read(dumped).choices.values():
            assert choice.token_ids is None
    for choice in chat.read_stream([dumped, dumped]).choices.values():
        assert choice.logprobs is None


@pytest.mark.parametrize(
    "text",
    [b'{"seed":99999999999999999999}', b'{"a":"\\ud800"}', b'{"a":[1.0,"x"]}'],
)
def test_what_json_can_hold_survives_a_rewrite(text: bytes) -> None:
    """Numbers beyond 64 bits and lone surrogates included."""
    assert text == body.dumps(body.parse(text))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_a_bad_request(text: bytes) -> None:
    """The message says what was expected."""
    with pytest.raises(BadRequest, match="JSON"):
        body.parse(text)
