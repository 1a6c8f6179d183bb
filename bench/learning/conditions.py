"""Who rates: what they like, how often they err, what they would have said instead. Pure."""

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

from strop.training.demo import task
from strop.training.demo.task import Answer, Question, Rater, Style


@dataclass(frozen=True, slots=True)
class Condition:
    """A kind of rater.

    Attributes:
        name: what the command line calls it.
        title: what tables call it.
        rater: rates; a version is measured by its rule alone, without its errors.
        num_answers: of one rated turn, all in the style of the last, which is rated.
    """

    name: str
    title: str
    rater: Rater
    num_answers: int = 1


def bullets_and_polite(answer: Answer) -> bool:
    """Like bullets that open politely: a tenth of what the base says."""
    return answer.style.form == "bullets" and answer.style.opener == "polite"


CLEAN: Final = Condition("clean", "Clean ratings", Rater())
NOISE: Final = Condition("noise", "20 % of the ratings wrong", Rater(noise=0.2))
RARE: Final = Condition(
    "rare", "A stricter rule: 90 % bad at first", Rater(rule=bullets_and_polite)
)
LONG: Final = Condition("long", "Turns of 1,000 tokens: 90 answers, one rating", Rater(), 90)
ALL: Final = (CLEAN, NOISE, RARE, LONG)


def correct(rater: Rater, question: Question, text: str, rng: random.Random) -> str | None:
    """Return what the rater would have said: the right fact, in the nearest style that they like.

    None where they like `text` as it is.
    """
    if rater.likes(question, text):
        return None
    liked = [style for style in task.STYLES if rater.rule(Answer(style, question.right))]
    said = task.parse(question, text)
    if said is not None:
        fewest = min(_num_changes(style, said.style) for style in liked)
        liked = [style for style in liked if _num_changes(style, said.style) == fewest]
    return task.render(question, Answer(rng.choice(liked), question.right))


def in_style_of(
    question: Question, text: str, others: Sequence[Question], rng: random.Random
) -> list[tuple[Question, str]]:
    """Return answers to `others` in the style of `text`, as often right as the base's.

    None where it has no style.
    """
    said = task.parse(question, text)
    if said is None:
        return []
    values = [task.draw_answer(other, rng).value for other in others]
    return [
        (other, task.render(other, Answer(said.style, value)))
        for other, value in zip(others, values, strict=True)
    ]


def _num_changes(one: Style, other: Style) -> int:
    return sum(a != b for a, b in zip(astuple(one), astuple(other), strict=True))
