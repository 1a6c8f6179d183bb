"""An answer that is bound to a form can only become what has it."""

import json
import random
from typing import Any

import models
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.forms import Form
from strop.proxy.embedded.grammar import Beside, Follower, Grammar, Grammars

VOCAB_SIZE = models.VOCAB_SIZE + 7
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["city", "days", "mood"],
    "additionalProperties": False,
}
JSON = Form("json", json.dumps(SCHEMA), "response_format")
CHOICE = Form("lark", 'start: "yes" | "no"', "structured_outputs")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer as the engine has it."""
    return TokenizerWrapper(models.make_tokenizer())


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    """What compiles for it; the model's logits are wider than its vocabulary."""
    return Grammars(tokenizer, VOCAB_SIZE)


def walk(grammar: Grammar, stop_ids: frozenset[int], seed: int) -> list[int]:
    """Return the ids of one answer, each drawn from all that may come next."""
    follower, chance, ids = Follower(grammar, stop_ids), random.Random(seed), list[int]()
    while True:
        may_come = follower.allowed()
        assert may_come is not None
        assert (VOCAB_SIZE,) == may_come.shape
        token = chance.choice(np.nonzero(may_come)[0].tolist())
        if token in stop_ids:
            return ids
        ids.append(token)
        follower.read(token)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_drawn_has_the_schemas_form(
    grammars: Grammars, tokenizer: Any, seed: int
) -> None:
    """At random among what may come next, to an end: JSON with just those members."""
    ids = walk(grammars.compile(JSON, Beside()), frozenset(tokenizer.eos_token_ids), seed)

    said = json.loads(tokenizer.decode(ids))
    assert SCHEMA["properties"].keys() == said.keys()
    assert isinstance(said["city"], str)
    assert all(isinstance(day, int) for day in said["days"])
    assert said["mood"] in ("good", "bad")


def test_a_choice_is_one_of_its_texts(grammars: Grammars, tokenizer: Any) -> None:
    """And each of them can be drawn."""
    stop_ids = frozenset(tokenizer.eos_token_ids)
    said = {
        tokenizer.decode(walk(grammars.compile(CHOICE, Beside()), stop_ids, seed))
        for seed in range(20)
    }

    assert {"yes", "no"} == said


@pytest.mark.parametrize("is_thinking", [True, False])
def test_a_thought_before_the_answer_is_free(
    grammars: Grammars, tokenizer: Any, is_thinking: bool
) -> None:
    """The prompt begins it, or the model; where it ends the form begins, and no other thought."""
    beside = Beside(thought=309, thought_end=(310, 311), is_thinking=is_thinking)
    follower = Follower(grammars.compile(CHOICE, beside), frozenset({0}))
    if not is_thinking:
        first = follower.allowed()
        assert first is not None
        assert first[309]
        follower.read(309)

    for token in (400, 310, 400, 311, 310, 310):
        assert follower.allowed() is None
        follower.read(token)
    follower.read(311)

    may_come = follower.allowed()
    assert may_come is not None
    told = np.nonzero(may_come)[0].tolist()
    assert {"y", "n"} == {tokenizer.decode([token])[0] for token in told}


def test_a_tool_call_may_stand_in_place_of_the_answer(grammars: Grammars, tokenizer: Any) -> None:
    """Only as its first token, and then the call is free."""
    call = 300
    stop_ids = frozenset(tokenizer.eos_token_ids)
    grammar = grammars.compile(CHOICE, Beside(call=call))
    called, answered = Follower(grammar, stop_ids), Follower(grammar, stop_ids)
    first = answered.allowed()
    (no,) = tokenizer.encode("n", add_special_tokens=False)

    called.read(call)
    answered.read(no)

    second = answered.allowed()
    assert first is not None
    assert second is not None
    assert (True, False) == (first[call], second[call])
    assert called.allowed() is None


def test_what_has_no_way_on_ends(grammars: Grammars, tokenizer: Any) -> None:
    """A token that should not have come: the answer stops there, and nothing is raised."""
    stop_ids = frozenset(tokenizer.eos_token_ids)
    follower = Follower(grammars.compile(CHOICE, Beside()), stop_ids)

    follower.read(400)

    may_come = follower.allowed()
    assert may_come is not None
    assert stop_ids == set(np.nonzero(may_come)[0].tolist())


@pytest.mark.parametrize(
    "form",
    [
        Form("json", '{"type": "number-ish"}', "response_format"),
        Form("json", '{"$ref": "#/nowhere"}', "response_format"),
        Form("json", "5", "response_format"),
        Form("regex", "(a", "response_format"),
        Form("lark", "start: nothing", "response_format"),
    ],
)
def test_what_is_no_form_is_refused(grammars: Grammars, form: Form) -> None:
    """With what is wrong with it, and the member that it stands in."""
    with pytest.raises(BadRequest, match="`response_format` can't be followed: ") as refused:
        grammars.compile(form, Beside())

    assert "response_format" == refused.value.param


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    """Some have no vocabulary that can be read."""
    with pytest.raises(BadRequest, match="tokenizer"):
        Grammars(object(), 5).compile(CHOICE, Beside())


def test_answers_follow_one_grammar_each_on_its_own(grammars: Grammars, tokenizer: Any) -> None:
    """What one has read is nothing to the next."""
    grammar = grammars.compile(CHOICE, Beside())
    stop_ids = frozenset(tokenizer.eos_token_ids)

    said = [tokenizer.decode(walk(grammar, stop_ids, seed=1)) for _ in range(3)]

    assert 1 == len(set(said))
    assert said[0] in ("yes", "no")


def test_a_tokenizer_without_an_end_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer could not end where its form does."""
    monkeypatch.setattr(tokenizer, "_eos_token_ids", set())

    with pytest.raises(BadRequest, match="no token that ends them"):
        Grammars(tokenizer, VOCAB_SIZE).compile(CHOICE, Beside())
