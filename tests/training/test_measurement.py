"""Tests of what is measured before the first step and kept for a resume, and of what is refused."""

import stat
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy_policy import ToyPolicy, log_softmax, tokens

from strop.training import training_set
from strop.training.backends.base import Weights
from strop.training.collection import NUM_JUDGING, Collected, nothing_fresh, refusal
from strop.training.examples import Example, Examples
from strop.training.figures import MAX_SAMPLES
from strop.training.measurement import Measured, Scored, measure
from strop.training.micro_batch import MicroBatch
from strop.training.mismatch import Mismatch
from strop.training.rows import LeftOut, Row
from strop.training.sequences import Floats, Kind, Tokens
from strop.training.stopping import Stopped
from strop.training.training_set import HeldOutTurn, TrainingSet

LOGITS = [0.0, 0.3, -0.2, 0.5]
TRAINED = [0.4, 0.3, -0.2, 0.1]
OLDER = [0.0, 0.9, 0.0, 0.0]
V1 = Path("v1")


class Versions(ToyPolicy):
    """A toy whose trained LoRA stands at v2, and that also knows v1."""

    def __init__(self) -> None:
        super().__init__(LOGITS)
        self.trained = np.array(TRAINED)
        self.asked: list[Weights] = []

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights = "trained") -> list[Floats]:
        """Return the logprobs of each answer; of v1 too."""
        self.asked.append(weights)
        if weights == V1:
            table = log_softmax(np.array(OLDER)).astype(np.float32)
            return [table[one.ids[one.num_prompt :]] for one in sequences]
        return super().logprobs(sequences, weights)


def under(logits: Sequence[float], answer: Sequence[int]) -> Floats:
    """The logprobs of an answer."""
    return log_softmax(np.array(logits))[list(answer)].astype(np.float32)


def example(
    answer: Sequence[int],
    version: str = "base",
    captured: Floats | None = None,
    kind: Kind = "rating",
    rating: float = 1.0,
) -> Example:
    """An example of one answer."""
    row = Row(tokens(answer), captured, version)
    return Example(kind, (("fb_1", 1),), "cmp_1", rating, (row,))


def measured(policy: ToyPolicy, *found: Example, parent: str = "v2") -> Measured:
    """What is measured of examples, when v1 and v2 are on disk."""
    versions = {"v1": V1, "v2": Path("v2")}
    return measure(policy, found, [0.5] * len(found), parent, versions, MicroBatch(1000))


def test_each_answer_is_scored_under_base_parent_and_sampler() -> None:
    """The sampler is the version that answered, and the parent is where training stands."""
    answer = [1, 2, 0]

    found = measured(Versions(), example(answer, "v1"), example(answer, "v2"), example(answer))

    samplers = [OLDER, TRAINED, LOGITS]
    for unit, sampler in zip(found.units, samplers, strict=True):
        np.testing.assert_allclose(unit.answers[0].base, under(LOGITS, answer), atol=1e-6)
        np.testing.assert_allclose(unit.answers[0].sampler, under(sampler, answer), atol=1e-6)
        np.testing.assert_allclose(unit.answers[0].parent, under(TRAINED, answer), atol=1e-6)
        assert (0.5, 1.0, "rating") == (unit.advantage, unit.rating, unit.kind)


def test_no_version_is_asked_twice() -> None:
    """Where the parent is also the sampler, its logprobs serve as both."""
    policy = Versions()

    measured(policy, example([1, 0], "v2"), example([2, 0], "v2"))

    assert ["base", "trained"] == sorted(map(str, policy.asked))


def scored(num_calls: int | None = None) -> tuple[Versions, list[Scored]]:
    """Score three answers one by one; so many calls, and then it is asked to stop."""
    policy, seen = Versions(), list[Scored]()
    found = [
        example([1, 2, 0], "v1"),
        example([2, 0], "v2"),
        example([1], "v9", under(LOGITS, [1])),
    ]

    def on_scored(now: Scored) -> None:
        seen.append(now)
        if len(policy.asked) == num_calls:
            raise Stopped

    versions = {"v1": V1, "v2": Path("v2")}
    one_by_one = MicroBatch(1)
    try:
        measure(policy, found, [0.5] * 3, "v2", versions, one_by_one, on_scored)
    except Stopped:
        assert num_calls is not None
    return policy, seen


def test_each_batch_says_how_far_the_scoring_is() -> None:
    """An answer counts once for each version that is asked about it, a long one for more."""
    policy, seen = scored()

    # v1 is asked about one, base and parent about all; the parent is also who sampled the second.
    assert 7 == len(policy.asked)
    assert [*range(8)] == [one.num for one in seen]
    assert {7} == {one.num_all for one in seen}
    sizes = [4, 3, 4, 3, 2, 4, 2]
    shares = [sum(sizes[:num]) / sum(sizes) for num in range(8)]
    assert pytest.approx(shares) == [one.share for one in seen]


@pytest.mark.parametrize("num_calls", [0, 1, 3])
def test_scoring_ends_at_the_batch_at_which_somebody_asks_it_to(num_calls: int) -> None:
    """A version may have been asked about thousands of answers."""
    policy, seen = scored(num_calls)

    assert num_calls == len(policy.asked)
    assert num_calls + 1 == len(seen)


def test_the_parent_may_be_the_base() -> None:
    """A first run continues no version; then base, parent and sampler are one."""
    policy = ToyPolicy(LOGITS)

    found = measured(policy, example([1, 2, 0]), parent="base")

    assert 1 == policy.num_calls
    np.testing.assert_array_equal(found.units[0].answers[0].base, found.units[0].answers[0].parent)


def test_how_far_training_has_moved_on_is_measured() -> None:
    """Per token, the parent against the version that sampled; 0 where that is the parent."""
    moved = np.abs(under(TRAINED, [1, 0]) - under(LOGITS, [1, 0]))

    fresh = measured(Versions(), example([1, 0], "v2"))
    mixed = measured(Versions(), example([1, 0], "v2"), example([1, 0], "base"))

    assert 0 == fresh.staleness
    assert pytest.approx(moved.mean() / 2, abs=1e-6) == mixed.staleness


def test_the_engines_logprobs_stand_in_for_a_version_that_is_gone() -> None:
    """And the parent's, where the engine gave none; neither says anything about mismatch."""
    captured = np.array([-1.0, -2.0], np.float32)

    found = measured(Versions(), example([1, 0], "v9", captured), example([1, 0], "v9"))

    np.testing.assert_array_equal(captured, found.units[0].answers[0].sampler)
    np.testing.assert_allclose(found.units[1].answers[0].sampler, under(TRAINED, [1, 0]), atol=1e-6)
    assert 2 == found.num_gone
    assert 0 == found.agreement.num_tokens


def test_tokens_on_which_engine_and_trainer_disagree_are_masked() -> None:
    """One of thirteen is off by a factor over 2; the others count."""
    answer = [1] * 12 + [0]
    captured = under(LOGITS, answer) + np.array([1.0] + [0.0] * 12, np.float32)

    found = measured(Versions(), example(answer, captured=captured))

    assert [False] + [True] * 12 == found.units[0].answers[0].keep.tolist()
    assert (13, 1) == (found.agreement.num_tokens, found.agreement.num_dropped)


def test_disagreement_everywhere_stops_the_run() -> None:
    """Then it is another template, version or model."""
    captured = under(LOGITS, [1, 2, 0]) - np.float32(2.0)

    with pytest.raises(Mismatch, match="chat template"):
        measured(Versions(), example([1, 2, 0], captured=captured))


def test_a_training_set_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    """Every array to the bit; the file is its owner's alone, as it holds conversations."""
    found = measured(Versions(), example([1, 2, 0], "v1"), example([3], rating=-0.5))
    whole = TrainingSet(
        units=found.units,
        feedback=(("fb_1", 1), ("fb_2", 3)),
        held_out=(HeldOutTurn("cmp_9", -1.0, (tokens([1, 0], 4), tokens([2]))),),
        prompts=((1, 2, 3), (4,)),
        counts={"ratings": 2},
    )

    training_set.save(whole, tmp_path / "set.npz")
    read = training_set.load(tmp_path / "set.npz")

    assert (whole.feedback, whole.prompts, whole.counts) == (
        read.feedback, read.prompts, read.counts,
    )  # fmt: skip
    for one, other in zip(whole.units, read.units, strict=True):
        assert (one.kind, one.advantage, one.rating) == (other.kind, other.advantage, other.rating)
        for mine, its in zip(one.answers, other.answers, strict=True):
            for name in ("base", "sampler", "parent", "keep"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))
            np.testing.assert_array_equal(mine.tokens.ids, its.tokens.ids)
            assert mine.tokens.num_prompt == its.tokens.num_prompt
    assert [("cmp_9", -1.0, [4, 1])] == [
        (turn.root, turn.rating, [one.num_prompt for one in turn.answers]) for turn in read.held_out
    ]
    assert 0o600 == stat.S_IMODE((tmp_path / "set.npz").stat().st_mode)
    assert ["set.npz"] == [path.name for path in tmp_path.iterdir()]


def test_a_training_set_is_written_without_a_copy_of_it_in_memory(tmp_path: Path) -> None:
    """A set of ten thousand conversations may take as much as the model."""
    turns = tuple(HeldOutTurn("cmp_9", 1.0, (tokens([1], 50_000),)) for _ in range(40))
    whole = TrainingSet((), (), turns, (), {})

    tracemalloc.start()
    training_set.save(whole, tmp_path / "set.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < whole.num_bytes / 4
    assert whole.num_bytes == training_set.load(tmp_path / "set.npz").num_bytes


def test_an_empty_part_of_a_training_set_comes_back_empty(tmp_path: Path) -> None:
    """A first run may have nothing held out."""
    whole = TrainingSet((), (), (), (), {})

    training_set.save(whole, tmp_path / "set.npz")

    assert whole == training_set.load(tmp_path / "set.npz")


GOOD, BAD = example([1], rating=1.0), example([1], rating=-1.0)
CORRECTION = example([1], kind="correction")


@pytest.mark.parametrize(
    ("objective", "found", "learn", "said"),
    [
        ("topr", [GOOD, BAD], [GOOD, BAD], None),
        ("topr", [BAD, CORRECTION], [BAD, CORRECTION], None),
        (
            "topr",
            [GOOD],
            [GOOD],
            "1 good and 0 bad answers, each by the mean of its ratings: topr compares",
        ),
        ("kto", [BAD], [BAD], "rate some good ones too, or correct some"),
        ("sft", [GOOD], [GOOD], None),
        ("sft", [BAD], [], "sft learns from answers rated good, or corrections"),
        ("dpo", [GOOD, BAD], [], "dpo learns from pairs"),
    ],
)
def test_a_run_without_enough_says_what_is_missing(
    objective: str, found: list[Example], learn: list[Example], said: str | None
) -> None:
    """What compares needs both signs, what imitates needs something to imitate."""
    reason = refusal(Examples(tuple(found), Counter()), learn, objective)

    assert said in reason if said is not None and reason is not None else reason is said


@pytest.mark.parametrize(
    ("num_learned", "num_rated", "said"),
    [(0, 0, "nothing is rated yet"), (7, 7, "all 7 were learned from already")],
)
def test_a_run_without_a_fresh_rating_says_what_became_of_them(
    num_learned: int, num_rated: int, said: str
) -> None:
    """Each of these is the whole story."""
    assert f"there is no rating to learn from: {said}" == nothing_fresh(num_learned, num_rated)


def test_a_run_without_a_fresh_rating_says_what_ratings_never_count() -> None:
    """How many were learned from is known; why the others weren't is one of these reasons."""
    reason = nothing_fresh(2, 9)

    assert "of 9 ratings 2 were learned from already; the others" in reason
    for why in ("held out", "another model", "its files changed", "before model.base was set"):
        assert why in reason


def test_held_out_turns_that_do_not_fit_into_memory_are_not_measured() -> None:
    """However long they are: what has trained is not lost at its gate. They are not counted."""
    short, long = (HeldOutTurn("cmp_1", 1.0, (tokens([1, 0]), tokens([1] * n))) for n in (9, 10))
    whole = Collected((), (), (short, long, short), (), {"held_out": 3, "ratings": 7}, ())

    found = whole.within(10)

    assert (short, short) == found.held_out
    assert {"held_out": 2, "ratings": 7} == found.counts


def test_a_candidate_is_compared_on_the_newest_sessions_that_fit() -> None:
    """However much was rated before, it doesn't outvote what people like now."""
    too_long = HeldOutTurn("cmp_new", 1.0, (tokens([1] * 10),))
    # Newest first, and a session may go on beside others.
    roots = [f"cmp_{num // 2}" for num in range(2 * NUM_JUDGING + 6)] + ["cmp_0", "cmp_old"]
    turns = [HeldOutTurn(root, -1.0, (tokens([1]),)) for root in roots]

    found = Collected((), (), (too_long, *turns), (), {}, ()).within(9)

    assert (*turns[: 2 * NUM_JUDGING], turns[-2]) == found.held_out
    assert {"held_out": 2 * NUM_JUDGING + 1} == found.counts


@pytest.mark.parametrize(
    ("longest", "expected"), [(1028, [2, 900, 5]), (1027, [2, 5]), (130, [2]), (100, [2])]
)
def test_prompts_that_leave_no_room_for_an_answer_are_not_asked(
    longest: int, expected: list[int]
) -> None:
    """The gate's samples have to fit, as held-out turns do; where none does, the shortest is."""
    prompts = tuple(np.ones(num, np.int32) for num in (2, 900, 5))

    found = Collected((), (), (), prompts, {}, ()).within(longest)

    assert expected == [len(ids) for ids in found.prompts]


def test_no_more_prompts_are_kept_than_the_gate_asks() -> None:
    """The first ones, which are those of held-out sessions; each once."""
    prompts = tuple(np.array([num // 2], np.int32) for num in range(2 * MAX_SAMPLES + 2))

    found = Collected((), (), (), prompts, {}, ()).within(1000)

    assert [*range(MAX_SAMPLES)] == [int(ids[0]) for ids in found.prompts]


def test_what_is_collected_knows_how_much_memory_it_takes() -> None:
    """Four bytes a token; a pair has the sequences of the answers that it compares."""
    rated = example([1, 2, 0])
    pair = Example("pair", (), "cmp_1", 1.0, (*rated.rows, *example([3]).rows))
    held_out = HeldOutTurn("cmp_9", 1.0, (tokens([1, 0], 4),))

    found = Collected((rated, pair), (0.5, 1.0), (held_out,), (), {}, ())

    assert 4 * (4 + 2 + 6) == found.num_bytes


def test_a_run_whose_ratings_all_had_to_be_left_out_says_why() -> None:
    """Each reason with its number."""
    left_out = Counter({str(LeftOut.TOO_LONG): 2, str(LeftOut.REDACTED): 1})

    reason = refusal(Examples((), left_out), [], "topr")

    too_long = "longer than the context, or than fits into memory: 2"
    assert f"no rating can be learned from ({too_long}, redacted: 1)" == reason


def test_a_run_without_good_answers_says_what_was_left_out() -> None:
    """A good one may be among it."""
    left_out = Counter({str(LeftOut.PROMPT_DIFFERS): 6})

    reason = refusal(Examples((BAD,), left_out), [BAD], "topr")

    assert reason is not None
    assert reason.endswith(
        "rate some good ones too, or correct some"
        " (left out: no prompt ids, and its messages encode to other ones: 6)"
    )
