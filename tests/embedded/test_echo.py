"""Text completions of the embedded engine that begin with their prompt: `echo`, as vLLM has it."""

from typing import Any

import pytest
from engine_process import EngineProcess

pytestmark = pytest.mark.engine

TEXT = "Grüße 你好 😀, and so on"
GREEDY = {"temperature": 0, "max_tokens": 3}


def test_the_text_begins_with_the_prompt(engine: EngineProcess, tokenizer: Any) -> None:
    """As it was sent; of ids their text, special tokens too. The rest is as without `echo`."""
    marked = tokenizer.encode("<|im_start|>user")
    prompts = [TEXT, "Bye"]
    body = {**GREEDY, "n": 2}

    plain = engine.complete(prompts, **body)["choices"]
    echoed = engine.complete(prompts, **body, echo=True)["choices"]
    (of_ids,) = engine.complete(marked, **GREEDY, echo=True)["choices"]

    assert [(at, prompts[at // 2] + each["text"]) for at, each in enumerate(plain)] == [
        (each["index"], each["text"]) for each in echoed
    ]
    assert of_ids["text"].startswith("<|im_start|>user")
    assert [None, None] == [echoed[0]["logprobs"], echoed[0]["prompt_logprobs"]]


def test_the_logprobs_begin_with_the_prompts(engine: EngineProcess) -> None:
    """Its first token has none, its others those of `prompt_logprobs`, the answer's its own."""
    body = {**GREEDY, "logprobs": 2}

    (plain,) = engine.complete(TEXT, **body)["choices"]
    (echoed,) = engine.complete(TEXT, **body, echo=True)["choices"]
    (scored,) = engine.complete(TEXT, **body, prompt_logprobs=2)["choices"]

    found = echoed["logprobs"]
    num_prompt = len(scored["prompt_logprobs"])
    assert scored["prompt_logprobs"] == echoed["prompt_logprobs"]
    assert [None, None] == [found["token_logprobs"][0], found["top_logprobs"][0]]
    for at in range(1, num_prompt):
        entries = [*scored["prompt_logprobs"][at].values()]
        assert found["tokens"][at] == entries[0]["decoded_token"]
        assert found["token_logprobs"][at] == entries[0]["logprob"]
        assert found["top_logprobs"][at].keys() == {each["decoded_token"] for each in entries}
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert plain["logprobs"][name] == found[name][num_prompt:]
    assert echoed["text"] == "".join(found["tokens"])
    for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
        assert echoed["text"][offset:].startswith(token)


def test_the_alternatives_tell_whether_the_prompts_token_was_the_likeliest(
    engine: EngineProcess,
) -> None:
    """Also where they have its text, as pieces of characters do: evaluations go by the maximum."""
    (choice,) = engine.complete(TEXT, **GREEDY, echo=True, logprobs=1)["choices"]

    found = choice["logprobs"]
    num_prompt = len(choice["prompt_logprobs"])
    ranks = [next(iter(each.values()))["rank"] for each in choice["prompt_logprobs"][1:]]
    tops = found["top_logprobs"][1:num_prompt]
    values = found["token_logprobs"][1:num_prompt]
    likeliest = [value == max(top.values()) for value, top in zip(values, tops, strict=True)]
    assert [rank == 1 for rank in ranks] == likeliest
    assert any(rank > 1 and len(top) == 1 for rank, top in zip(ranks, tops, strict=True))


@pytest.mark.parametrize("is_stream", [False, True])
def test_no_tokens_asked_for_give_the_prompt_alone(engine: EngineProcess, is_stream: bool) -> None:
    """As in vLLM, one is drawn, and counted, and not shown."""
    body = {"prompt": ["Hello", "Bye"], "echo": True, "logprobs": 0, "max_tokens": 0}

    if is_stream:
        *events, end = engine.stream(
            "/v1/completions", {**body, "stream_options": {"include_usage": True}}
        )
        choices = sorted((each["choices"][0] for each in events), key=lambda each: each["index"])
    else:
        end = engine.post("/v1/completions", body).json()
        choices = end["choices"]

    assert ["Hello", "Bye"] == [each["text"] for each in choices]
    for each in choices:
        assert each["text"] == "".join(each["logprobs"]["tokens"])
        assert "length" == each["finish_reason"]
    assert 2 == end["usage"]["completion_tokens"]


@pytest.mark.parametrize("return_token_ids", [False, True])
def test_a_stream_says_the_prompt_once_and_first(
    engine: EngineProcess, tokenizer: Any, return_token_ids: bool
) -> None:
    """Each choice's first event has it, with its ids; together they are the JSON answer."""
    body = {
        **GREEDY,
        "n": 2,
        "echo": True,
        "logprobs": 1,
        "return_token_ids": return_token_ids,
    }

    whole = engine.complete(TEXT, **body)["choices"]
    events = engine.stream("/v1/completions", {"prompt": TEXT, **body})

    for choice in whole:
        parts = [
            event["choices"][0]
            for event in events
            if event["choices"][0]["index"] == choice["index"]
        ]
        ids = [part["prompt_token_ids"] for part in parts]
        assert [tokenizer.encode(TEXT), None, None] == ids
        assert choice["text"] == "".join(part["text"] for part in parts)
        for name, values in choice["logprobs"].items():
            assert values == [value for part in parts for value in part["logprobs"][name]]


def test_who_asks_for_ids_has_the_prompt_in_them_alone(engine: EngineProcess) -> None:
    """As in vLLM: the logprobs have it, the text doesn't."""
    body = {**GREEDY, "logprobs": 0}

    (plain,) = engine.complete(TEXT, **body)["choices"]
    (echoed,) = engine.complete(TEXT, **body, echo=True, return_token_ids=True)["choices"]

    assert plain["text"] == echoed["text"]
    assert 3 == len(echoed["token_ids"])
    assert len(echoed["prompt_token_ids"]) + 3 == len(echoed["logprobs"]["tokens"])


def test_a_cached_prompt_is_scored_as_a_new_one(engine: EngineProcess) -> None:
    """Scores need all of its logits, so nothing of it is taken from the cache."""
    prompt = [*range(500, 700)]
    body = {**GREEDY, "echo": True, "cache_salt": "echoed"}

    cold, warm = (engine.complete(prompt, **body, logprobs=1) for _ in range(2))
    unscored = engine.complete(prompt, **body)

    num_cached = [
        each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (warm, unscored)
    ]
    assert [0, len(prompt) - 1] == num_cached
    assert cold["choices"] == warm["choices"]
    assert cold["choices"][0]["text"] == unscored["choices"][0]["text"]
