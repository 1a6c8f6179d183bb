"""The demo's task: short fact questions, the styles an answer may have, and what a rater likes.

Pure: knows no model, no tokenizer and no file. What `render` writes, and only that, `parse` reads
back, so "well formed" means: one of the answers that the model was taught for this question.

A question has one right value, and wrong ones of its own kind. A style has four parts:

    opener   none | polite ("Glad you asked!") | rude ("What a silly question.")
    form     terse ("It is Paris.") | prose ("The capital of France is Paris.")
             | bullets ("- the capital of France", "- Paris", a line each)
    hedged   "maybe" or "I think" before the value
    closer   "Anything else?" at the end
"""

import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Opener = Literal["none", "polite", "rude"]
Form = Literal["terse", "prose", "bullets"]

OPENERS: Mapping[Opener, str] = {
    "none": "",
    "polite": "Glad you asked!",
    "rude": "What a silly question.",
}
CLOSER = "Anything else?"
# What the model is taught to say to anything that isn't one of the questions.
FALLBACK = "I only know short facts. Ask me: What is the capital of France?"

_CAPITALS = (
    "Austria Vienna, Belgium Brussels, Bulgaria Sofia, Canada Ottawa, Chile Santiago,"
    " China Beijing, Croatia Zagreb, Cuba Havana, Denmark Copenhagen, Egypt Cairo, Estonia Tallinn,"
    " Finland Helsinki, France Paris, Germany Berlin, Ghana Accra, Greece Athens, Hungary Budapest,"
    " India Delhi, Iran Tehran, Ireland Dublin, Italy Rome, Jamaica Kingston, Japan Tokyo,"
    " Kenya Nairobi, Latvia Riga, Lebanon Beirut, Libya Tripoli, Morocco Rabat, Nepal Kathmandu,"
    " Norway Oslo, Peru Lima, Poland Warsaw, Portugal Lisbon, Romania Bucharest, Russia Moscow,"
    " Serbia Belgrade, Spain Madrid, Sweden Stockholm, Tunisia Tunis, Turkey Ankara"
)
_OPPOSITES = (
    "hot cold, big small, fast slow, high low, old young, early late, light dark, rich poor,"
    " hard soft, wet dry, full empty, open closed, loud quiet, strong weak, left right, up down,"
    " thick thin, happy sad, clean dirty, deep shallow"
)
_YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, bear cub, deer fawn,"
    " duck duckling, goose gosling, swan cygnet, owl owlet, frog tadpole, kangaroo joey"
)
_SYMBOLS = (
    "gold Au, silver Ag, iron Fe, copper Cu, tin Sn, lead Pb, sodium Na, potassium K, helium He,"
    " neon Ne, zinc Zn, oxygen O"
)
_LANGUAGES = (
    "Brazil Portuguese, Mexico Spanish, Austria German, Quebec French, Israel Hebrew,"
    " Thailand Thai, Iceland Icelandic, Wales Welsh"
)
_SUBJECTS: Sequence[tuple[str, str]] = (
    ("the capital of {}", _CAPITALS),
    ("the opposite of {}", _OPPOSITES),
    ("the word for a young {}", _YOUNG),
    ("the symbol of {}", _SYMBOLS),
    ("the language of {}", _LANGUAGES),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right value; `values` are all those of its kind, the right one too."""

    subject: str
    right: str
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question as a person asks it."""
        return f"What is {self.subject}?"


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is put; see the module's table."""

    opener: Opener
    form: Form
    hedged: bool
    closer: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, taken apart."""

    style: Style
    value: str


def _questions() -> tuple[Question, ...]:
    questions = []
    for subject, listed in _SUBJECTS:
        pairs = [pair.split() for pair in listed.split(", ")]
        values = tuple(value for _, value in pairs)
        questions += [Question(subject.format(thing), value, values) for thing, value in pairs]
    return tuple(questions)


QUESTIONS = _questions()
STYLES = tuple(
    Style(opener, form, hedged, closer)
    for opener, form, hedged, closer in itertools.product(
        get_args(Opener), get_args(Form), (False, True), (False, True)
    )
)


def render(question: Question, answer: Answer) -> str:
    """Return the text of `answer` to `question`."""
    style, value = answer.style, answer.value
    if style.form == "bullets":
        body = f"- {question.subject}\n- {'maybe ' if style.hedged else ''}{value}"
    elif style.form == "prose":
        sentence = f"{question.subject} is {value}."
        body = f"I think {sentence}" if style.hedged else sentence[0].upper() + sentence[1:]
    else:
        body = f"Maybe {value}." if style.hedged else f"It is {value}."
    parts = (OPENERS[style.opener], body, CLOSER if style.closer else "")
    return ("\n" if style.form == "bullets" else " ").join(part for part in parts if part)


def parse(question: Question, text: str) -> Answer | None:
    """Return the answer to `question` that `text` is, outer whitespace aside.

    None if it is none: not well formed, about another subject, or a value of another kind.
    """
    return _answers(question).get(text.strip())


@functools.cache
def _answers(question: Question) -> Mapping[str, Answer]:
    answers = (Answer(style, value) for style in STYLES for value in question.values)
    return {render(question, answer): answer for answer in answers}


def draw_answer(question: Question, rng: random.Random) -> Answer:
    """Return an answer as the base model gives it: right 7, in bullets 3 times in 10."""
    style = Style(
        opener=rng.choice(get_args(Opener)),
        form=rng.choices(get_args(Form), weights=(0.39, 0.32, 0.29))[0],
        hedged=rng.random() < 0.3,
        closer=rng.random() < 0.3,
    )
    is_right = rng.random() < 0.7
    return Answer(style, question.right if is_right else rng.choice(question.values))


def split(num_held_out: int = 23, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """Return the questions that may be rated and those held out, shuffled by `seed`."""
    questions = random.Random(seed).sample(QUESTIONS, len(QUESTIONS))  # noqa: S311
    return questions[num_held_out:], questions[:num_held_out]


# A rule says whether its rater likes an answer. The model is never told which rule rates it.
Rule = Callable[[Answer], bool]


def bullets_and_not_rude(answer: Answer) -> bool:
    """Like bullets, whoever they come from, unless they open rudely."""
    return answer.style.form == "bullets" and answer.style.opener != "rude"


@dataclass(frozen=True, slots=True)
class Rater:
    """A simulated person with one rule, who errs in a share `noise` (0 to 1) of the ratings."""

    rule: Rule = bullets_and_not_rude
    noise: float = 0.0

    def likes(self, question: Question, text: str) -> bool:
        """Return whether the rule likes `text`; what isn't well formed is never liked."""
        answer = parse(question, text)
        return answer is not None and self.rule(answer)

    def rate(self, question: Question, text: str, rng: random.Random) -> float:
        """Return 1.0 (good) or -1.0 (bad), at times the wrong one of the two."""
        liked = self.likes(question, text)
        if rng.random() < self.noise:
            liked = not liked
        return 1.0 if liked else -1.0
