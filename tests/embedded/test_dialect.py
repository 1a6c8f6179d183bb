"""The embedded engine's answers in vLLM's dialect: snapshots, streams, stops and sampling."""

import asyncio
from typing import Any

import engine_process
import pytest
from engine_process import EngineProcess

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("text", ["Hello", "你好", "Grüße 😀", "x" * 50])
@pytest.mark.parametrize("include_usage", [False, True])
def test_asking_for_a_snapshot_changes_nothing_else_of_a_chat_stream(
    engine: EngineProcess, text: str, include_usage: bool
) -> None:
    """At T = 0 the events are equal once ids, logprobs and silent chunks are taken out."""
    body = {
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 60,
        "n": 2,
        "stream_options": {"include_usage": include_usage},
    }
    engine.stream("/v1/chat/completions", body)  # so that both find the same in the cache

    asked = engine.stream("/v1/chat/completions", {**body, **engine_process.SNAPSHOT})
    plain = engine.stream("/v1/chat/completions", body)

    assert by_choice(engine_process.without_snapshot(plain)) == by_choice(
        engine_process.without_snapshot(asked)
    )
    assert len(plain) == len(engine_process.without_snapshot(plain))


def by_choice(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events ordered by choice: in which order choices take turns is left open."""
    return sorted(
        events, key=lambda event: event["choices"][0]["index"] if event["choices"] else 99
    )


def test_asking_for_a_snapshot_changes_nothing_else_of_a_text_stream(engine: EngineProcess) -> None:
    """At T = 0 the events of a text completion are equal once the injected members are null."""
    body = {"prompt": "你好，世界", "temperature": 0, "max_tokens": 60}
    engine.stream("/v1/completions", body)

    asked = engine.stream("/v1/completions", {**body, "logprobs": 0, "return_token_ids": True})
    plain = engine.stream("/v1/completions", body)

    assert engine_process.without_snapshot(plain) == engine_process.without_snapshot(asked)
    assert 60 == len(asked)


def test_each_id_and_logprob_comes_once_and_in_vllms_places(engine: EngineProcess) -> None:
    """Prompt ids come first at the top level, ids per choice and chunk, as in the JSON body."""
    body = {
        "messages": engine_process.HELLO,
        "temperature": 0,
        "max_tokens": 40,
        **engine_process.SNAPSHOT,
    }

    whole = engine.chat(temperature=0, max_tokens=40, **engine_process.SNAPSHOT)
    first, *rest = engine.stream("/v1/chat/completions", body)

    (choice,) = whole["choices"]
    assert {"role": "assistant", "content": ""} == first["choices"][0]["delta"]
    assert whole["prompt_token_ids"] == first["prompt_token_ids"]
    assert not any("prompt_token_ids" in event for event in rest)
    assert choice["token_ids"] == [token for e in rest for token in e["choices"][0]["token_ids"]]
    entries = [entry for e in rest for entry in e["choices"][0]["logprobs"]["content"]]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [
        entry["token"] for entry in entries
    ]
    assert choice["message"]["content"] == engine_process.text_of([first, *rest])
    assert [None] * 39 + ["length"] == [e["choices"][0]["finish_reason"] for e in rest]


def test_what_is_not_asked_for_is_null_in_a_body(engine: EngineProcess) -> None:
    """A JSON body has null where a snapshot would be."""
    chat = engine.chat(max_tokens=2)
    text = engine.complete("Hello", max_tokens=2)

    assert [None, None] == [chat["prompt_token_ids"], chat["prompt_logprobs"]]
    for choice in (*chat["choices"], *text["choices"]):
        assert [None, None] == [choice["logprobs"], choice["token_ids"]]
    assert text["choices"][0]["prompt_token_ids"] is None


def test_text_equals_what_the_tokenizer_decodes(engine: EngineProcess, tokenizer: Any) -> None:
    """Pieces of characters are joined; only an unfinished one at the end is left out."""
    for text in ("你好", "😀 🎉", "Привет"):
        body = {"temperature": 0, "max_tokens": 120, "ignore_eos": True, **engine_process.SNAPSHOT}
        (choice,) = engine.chat(text, **body)["choices"]
        events = engine.stream(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body}
        )

        expected = tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
        assert expected.rstrip("\ufffd") == choice["message"]["content"].rstrip("\ufffd")
        assert choice["message"]["content"] == engine_process.text_of(events)


def test_a_text_completion_keeps_the_leading_space(engine: EngineProcess, tokenizer: Any) -> None:
    """The first token's space belongs to the text, as in vLLM."""
    space = tokenizer.encode(" the")[0]

    (choice,) = engine.complete(
        "Hello", max_tokens=1, temperature=0, logit_bias={str(space): 100}, return_token_ids=True
    )["choices"]

    assert [space] == choice["token_ids"]
    assert tokenizer.decode([space]) == choice["text"]
    assert choice["text"].startswith(" ")


def test_a_stop_string_ends_the_answer_wherever_tokens_cut_it(engine: EngineProcess) -> None:
    """The text is cut before the string, the ids keep the token that completed it."""
    whole = engine.chat(temperature=0, max_tokens=40, **engine_process.SNAPSHOT)["choices"][0]
    content = whole["message"]["content"]
    tokens = [entry["token"] for entry in whole["logprobs"]["content"]]
    at = len("".join(tokens[:10])) - 1
    stop = content[at : at + 3]  # begins inside token 10
    expected = content[: content.index(stop)]

    body = {
        "temperature": 0,
        "max_tokens": 40,
        "stop": ["never there", stop],
        **engine_process.SNAPSHOT,
    }
    (choice,) = engine.chat(**body)["choices"]
    events = engine.stream("/v1/chat/completions", {"messages": engine_process.HELLO, **body})
    included = engine.chat(**body, include_stop_str_in_output=True)["choices"][0]

    assert (expected, "stop", stop) == (
        choice["message"]["content"],
        choice["finish_reason"],
        choice["stop_reason"],
    )
    assert expected == engine_process.text_of(events)
    assert expected + stop == included["message"]["content"]
    assert choice["token_ids"] == whole["token_ids"][: len(choice["token_ids"])]
    assert len(choice["token_ids"]) < 40


def test_a_stop_token_ends_the_answer_and_is_delivered(engine: EngineProcess) -> None:
    """A stop token is in the ids, not in the text, and named as the reason."""
    whole = engine.chat(temperature=0, max_tokens=10, **engine_process.SNAPSHOT)["choices"][0]
    stop = whole["token_ids"][5]

    (choice,) = engine.chat(temperature=0, stop_token_ids=[stop], **engine_process.SNAPSHOT)[
        "choices"
    ]

    end = whole["token_ids"].index(stop) + 1
    assert whole["token_ids"][:end] == choice["token_ids"]
    assert ("stop", stop) == (choice["finish_reason"], choice["stop_reason"])


def test_min_tokens_and_ignore_eos_keep_an_answer_going(
    engine: EngineProcess, tokenizer: Any
) -> None:
    """The end-of-text token is forbidden for min_tokens, or drawn and ignored."""
    bias = {
        "logit_bias": {str(tokenizer.eos_token_id): 100},
        "max_tokens": 20,
        **engine_process.SNAPSHOT,
    }

    plain = engine.chat(**bias)["choices"][0]
    kept = engine.chat(**bias, min_tokens=7)["choices"][0]
    ignored = engine.chat(**bias, ignore_eos=True)["choices"][0]

    assert ("stop", [tokenizer.eos_token_id], "") == (
        plain["finish_reason"],
        plain["token_ids"],
        plain["message"]["content"],
    )
    assert [8, "stop"] == [len(kept["token_ids"]), kept["finish_reason"]]
    assert [20, "length"] == [len(ignored["token_ids"]), ignored["finish_reason"]]
    # The raw logprob, which the bias would make 0.
    assert plain["logprobs"]["content"][0]["logprob"] < -1


def test_the_best_alternatives_follow_the_sampled_token(engine: EngineProcess) -> None:
    """`top_logprobs` has the sampled token first, then the best others, `k` in all."""
    (choice,) = engine.chat(temperature=1, max_tokens=20, logprobs=True, top_logprobs=4)["choices"]

    for entry in choice["logprobs"]["content"]:
        top = entry["top_logprobs"]
        assert 4 == len(top)
        assert (entry["token"], entry["logprob"]) == (top[0]["token"], top[0]["logprob"])
        assert sorted((e["logprob"] for e in top[1:]), reverse=True) == [
            e["logprob"] for e in top[1:]
        ]


def test_a_seed_repeats_the_answers_and_tells_choices_apart(engine: EngineProcess) -> None:
    """The same seed gives the same ids, whatever n; its choices differ."""
    body = {"seed": 3, "max_tokens": 20, **engine_process.SNAPSHOT}

    one = engine.chat(**body)
    several = [engine.chat(**body, n=3) for _ in range(2)]

    ids = [[choice["token_ids"] for choice in each["choices"]] for each in several]
    assert ids[0] == ids[1]
    assert one["choices"][0]["token_ids"] == ids[0][0]
    assert 3 == len({tuple(choice) for choice in ids[0]})


def test_a_text_completion_without_a_limit_is_short(engine: EngineProcess) -> None:
    """Sixteen tokens, as OpenAI and vLLM have it; null asks for the rest of the context."""
    ids = [300 + at % 900 for at in range(3996)]

    short = engine.complete(ids[:50], ignore_eos=True)
    rest = engine.complete(ids, ignore_eos=True, max_tokens=None)

    assert [16, 100] == [each["usage"]["completion_tokens"] for each in (short, rest)]


async def test_a_seed_repeats_the_answer_whatever_runs_beside_it(engine: EngineProcess) -> None:
    """In batches of any size, with other samplers in them, the ids are the lone request's."""
    seeded = [
        {"prompt": "Hello " * (1 + 9 * seed), "seed": seed, "temperature": 0.5 + seed / 4}
        for seed in range(4)
    ]
    noise = [{"prompt": "Other " * size, "temperature": size % 2} for size in range(1, 12)]

    async with engine.client() as client:

        async def ids(fields: dict[str, Any]) -> list[int]:
            body = {**fields, "max_tokens": 30, "ignore_eos": True, "return_token_ids": True}
            response = await client.post("/v1/completions", json=body)
            found: list[int] = response.json()["choices"][0]["token_ids"]
            return found

        alone = [await ids(fields) for fields in seeded]
        together = await asyncio.gather(*(ids(fields) for fields in (*noise, *seeded)))

    assert alone == together[len(noise) :]


def test_prompts_come_as_text_ids_or_lists_of_them(engine: EngineProcess, tokenizer: Any) -> None:
    """All forms of a prompt give the same answer; lists give one choice each, in order."""
    ids = tokenizer.encode("Hello")
    body = {"temperature": 0, "max_tokens": 5, "return_token_ids": True}

    answers = [
        engine.complete(prompt, **body)["choices"]
        for prompt in ("Hello", ids, ["Hello"], [ids], ["Hello", "Bye"])
    ]

    assert [1, 1, 1, 1, 2] == [len(choices) for choices in answers]
    assert all(ids == choices[0]["prompt_token_ids"] for choices in answers)
    assert 1 == len({choices[0]["text"] for choices in answers})
    assert [0, 1] == [choice["index"] for choice in answers[-1]]
