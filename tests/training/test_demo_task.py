"""The demo's task: rendering and parsing are inverse, and the rule likes what it says."""

import itertools
import random

import pytest

from strop.training.demo import corpus, task
from strop.training.demo.task import QUESTIONS, STYLES, Answer, Rater, Style

FRANCE = QUESTIONS[12]


def test_there_are_94_questions_each_with_its_own_text() -> None:
    """The task asks 94 different questions."""
    assert 94 == len(QUESTIONS)
    assert 94 == len({question.text for question in QUESTIONS})


def test_a_right_value_is_one_of_the_values_of_its_kind() -> None:
    """The values of a question are distinct, and the right one is among them."""
    for question in QUESTIONS:
        assert question.right in question.values
        assert len(set(question.values)) == len(question.values)


def test_every_answer_is_read_back_from_its_text() -> None:
    """`parse` inverts `render` for every question, style and value."""
    for question in QUESTIONS:
        for style in STYLES:
            for value in question.values:
                answer = Answer(style, value)

                text = task.render(question, answer)

                assert answer == task.parse(question, text)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (Style("none", "terse", False, False), "It is Paris."),
        (Style("none", "terse", True, True), "Maybe Paris. Anything else?"),
        (Style("polite", "prose", False, False), "Glad you asked! The capital of France is Paris."),
        (
            Style("rude", "prose", True, True),
            "What a silly question. I think the capital of France is Paris. Anything else?",
        ),
        (Style("none", "bullets", False, False), "- the capital of France\n- Paris"),
        (
            Style("polite", "bullets", True, True),
            "Glad you asked!\n- the capital of France\n- maybe Paris\nAnything else?",
        ),
    ],
)
def test_a_style_is_written_as_documented(style: Style, text: str) -> None:
    """Each part of a style has one wording and one place."""
    assert text == task.render(FRANCE, Answer(style, "Paris"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "The capital of Spain is Madrid.",  # another subject
        "It is cold.",  # a value of another kind
        "- the capital of France\n- Paris\n- Lyon",
        "Glad you asked! Glad you asked! It is Paris.",
        "Anything else? It is Paris.",
        "- the capital of France - Paris",
        task.FALLBACK,
    ],
)
def test_what_no_style_writes_is_not_well_formed(text: str) -> None:
    """`parse` gives None for any other text."""
    assert task.parse(FRANCE, text) is None


def test_outer_whitespace_does_not_matter() -> None:
    """An answer is well formed with whitespace around it."""
    assert Answer(STYLES[0], "Paris") == task.parse(FRANCE, "\n It is Paris. \n")


def test_the_rule_likes_bullets_that_are_not_rude() -> None:
    """Of 36 styles the rule likes the 8 in bullets with a polite opener or none."""
    rater = Rater()

    liked = [
        style for style in STYLES if rater.likes(FRANCE, task.render(FRANCE, Answer(style, "Rome")))
    ]

    assert 8 == len(liked)
    assert {("bullets", "none"), ("bullets", "polite")} == {(s.form, s.opener) for s in liked}


def test_what_is_not_well_formed_is_rated_bad() -> None:
    """A rater without noise gives 1 to what it likes and -1 to all else, gibberish too."""
    rng = random.Random(0)

    assert 1.0 == Rater().rate(FRANCE, "- the capital of France\n- Rome", rng)
    assert -1.0 == Rater().rate(FRANCE, "It is Paris.", rng)
    assert -1.0 == Rater().rate(FRANCE, "- - -", rng)


def test_noise_flips_its_share_of_the_ratings() -> None:
    """A rater with noise 0.2 errs in about a fifth of its ratings, either way."""
    rater, rng = Rater(noise=0.2), random.Random(0)

    bad = [rater.rate(FRANCE, "It is Paris.", rng) for _ in range(1000)]
    good = [rater.rate(FRANCE, "- the capital of France\n- Paris", rng) for _ in range(1000)]

    assert 160 <= bad.count(1.0) <= 240
    assert 160 <= good.count(-1.0) <= 240


def test_the_split_covers_all_questions_once() -> None:
    """Rated and held-out questions are disjoint, all there are, and the same for a seed."""
    rated, held_out = task.split()

    assert (71, 23) == (len(rated), len(held_out))
    assert set(QUESTIONS) == {*rated, *held_out}
    assert (rated, held_out) == task.split()
    assert (rated, held_out) != task.split(seed=1)


def test_answers_are_drawn_so_that_the_rule_likes_a_fifth() -> None:
    """The corpus is right 7 times in 10 and pleases the rule about 2 times in 10."""
    rng = random.Random(0)

    answers = [task.draw_answer(FRANCE, rng) for _ in range(4000)]

    assert 0.17 <= sum(map(task.bullets_and_not_rude, answers)) / 4000 <= 0.22
    assert 0.68 <= sum(answer.value == "Paris" for answer in answers) / 4000 <= 0.74


def test_every_turn_of_a_chat_of_the_corpus_ends_with_the_assistant() -> None:
    """A chat is an optional system message, then messages each answered by the assistant."""
    rng = random.Random(0)

    for _ in range(500):
        roles = [message["role"] for message in corpus.chat(rng)]

        turns = roles[1:] if roles[0] == "system" else roles
        assert turns
        assert all(role in ("user", "tool") for role in turns[::2])
        assert ["assistant"] * (len(turns) // 2) == turns[1::2]


def test_the_corpus_has_well_formed_answers_to_questions_and_the_fallback_to_the_rest() -> None:
    """What follows a question is one of its answers; what follows anything else is the fallback."""
    rng = random.Random(1)
    questions = {question.text.removesuffix("?"): question for question in QUESTIONS}

    for _ in range(500):
        messages = corpus.chat(rng)
        for asked, answered in itertools.pairwise(messages):
            if answered["role"] == "assistant":
                question = questions.get(asked["content"].removesuffix("?"))
                if question is None:
                    assert task.FALLBACK == answered["content"]
                else:
                    assert task.parse(question, answered["content"]) is not None
