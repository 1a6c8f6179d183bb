"""Examples: what of a rated turn is learned from, as which ids, and what is left out."""

import json
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from training_values import BASE, PROMPT_IDS, Bytes, choice, completion, feedback, turn

from strop.proxy.store.records import Completion
from strop.proxy.store.run_records import RatedTurn
from strop.training import examples
from strop.training.examples import Example, Examples
from strop.training.rows import Flag, LeftOut, Row, Target

OTHER_BASE = "sha256:" + "cd" * 32


def make(*turns: RatedTurn, **changes: Any) -> Examples:
    given: dict[str, Any] = {"base": BASE, "context": 1000, "tokenizer": Bytes()}
    return examples.make(turns, Target(**(given | changes)))


def only_row(found: Examples) -> Row:
    (example,) = found.examples
    (row,) = example.rows
    return row


def answer_ids(row: Row) -> list[int]:
    ids: list[int] = row.tokens.ids[row.tokens.num_prompt :].tolist()
    return ids


def without_ids(text: str = "A leather.", **changes: Any) -> Completion:
    """A completion of an engine that gives no ids."""
    message = json.dumps({"role": "assistant", "content": text}).encode()
    bare = choice(message=message, token_ids=None, logprobs=None, logprobs_kind=None)
    return completion(**({"prompt_ids": None, "choices": (bare,)} | changes))


def kinds(found: Examples) -> list[str]:
    return [one.kind for one in found.examples]


# Rows as the engine gave them.


def test_ids_are_exactly_those_that_were_sampled() -> None:
    """Prompt and answer are the snapshot's, the end-of-text token included."""
    row = only_row(make(turn(), tokenizer=None))

    assert [*PROMPT_IDS, 7, 11, 2] == row.tokens.ids.tolist()
    assert (3, 3) == (row.tokens.num_prompt, row.tokens.num_answer)
    assert np.int32 == row.tokens.ids.dtype
    assert frozenset() == row.flags


def test_raw_logprobs_are_kept_as_captured() -> None:
    """As float32, one for each sampled id."""
    captured = only_row(make(turn())).captured

    assert captured is not None
    assert np.float32 == captured.dtype
    assert pytest.approx([-0.1, -2.5, 0.0]) == captured.tolist()


def test_a_row_knows_who_sampled_it() -> None:
    """For the trainer to compute what that version says."""
    assert "v3" == only_row(make(turn(completion(version="v3")))).version


def test_processed_logprobs_are_recomputed() -> None:
    """They are those of another distribution than the model's own."""
    row = only_row(make(turn(completion(choices=(choice(logprobs_kind="processed"),)))))

    assert row.captured is None
    assert {Flag.PROCESSED} == row.flags


@pytest.mark.parametrize("logprobs", [None, array("f", [-0.1])])
def test_missing_logprobs_are_recomputed_and_never_padded(logprobs: "array[float] | None") -> None:
    """None at all, or too few."""
    row = only_row(make(turn(completion(choices=(choice(logprobs=logprobs),)))))

    assert row.captured is None
    assert {Flag.NO_LOGPROBS} == row.flags


def test_the_rated_choice_is_the_one_that_trains() -> None:
    """The other answers of its completion don't."""
    asked = completion(choices=(choice(0), choice(1, token_ids=array("i", [9, 9, 2]))))

    row = only_row(make(turn(asked, choices=[1])))

    assert [9, 9, 2] == answer_ids(row)


@pytest.mark.parametrize(
    ("sampling", "flags"),
    [
        ({}, set()),
        ({"temperature": 0.7, "top_p": 1, "top_k": -1, "min_p": 0, "seed": 1}, set()),
        ({"temperature": 0, "top_p": 0.9}, {Flag.GREEDY}),
        ({"temperature": 1e-6}, {Flag.GREEDY}),
        ({"top_k": 1}, {Flag.GREEDY}),
        ({"top_p": 0.9}, {Flag.TRUNCATED}),
        ({"top_k": 40}, {Flag.TRUNCATED}),
        ({"min_p": 0.05}, {Flag.TRUNCATED}),
        ({"presence_penalty": 0.5}, {Flag.CONSTRAINED}),
        ({"repetition_penalty": 1.1}, {Flag.CONSTRAINED}),
        ({"logit_bias": {"7": -100}}, {Flag.CONSTRAINED}),
        ({"response_format": {"type": "json_object"}}, {Flag.CONSTRAINED}),
        ({"response_format": {"type": "text"}, "tool_choice": "auto"}, set()),
        ({"tool_choice": "required"}, {Flag.CONSTRAINED}),
        ({"temperature": None, "top_p": "high", "logit_bias": None}, set()),
    ],
)
def test_how_an_answer_was_sampled_is_flagged(
    sampling: dict[str, object], flags: set[Flag]
) -> None:
    """It trains all the same: masks and weights compare the model with itself."""
    found = make(turn(completion(sampling=json.dumps(sampling).encode())))

    assert flags == only_row(found).flags
    assert flags == {
        Flag(name.removeprefix("flagged: "))
        for name in found.counts()
        if name.startswith("flagged: ")
    }


# Turns and raters.


def test_a_turn_is_one_example_of_all_its_answers() -> None:
    """The tool call and the final answer have one credit; each has its own prompt."""
    call = completion("cmp_1", version="v1")
    final = completion("cmp_2", prompt_ids=array("i", [5, 6, 7, 8, 9]), version="v2")

    found = make(turn(call, final, root="cmp_0"))

    (example,) = found.examples
    held_out = example.as_held_out()
    assert [3, 5] == [row.tokens.num_prompt for row in example.rows]
    assert ["v1", "v2"] == [row.version for row in example.rows]
    assert ("v2", "cmp_0", 1.0) == (example.version, example.session_root, example.rating)
    assert ("cmp_0", 1.0) == (held_out.root, held_out.rating)
    assert [3, 5] == [tokens.num_prompt for tokens in held_out.answers]


def test_several_raters_are_one_example_with_their_mean() -> None:
    """And the ids and revisions of all of them."""
    given = [feedback(1.0, "fb_1"), feedback(-0.5, "fb_2", revision=3)]

    (example,) = make(turn(given=given)).examples

    assert 0.25 == example.rating
    assert (("fb_1", 1), ("fb_2", 3)) == example.feedback


def test_of_a_turn_what_can_be_learned_from_is_and_the_rest_is_said() -> None:
    """The final answer doesn't fit into the context; the call before it does."""
    call = completion("cmp_1")
    final = completion("cmp_2", prompt_ids=array("i", range(100)))

    found = make(turn(call, final), context=50)

    assert Flag.PARTIAL in found.examples[0].flags
    assert 1 == len(found.examples[0].rows)
    assert 0 == found.left_out.total()


# What is left out.


def test_a_conversation_longer_than_the_context_is_left_out_whole() -> None:
    """6 tokens fit into 6, and not into 5: a prompt without its head is another prompt."""
    assert ["rating"] == kinds(make(turn(), context=6))

    found = make(turn(), context=5)

    assert () == found.examples
    assert {LeftOut.TOO_LONG: 1} == found.left_out


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (completion(base=OTHER_BASE), LeftOut.OTHER_BASE),
        (completion(base=None), LeftOut.OTHER_MODEL),
        (completion(choices=()), LeftOut.EMPTY),
        (
            completion(choices=(choice(token_ids=array("i"), logprobs=array("f")),)),
            LeftOut.EMPTY,
        ),
    ],
)
def test_answers_that_are_not_the_models_own_are_left_out_by_reason(
    asked: Completion, reason: LeftOut
) -> None:
    """And counted under it."""
    found = make(turn(asked))

    assert () == found.examples
    assert {f"left out: {reason}": 1} == {k: v for k, v in found.counts().items() if v}


def test_a_prompt_with_images_is_left_out() -> None:
    """Its ids are place holders: without the image the model would see another prompt."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    text = {"type": "text", "text": "What is this?"}
    request = {"messages": [{"role": "user", "content": [text, image]}]}

    found = make(turn(completion(request=json.dumps(request).encode())))

    assert {LeftOut.NOT_TEXT: 1} == found.left_out


def test_a_prompt_whose_messages_are_lists_of_text_is_learned_from() -> None:
    """As agents send them, and as bare strings."""
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " this?"}]
    said: list[Any] = [{"role": "user", "content": parts}, {"role": "user", "content": ["This?"]}]

    found = [
        make(turn(completion(request=json.dumps({"messages": [one]}).encode()))) for one in said
    ]

    assert [["rating"], ["rating"]] == [kinds(one) for one in found]


@pytest.mark.parametrize(
    "asked",
    [
        completion(
            prompt_ids=None, request=b'{"messages": [{"role": "user", "content": "[redacted]"}]}'
        ),
        without_ids("My key is [redacted]."),
    ],
)
def test_what_was_redacted_is_left_out(asked: Completion) -> None:
    """Its snapshot was dropped when it was recorded, and its text isn't what the model saw."""
    assert {LeftOut.REDACTED: 1} == make(turn(asked)).left_out


def test_the_word_redacted_alone_is_not_redacted() -> None:
    """Where the ids are there, nothing was taken out."""
    request = b'{"messages": [{"role": "user", "content": "Write [redacted]!"}]}'

    assert ["rating"] == kinds(make(turn(completion(request=request))))


# Engines that give no ids.


def test_text_of_the_same_base_is_encoded_where_the_engine_gave_no_ids() -> None:
    """Prompt by the chat template, answer with the token that ends it; the trainer's logprobs."""
    row = only_row(make(turn(without_ids("A leather."))))

    prompt = b"user:What is a strop?\n"
    assert [*prompt, *b"A leather.", 256] == row.tokens.ids.tolist()
    assert len(prompt) == row.tokens.num_prompt
    assert row.captured is None
    assert {Flag.PROMPT_ENCODED, Flag.ANSWER_ENCODED, Flag.NO_LOGPROBS} == row.flags


@pytest.mark.parametrize(
    ("counted", "prompt"),
    [(6, b"asked!"), (7, (258, *b"asked!")), (None, b"asked!"), (8, None)],
    ids=["all of it", "behind a beginning", "not counted", "another"],
)
def test_a_prompt_that_the_engine_shows_is_encoded_as_it_stands(
    counted: int | None, prompt: Sequence[int] | None
) -> None:
    """Not what the base's own template makes of the messages; if it has as many tokens."""
    found = make(turn(completion(prompt_ids=None, prompt_text="asked!", prompt_tokens=counted)))

    if prompt is None:
        assert {LeftOut.PROMPT_DIFFERS: 1} == found.left_out
    else:
        row = only_row(found)
        assert [*prompt] == row.tokens.ids[: row.tokens.num_prompt].tolist()
        assert {Flag.PROMPT_ENCODED} == row.flags


def with_texts(*texts: str, **changes: Any) -> Completion:
    """A completion of an engine that gives the texts of tokens in place of ids, and thoughts."""
    message = {"role": "assistant", "content": "Yes", "reasoning": "Hm"}
    answer = choice(
        message=json.dumps(message).encode(),
        token_ids=None,
        token_texts=texts,
        logprobs=array("f", [-0.5] * len(texts)),
        finish_reason=changes.pop("finish_reason", "stop"),
    )
    return completion(**({"prompt_ids": None, "choices": (answer,)} | changes))


def test_the_texts_of_the_sampled_tokens_are_their_ids() -> None:
    """Thoughts and all, with the engine's own logprobs."""
    row = only_row(make(turn(with_texts(*"Hm;Yes", ""))))

    assert [*b"Hm;Yes", 256] == answer_ids(row)
    assert [-0.5] * 7 == (row.captured is not None and row.captured.tolist())
    assert {Flag.PROMPT_ENCODED, Flag.TOKENS_ENCODED} == row.flags


def test_a_token_that_ends_the_turn_need_not_be_shown() -> None:
    """It was sampled; its logprob is not known, and so none is taken from the engine."""
    row = only_row(make(turn(with_texts(*"Hm;Yes"))))

    assert [*b"Hm;Yes", 256] == answer_ids(row)
    assert row.captured is None
    assert {Flag.PROMPT_ENCODED, Flag.TOKENS_ENCODED, Flag.NO_LOGPROBS} == row.flags


def test_tokens_that_a_limit_cut_off_have_no_end() -> None:
    """With each logprob."""
    row = only_row(make(turn(with_texts(*"Hm;Ye", finish_reason="length"))))

    assert list(b"Hm;Ye") == answer_ids(row)
    assert row.captured is not None


@pytest.mark.parametrize(
    "asked",
    [
        with_texts("Hm", ";Yes"),
        with_texts(*"Hm;Yes", completion_tokens=9),
        with_texts(*"Hm", "", *"Yes"),
    ],
    ids=["none's", "others", "within"],
)
def test_texts_that_are_not_those_of_the_tokens_are_left_out(asked: Completion) -> None:
    """Of none in the vocabulary, or of fewer than were sampled; the text alone lacks thoughts."""
    assert {LeftOut.NO_TOKENS: 1} == make(turn(asked)).left_out


def test_sampled_ids_are_kept_where_only_the_prompts_are_missing() -> None:
    """With the engine's logprobs, which then also check the template."""
    row = only_row(make(turn(completion(prompt_ids=None))))

    assert [7, 11, 2] == answer_ids(row)
    assert row.captured is not None
    assert {Flag.PROMPT_ENCODED} == row.flags


def test_commands_are_taken_out_of_what_is_encoded() -> None:
    """The engine never saw them, nor our answers."""
    messages = [
        {"role": "user", "content": "/rl good"},
        {"role": "assistant", "content": "[strop] Noted."},
        {"role": "user", "content": "Hi"},
    ]
    asked = completion(prompt_ids=None, request=json.dumps({"messages": messages}).encode())

    row = only_row(make(turn(asked)))

    assert list(b"user:Hi\n") == row.tokens.ids[: row.tokens.num_prompt].tolist()


@pytest.mark.parametrize(
    ("finish_reason", "sampling", "ends"),
    [
        ("stop", {}, True),
        ("length", {}, False),
        (None, {}, False),
        ("stop", {"stop": ["."]}, False),
        ("stop", {"stop_token_ids": [7]}, False),
    ],
)
def test_an_answer_that_was_cut_has_no_end(
    finish_reason: str | None, sampling: dict[str, object], ends: bool
) -> None:
    """The model didn't sample the token that ends a turn, so it isn't credited with it."""
    bare = without_ids("Yes", sampling=json.dumps(sampling).encode())
    (only,) = bare.choices
    cut = choice(message=only.message, token_ids=None, logprobs=None, finish_reason=finish_reason)

    row = only_row(make(turn(without_ids(choices=(cut,), sampling=bare.sampling))))

    assert [*b"Yes", *([256] if ends else [])] == answer_ids(row)


@pytest.mark.parametrize(("counted", "is_taken"), [(3, True), (4, True), (2, False), (5, False)])
def test_encoded_answers_have_as_many_tokens_as_the_engine_counted(
    counted: int, is_taken: bool
) -> None:
    """Three, or four with the one that ends it; else the model said it in other tokens."""
    found = make(turn(without_ids("Yes", completion_tokens=counted)))

    assert ([] if is_taken else [LeftOut.TEXT_DIFFERS]) == list(found.left_out)


def test_encoded_prompts_have_as_many_tokens_as_the_engine_counted() -> None:
    """Else the engine's template is another one."""
    same, other = (without_ids(prompt_tokens=number) for number in (22, 23))

    assert {} == make(turn(same)).left_out
    assert {LeftOut.PROMPT_DIFFERS: 1} == make(turn(other)).left_out


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "tab\there"}, LeftOut.TEXT_DIFFERS),
        ({"content": ""}, LeftOut.EMPTY),
        ({"content": None, "tool_calls": [{"id": "1"}]}, LeftOut.NO_TOKENS),
        ({"content": "Yes.", "reasoning_content": "Hm."}, LeftOut.NO_TOKENS),
    ],
)
def test_an_answer_whose_ids_its_text_does_not_tell_is_left_out(
    message: dict[str, object], reason: LeftOut
) -> None:
    """Where it doesn't come back unchanged, or holds calls and thoughts."""
    bare = choice(message=json.dumps(message).encode(), token_ids=None, logprobs=None)

    assert {reason: 1} == make(turn(without_ids(choices=(bare,)))).left_out


def test_a_prompt_that_the_template_refuses_is_left_out() -> None:
    """And so is all of it where there is no tokenizer."""
    request = b'{"messages": [{"role": "robot", "content": "beep"}]}'

    assert {LeftOut.PROMPT_DIFFERS: 1} == make(turn(without_ids(request=request))).left_out
    assert {LeftOut.NO_TOKENIZER: 1} == make(turn(without_ids()), tokenizer=None).left_out


@pytest.mark.parametrize("request_", [b'{"prompt": "Once"}', b'{"prompt": ["Once"]}'])
def test_a_text_completion_is_encoded_as_text(request_: bytes) -> None:
    """No chat template in it; a list of one prompt is that prompt."""
    bare = choice(message=b'{"text": " upon a time"}', token_ids=None, logprobs=None)
    asked = without_ids(dialect="completions", request=request_, choices=(bare,))

    row = only_row(make(turn(asked)))

    assert [*b"Once", *b" upon a time", 256] == row.tokens.ids.tolist()


@pytest.mark.parametrize("request_", [b'{"prompt": ["Once", "Then"]}', b'{"prompt": [[1], [2]]}'])
def test_an_answer_to_one_of_several_prompts_says_so(request_: bytes) -> None:
    """It may well have token ids: what is missing is the ids of one prompt."""
    asked = completion(dialect="completions", request=request_, prompt_ids=None)

    assert {LeftOut.SEVERAL_PROMPTS: 1} == make(turn(asked)).left_out


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"]])
def test_a_chat_is_read_by_its_messages_whatever_else_it_has(prompt: object) -> None:
    """A client may send what only a text completion has; engines don't look at it."""
    messages = [{"role": "user", "content": "What is a strop?"}]
    request = json.dumps({"messages": messages, "prompt": prompt}).encode()

    row = only_row(make(turn(completion(prompt_ids=None, request=request))))

    assert b"user:What is a strop?\n" == bytes(row.tokens.ids[: row.tokens.num_prompt].tolist())


# Corrections and pairs.


def corrected(text: str = "A belt.", asked: Completion | None = None) -> RatedTurn:
    return turn(asked or completion(), given=[feedback(-1.0, correction=text)])


def test_a_correction_is_a_liked_answer_to_the_same_prompt() -> None:
    """After the snapshot's prompt ids, with the token that ends it, and nobody's logprobs."""
    found = make(corrected())

    (correction,) = [one for one in found.examples if one.kind == "correction"]
    (row,) = correction.rows
    assert [*PROMPT_IDS, *b"A belt.", 256] == row.tokens.ids.tolist()
    assert 1.0 == correction.rating
    assert row.captured is None


def test_a_correction_is_preferred_over_what_it_corrects() -> None:
    """The rated answer itself trains as it was rated."""
    found = make(corrected())

    assert ["rating", "correction", "pair"] == kinds(found)
    rating, correction, pair = found.examples
    assert -1.0 == rating.rating
    assert (correction.rows[0], rating.rows[0]) == pair.rows


def test_the_same_correction_by_two_is_one() -> None:
    """Two different ones are two; each has the ratings that gave it."""
    texts = {"fb_1": "A belt.", "fb_2": "A belt.", "fb_3": "A strap."}
    given = [feedback(-1.0, id_, correction=text) for id_, text in texts.items()]

    found = make(turn(given=given))

    assert [
        (("fb_1", 1), ("fb_2", 1)),
        (("fb_3", 1),),
    ] == [one.feedback for one in found.examples if one.kind == "correction"]


def test_a_correction_counts_where_its_answer_can_not() -> None:
    """Another model's mistake is still one to correct."""
    found = make(corrected(asked=completion(base=OTHER_BASE, prompt_ids=None)))

    assert ["correction"] == kinds(found)
    assert {LeftOut.OTHER_BASE: 1} == found.left_out
    assert list(b"user:What is a strop?\n") == found.examples[0].rows[0].tokens.ids[:22].tolist()


def test_other_bases_prompt_ids_are_not_ours() -> None:
    """A correction of its answer follows the messages, encoded by our own tokenizer."""
    found = make(corrected(asked=completion(base=OTHER_BASE)))

    assert 22 == found.examples[0].rows[0].tokens.num_prompt


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"tokenizer": None}, LeftOut.NO_TOKENIZER), ({"context": 8}, LeftOut.TOO_LONG)],
)
def test_a_correction_that_is_left_out_is_counted_apart(
    changes: dict[str, object], reason: LeftOut
) -> None:
    """Its answer is not."""
    found = make(corrected(), **changes)

    assert ["rating"] == kinds(found)
    assert {f"correction: {reason}": 1} == found.left_out


THINKING = json.dumps(
    {
        "messages": [{"role": "user", "content": "Hi"}],
        "chat_template_kwargs": {"enable_thinking": True},
    }
).encode()


def test_a_correction_begins_as_its_template_says() -> None:
    """What the model says before any text after such a prompt comes before the correction's."""
    asked = completion(request=THINKING)

    found = make(corrected("Well.", asked=asked))

    (correction,) = [one for one in found.examples if one.kind == "correction"]
    assert [257, *b"Well.", 256] == answer_ids(correction.rows[0])


@pytest.mark.parametrize(
    ("counted", "expected"),
    [(3, [*b"Yes", 256]), (5, [257, *b"Yes", 256]), (4, None), (6, None), (None, None)],
)
def test_only_a_count_tells_what_an_engine_took_out_of_the_text(
    counted: int | None, expected: list[int] | None
) -> None:
    """An answer without ids, where the template thinks, is taken only if one reading fits."""
    asked = without_ids("Yes", request=THINKING, completion_tokens=counted)

    found = make(turn(asked))

    assert expected == (answer_ids(only_row(found)) if found.examples else None)


def test_a_redacted_correction_is_left_out() -> None:
    """Nobody said that the answer should have been so; the rating beside it counts."""
    found = make(corrected("Ask [redacted]."))

    assert ["rating"] == kinds(found)
    assert {"correction: redacted": 1} == found.left_out


def test_a_correction_of_an_answer_to_an_image_is_left_out() -> None:
    """Without the image it would be the answer to another prompt."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    request = {"messages": [{"role": "user", "content": [image]}]}

    found = make(corrected(asked=completion(request=json.dumps(request).encode())))

    assert () == found.examples
    assert {LeftOut.NOT_TEXT: 1, f"correction: {LeftOut.NOT_TEXT}": 1} == found.left_out


def test_a_correction_that_says_the_same_makes_no_pair() -> None:
    """An answer isn't better than itself."""
    said = choice(token_ids=array("i", [*b"A belt.", 256]), logprobs=None)

    found = make(corrected(asked=completion(choices=(said,))))

    assert ["rating", "correction"] == kinds(found)


def rated(rating: float, *ids: int, prompt: tuple[int, ...] = PROMPT_IDS, **more: Any) -> RatedTurn:
    said = choice(token_ids=array("i", ids), logprobs=None)
    asked = completion(prompt_ids=array("i", prompt), choices=(said,), **more)
    return turn(asked, given=[feedback(rating, f"fb_{rating}_{ids}")])


def pairs_of(found: Examples) -> list[tuple[list[int], list[int]]]:
    return [
        (answer_ids(one.rows[0]), answer_ids(one.rows[1]))
        for one in found.examples
        if one.kind == "pair"
    ]


def test_of_answers_to_the_same_prompt_the_liked_one_is_preferred() -> None:
    """With the ratings of both behind it."""
    found = make(rated(-1.0, 8, 2), rated(0.5, 9, 2))

    assert [([9, 2], [8, 2])] == pairs_of(found)
    assert (("fb_0.5_(9, 2)", 1), ("fb_-1.0_(8, 2)", 1)) == found.examples[-1].feedback


@pytest.mark.parametrize(
    "others",
    [
        [rated(1.0, 8, 2)],
        [rated(0.0, 8, 2)],
        [rated(-1.0, 8, 2, prompt=(5, 6))],
        [rated(-1.0, 9, 2)],
    ],
    ids=["both liked", "neutral", "another prompt", "the same answer"],
)
def test_nothing_else_is_compared(others: list[RatedTurn]) -> None:
    """Same prompt ids, opposite signs, and different answers."""
    assert [] == pairs_of(make(rated(1.0, 9, 2), *others))


@pytest.mark.parametrize("rating", [1.0, -1.0])
def test_an_answer_that_is_neither_liked_nor_disliked_is_not_compared(rating: float) -> None:
    """Neither as the better one, nor as the worse one."""
    assert [] == pairs_of(make(rated(rating, 9, 2), rated(0.0, 8, 2)))


def test_pairs_grow_with_the_answers_and_not_with_their_square() -> None:
    """Two liked and five disliked: five pairs, in which all seven are."""
    liked = [rated(1.0, token, 2) for token in (1, 3)]
    disliked = [rated(-1.0, token, 2) for token in (4, 5, 6, 7, 8)]

    found = pairs_of(make(*liked, *disliked))

    assert 5 == len(found)
    assert {1, 3} == {better[0] for better, _ in found}
    assert {4, 5, 6, 7, 8} == {worse[0] for _, worse in found}


def test_each_of_more_liked_answers_is_compared_too() -> None:
    """Three liked and one disliked: three pairs."""
    found = pairs_of(make(rated(-1.0, 9, 2), *[rated(1.0, token, 2) for token in (1, 3, 4)]))

    assert [([1, 2], [9, 2]), ([3, 2], [9, 2]), ([4, 2], [9, 2])] == found


def test_turns_of_several_answers_are_not_compared() -> None:
    """Their later prompts differ, so no one answer is the better one."""
    two = turn(completion("cmp_1"), completion("cmp_2"), given=[feedback(-1.0)])

    assert [] == pairs_of(make(two, rated(1.0, 9, 2)))


# What people are told.


def test_counts_are_by_kind_reason_and_flag() -> None:
    """Kinds are there even where they are none."""
    greedy = completion(sampling=b'{"temperature": 0}')

    found = make(turn(greedy), corrected(), turn(completion(base=OTHER_BASE)))

    assert {
        "ratings": 2,
        "corrections": 1,
        "pairs": 1,
        f"left out: {LeftOut.OTHER_BASE}": 1,
        f"flagged: {Flag.GREEDY}": 1,
    } == found.counts()


@pytest.mark.parametrize(("num_greedy", "warns"), [(0, False), (2, False), (3, True)])
def test_mostly_greedy_answers_are_warned_about(num_greedy: int, warns: bool) -> None:
    """More than half of four: nothing new is tried, so there is nothing to choose between."""
    greedy = completion(sampling=b'{"temperature": 0}')

    found = make(*[turn(greedy)] * num_greedy, *[turn()] * (4 - num_greedy))

    assert ([f"{num_greedy} of 4"] if warns else []) == [one[:6] for one in found.warnings()]


def test_no_ratings_are_no_examples() -> None:
    """And no division by their number."""
    found = make()

    assert ((), {}, ()) == (found.examples, found.left_out, found.warnings())


def test_a_pair_is_an_example_like_any_other() -> None:
    """It can be selected by its kind, and has the flags of its answers."""
    greedy = completion(sampling=b'{"temperature": 0}')

    pair: Example = make(corrected(asked=greedy)).examples[-1]

    assert ("pair", 1.0, frozenset({Flag.GREEDY})) == (pair.kind, pair.rating, pair.flags)
