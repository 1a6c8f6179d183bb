"""bench.learning: what is pure in it. What it measures is in docs/learning-results.md."""

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_values import answer, floats, unit

# The benchmark is no part of the installed package.
sys.path.append(str(Path(__file__).parents[1]))

from bench.learning import arms, conditions, report, results
from bench.learning.conditions import CLEAN, RARE
from bench.learning.demo import Said, Worth
from bench.learning.ratings import BASE_ID, prior, turn
from bench.learning.reinforceclaw import MovingBaseline, ReinforceClaw
from bench.learning.results import Result, Results
from bench.learning.strop_learner import changed
from bench.learning.trl_kto import balance
from strop.configs import demo_model
from strop.proxy.store.run_records import Prior
from strop.training import examples, presets
from strop.training.backends.base import Sampled
from strop.training.backends.base_files import BaseFiles
from strop.training.demo import task
from strop.training.demo.task import Answer, Style
from strop.training.examples import Example
from strop.training.rows import Target
from strop.training.tokenizer import BaseTokenizer

FRANCE = next(one for one in task.QUESTIONS if one.right == "Paris")
WORTH = Worth(
    good=0.25, right=0.5, well_formed=1.0, kl_base=0.0, base_nll=0.5, entropy=0.5, length=11.0
)


def said(text: str) -> Said:
    tokenizer = BaseTokenizer(demo_model())
    prompt = tokenizer.encode_chat({"messages": [{"role": "user", "content": FRANCE.text}]})
    ids = tokenizer.encode_answer(text)
    logprobs = np.full(len(ids), -0.5, np.float32)
    return Said(FRANCE, prompt, Sampled(ids, logprobs, logprobs), text)


def result(*good: float, seed: int = 0, **changes: Any) -> Result:
    """A play of strop under clean ratings with these good-rates after its rounds."""
    made = Result(
        arm="topr",
        condition="clean",
        seed=seed,
        worths=(WORTH, *(replace(WORTH, good=one) for one in good)),
        num_good=(8,) * len(good),
        states=("trained",) * len(good),
        num_steps=(20,) * len(good),
        cpu_s=(0.5,) * len(good),
    )
    return replace(made, **changes)


def book(*plays: Result) -> Results:
    return Results({one.key: one for one in plays})


def test_a_correction_keeps_what_is_liked_already() -> None:
    """A hedged, rude answer in bullets only loses its rudeness, and gets the right fact."""
    wrong = Answer(Style("rude", "bullets", hedged=True, closer=False), "Rome")

    corrected = conditions.correct(
        CLEAN.rater, FRANCE, task.render(FRANCE, wrong), random.Random(0)
    )

    assert corrected is not None
    parsed = task.parse(FRANCE, corrected)
    assert parsed is not None
    assert ("Paris", "bullets", True, False) == (
        parsed.value, parsed.style.form, parsed.style.hedged, parsed.style.closer
    )  # fmt: skip
    assert parsed.style.opener in ("none", "polite")


def test_what_is_no_answer_is_corrected_to_one_that_is_liked() -> None:
    """Whatever its style: there is none to keep."""
    corrected = conditions.correct(RARE.rater, FRANCE, "la la la", random.Random(0))

    assert corrected is not None
    assert RARE.rater.likes(FRANCE, corrected)


def test_a_liked_answer_is_not_corrected() -> None:
    """Nor is its wrong fact: the rater likes a style."""
    liked = Answer(Style("none", "bullets", hedged=False, closer=False), "Rome")

    corrected = conditions.correct(
        CLEAN.rater, FRANCE, task.render(FRANCE, liked), random.Random(0)
    )

    assert corrected is None


def test_the_stricter_rule_likes_a_third_of_the_bullets() -> None:
    """Those that open politely: 4 styles of 36, where the plain rule likes 8."""
    liked = [
        [style for style in task.STYLES if one.rater.rule(Answer(style, "Paris"))]
        for one in (CLEAN, RARE)
    ]

    assert [8, 4] == [len(styles) for styles in liked]
    assert set(liked[1]) < set(liked[0])


def test_a_rated_answer_is_read_by_the_trainers_own_code() -> None:
    """Ids and logprobs as sampled, nothing flagged; its correction is an example and a pair."""
    target = Target(BASE_ID, 1024, BaseTokenizer(demo_model()))

    rated = turn([said("It is Paris.")], -1.0, id_="1", version="base", correction="- Paris")
    found = examples.make([rated], target)

    assert ["rating", "correction", "pair"] == [one.kind for one in found.examples]
    assert -1.0 == found.examples[0].rating
    (row,) = found.examples[0].rows
    assert frozenset() == row.flags
    assert said("It is Paris.").sampled.ids == tuple(row.tokens.ids[row.tokens.num_prompt :])
    assert not found.left_out


def test_a_turn_of_many_answers_is_one_example() -> None:
    """One rating credits them all."""
    target = Target(BASE_ID, 1024, BaseTokenizer(demo_model()))
    answers = [said("It is Paris."), said("- the capital of France\n- Paris")]

    found = examples.make([turn(answers, 1.0, id_="1", version="base")], target)

    (one,) = found.examples
    assert [answer.sampled.ids for answer in answers] == [
        tuple(row.tokens.ids[row.tokens.num_prompt :]) for row in one.rows
    ]


def test_the_other_answers_of_a_turn_have_its_style() -> None:
    """So that one rating says something of all of them."""
    style = Style("polite", "bullets", hedged=True, closer=True)
    text = task.render(FRANCE, Answer(style, "Rome"))

    others = conditions.in_style_of(FRANCE, text, task.QUESTIONS[:3], random.Random(0))

    parsed = [task.parse(question, written) for question, written in others]
    assert [style] * 3 == [one.style for one in parsed if one is not None]


def test_the_prior_sums_ratings() -> None:
    """As strop's baseline takes it."""
    rated = [
        turn([said("It is Paris.")], rating, id_=str(i), version="base")
        for i, rating in enumerate([1.0, -1.0, -1.0])
    ]

    assert Prior(-1.0, 3, 3) == prior(rated)


def test_reinforceclaws_baseline_moves_by_a_hundredth() -> None:
    """From 0, after each rating: 1 - 0, then 1 - 0.01, then -1 - 0.0199."""
    baseline = MovingBaseline()
    rated = [Example("rating", (), "root", rating, ()) for rating in (1.0, 1.0, -1.0)]

    first = baseline(rated[:2], Prior(0.0, 0, 0))
    second = baseline(rated[2:], Prior(0.0, 0, 0))

    assert pytest.approx([1.0, 0.99]) == first
    assert pytest.approx([-1.0199]) == second


def test_reinforceclaws_loss_at_the_base_is_minus_the_advantage() -> None:
    """All ratios are 1: inside the band, and without KL."""
    made = unit(answer([-1.0, -2.0]), advantage=0.5)

    loss = ReinforceClaw()(made, (floats(-1.0, -2.0),))

    assert pytest.approx(-0.5) == loss.value


@pytest.mark.parametrize("shift", [0.1, -0.1, 1.0])
@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_reinforceclaws_gradient_is_the_difference(advantage: float, shift: float) -> None:
    """Its scale is not detached, so below, above and far above the band are cases of their own."""
    made = unit(answer([-1.0, -2.0]), advantage=advantage)
    policy = np.array([-1.0 + shift, -2.0 + shift / 2])
    objective = ReinforceClaw()

    for index in range(2):
        step = np.eye(2)[index] * 1e-5
        above, below = (objective(made, (policy + by,)).value for by in (step, -step))
        expected = (above - below) / 2e-5
        (gradient,) = objective(made, (policy,)).gradients
        assert expected == pytest.approx(gradient[index], abs=1e-4)


def test_a_change_of_a_preset_reaches_its_objective() -> None:
    """Fields of both are named alike, as in a preset's file."""
    preset = presets.load(presets.DEFAULT, BaseFiles(demo_model()).config)

    made = changed(preset, {"kl_stop": 9.0, "beta": 0.5})

    assert (9.0, 0.5, preset.lr) == (made.kl_stop, made.objective.beta, made.lr)


def test_an_unknown_change_of_a_preset_is_refused() -> None:
    """A misspelt one would change nothing, and be reported as if it had."""
    preset = presets.load(presets.DEFAULT, BaseFiles(demo_model()).config)

    with pytest.raises(ValueError, match="got kl_stopp"):
        changed(preset, {"kl_stopp": 9.0})


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """So that a run can go on where another ended."""
    path = tmp_path / "learning.json"
    found = book(result(0.5, 0.75), result(0.25, seed=1))
    found.cost, found.facts = {128: 0.25}, {"cores": "2"}

    results.save(found, path)

    assert found == results.load(path)


def test_where_nothing_was_played_there_is_no_result(tmp_path: Path) -> None:
    """The first run has no file."""
    assert Results() == results.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"well_formed": 0.86}, False),
        ({"well_formed": 0.84}, True),
    ],
)
def test_a_degenerate_version_no_longer_answers(changes: dict[str, float], expected: bool) -> None:
    """Fewer than 85 % of what it says is an answer to the question at all."""
    played = result(worths=(WORTH, replace(WORTH, **changes), WORTH))

    assert expected == played.is_degenerate


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"base_nll": 0.64}, False), ({"base_nll": 0.66}, True), ({"length": 1.0}, True),
     ({"entropy": 2.0}, True)],
)  # fmt: skip
def test_the_gates_bounds_are_tried_on_held_out_questions(
    changes: dict[str, float], expected: bool
) -> None:
    """The base's own surprise here is 0.5, and up to 0.65 is sound."""
    played = result(worths=(WORTH, replace(WORTH, **changes)))

    assert expected == played.is_out_of_bounds


def test_a_target_is_met_by_the_mean() -> None:
    """.5 of at least .5; one seed alone may lie below, and is shown."""
    target = report.Target("good-rate", "clean", report.good_after(40), 0.5, min_seeds=2)

    assert "holds" == report.outcome(target, [0.4, 0.6])
    assert "**does not hold**" == report.outcome(target, [0.4, 0.5])


def test_a_target_is_not_judged_by_too_few_seeds() -> None:
    """No degenerate run in 20 seeds takes 20 seeds."""
    (target,) = (one for one in report.TARGETS if one.min_seeds == 20)

    assert "not measured" == report.outcome(target, [0.0] * 19)
    assert "holds" == report.outcome(target, [0.0] * 20)
    assert "**does not hold**" == report.outcome(target, [0.0] * 19 + [1.0])


def test_one_play_has_no_spread() -> None:
    """What was played once says nothing of how much plays differ."""
    assert ["", "0.74", "0.50 ± 0.14 (0.40)"] == [*map(report.spread, ([], [0.74], [0.4, 0.6]))]


def test_the_tables_have_what_was_played_and_nothing_else() -> None:
    """One arm, two seeds, one condition; targets of others say so."""
    rates = (0.4, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.9)

    text = report.tables(book(result(*rates), result(*rates, seed=1)))

    assert "0.40 ± 0.00 (0.40)" in text
    assert "### Clean ratings" in text
    assert "### 20 %" not in text
    assert "### What a token costs" not in text
    assert 1 == text.count(arms.BY_NAME["topr"].title)
    assert arms.BY_NAME["dpo"].title not in text


def test_trl_is_told_to_weigh_both_sides_alike() -> None:
    """One liked, three disliked: the liked one weighs three."""
    assert {"desirable_weight": 3.0} == balance([True, False, False, False])
    assert {"undesirable_weight": 3.0} == balance([False, True, True, True])
    assert {} == balance([True, True])


def test_the_page_is_whole() -> None:
    """The tables of the last run stand between its markers."""
    page = (Path(__file__).parents[1] / "docs" / "learning-results.md").read_text()

    _, begin, rest = page.partition("<!-- bench: begin -->")
    between, end, _ = rest.partition("<!-- bench: end -->")

    assert begin
    assert end
    assert " | ".join(report.HEAD[:2]) in " ".join(between.split())
