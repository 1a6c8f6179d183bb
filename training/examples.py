"""Examples: rated turns as the store keeps them -> what the trainer learns from.

Pure, but for the tokenizer it is given. Does not know the objective, nor which sessions are held
out: it takes what it is given, and counts what it leaves out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from strop.proxy.store import prompt
from strop.proxy.store.records import Feedback
from strop.proxy.store.run_records import RatedTurn
from strop.training import pairs, rows
from strop.training.rows import Flag, LeftOut, Row, Target
from strop.training.sequences import Kind
from strop.training.training_set import HeldOutTurn

_MOSTLY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Example:
    """A rated turn, a correction, or a pair.

    Attributes:
        kind: which of these.
        feedback: id and revision of each rating behind it.
        session_root: the id of its session's first completion.
        rating: the mean of its standing ratings, in [-1, 1]; 1 for corrections and pairs.
        rows: the answers of the turn that can be learned from, oldest first; of a pair the
            preferred one and the other.
        flags: what is unusual about any of them.
    """

    kind: Kind
    feedback: tuple[tuple[str, int], ...]
    session_root: str
    rating: float
    rows: tuple[Row, ...]
    flags: frozenset[Flag] = frozenset()

    @property
    def version(self) -> str:
        """The version that gave the rated answer, which of a turn is the last."""
        return self.rows[-1].version

    def as_held_out(self) -> HeldOutTurn:
        """Return a rated turn as versions are compared on it."""
        return HeldOutTurn(self.session_root, self.rating, tuple(row.tokens for row in self.rows))


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples in the order of their turns, then the comparisons; and what was left out, by reason.

    `left_out` counts rated turns under a `LeftOut`, and corrections under `correction: ` and one.
    """

    examples: tuple[Example, ...]
    left_out: Counter[str]

    def counts(self) -> dict[str, int]:
        """Return numbers for people: by kind, left out by reason, flagged by flag."""
        kinds = Counter(f"{example.kind}s" for example in self.examples)
        flags = Counter(flag for one in self._rated() for flag in sorted(one.flags))
        return {
            **{kind: kinds[kind] for kind in ("ratings", "corrections", "pairs")},
            **{f"left out: {reason}": number for reason, number in self.left_out.items()},
            **{f"flagged: {flag}": number for flag, number in flags.items()},
        }

    def warnings(self) -> tuple[str, ...]:
        """Return what people should know before they train on this."""
        rated = self._rated()
        num_greedy = sum(Flag.GREEDY in one.flags for one in rated)
        if not rated or num_greedy <= _MOSTLY * len(rated):
            return ()
        return (
            f"{num_greedy} of {len(rated)} rated answers were sampled at temperature 0: the model"
            " says the same thing each time, so ratings have nothing to choose between; ask at"
            " temperature 1, at least now and then",
        )

    def _rated(self) -> list[Example]:
        return [one for one in self.examples if one.kind == "rating"]


class Maker:
    """Makes examples of one turn after the other, and keeps nothing else of it.

    Each turn gives one example with all its answers; each distinct correction gives one, and a
    pair with the answer it corrects; and answers to the same prompt that were rated with opposite
    signs give pairs.

    Args:
        target: what is to learn from them.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._examples: list[Example] = []
        self._left_out: Counter[str] = Counter()

    def add(self, turn: RatedTurn) -> None:
        """Take in what can be learned from `turn`."""
        found = [
            rows.read(stored.completion, index, self._target)
            for stored, index in zip(turn.completions, turn.choices, strict=True)
        ]
        usable = tuple(row for row in found if isinstance(row, Row))
        if usable:
            self._examples.append(_rating(turn, usable))
        else:
            # That of the answer which people saw last, and rated.
            self._left_out[str(found[-1])] += 1
        for text, given in _corrections(turn):
            corrected = _correction(turn, text, given, self._target)
            if isinstance(corrected, LeftOut):
                self._left_out[f"correction: {corrected}"] += 1
                continue
            self._examples.append(corrected)
            if isinstance(found[-1], Row):
                self._examples += _corrected_pair(corrected, found[-1])

    def made(self) -> Examples:
        """Return the examples of all turns."""
        compared = _comparisons(self._examples)
        return Examples((*self._examples, *compared), self._left_out.copy())


def make(turns: Iterable[RatedTurn], target: Target) -> Examples:
    """Return what `target` can learn from `turns`."""
    maker = Maker(target)
    for turn in turns:
        maker.add(turn)
    return maker.made()


def _rating(turn: RatedTurn, usable: tuple[Row, ...]) -> Example:
    flags = frozenset[Flag]().union(*(row.flags for row in usable))
    if len(usable) < len(turn.completions):
        flags |= {Flag.PARTIAL}
    mean = sum(one.rating for one in turn.feedback) / len(turn.feedback)
    return Example("rating", _ids(turn.feedback), turn.root, mean, usable, flags)


def _corrections(turn: RatedTurn) -> Iterator[tuple[str, list[Feedback]]]:
    """Yield each distinct correction of the rated answer, with those who gave it."""
    by_text: dict[str, list[Feedback]] = {}
    for one in turn.feedback:
        if one.correction:
            by_text.setdefault(one.correction, []).append(one)
    yield from by_text.items()


def _correction(
    turn: RatedTurn, text: str, given: list[Feedback], target: Target
) -> Example | LeftOut:
    """Return a correction as a liked answer to what the corrected one answered.

    It is nobody's sample, so it doesn't matter which model it corrects.
    """
    completion = turn.completions[-1].completion
    if prompt.is_redacted(text.encode()):
        return LeftOut.REDACTED
    if target.tokenizer is None:
        return LeftOut.NO_TOKENIZER
    asked = rows.read_prompt(completion, target)
    if isinstance(asked, LeftOut):
        return asked
    answer = rows.encode_answer(completion, asked, text, target.tokenizer)
    tokens = rows.join(asked, answer, target)
    if isinstance(tokens, LeftOut):
        return tokens
    row = Row(tokens, None, completion.version)
    return Example("correction", _ids(given), turn.root, 1.0, (row,))


def _corrected_pair(correction: Example, row: Row) -> list[Example]:
    (better,) = correction.rows
    if not pairs.differ(better.tokens, row.tokens):
        return []
    given, root = correction.feedback, correction.session_root
    return [Example("pair", given, root, 1.0, (better, row), row.flags)]


def _comparisons(examples: Sequence[Example]) -> list[Example]:
    """Return pairs of rated answers. A turn of several has no other with all the same prompts."""
    single = [
        one
        for one in examples
        if one.kind == "rating" and len(one.rows) == 1 and Flag.PARTIAL not in one.flags
    ]
    found = pairs.comparisons(
        [one.rows[0].tokens for one in single], [one.rating for one in single]
    )
    return [
        Example(
            "pair",
            (*single[a].feedback, *single[b].feedback),
            single[a].session_root,
            1.0,
            (single[a].rows[0], single[b].rows[0]),
            single[a].flags | single[b].flags,
        )
        for a, b in found
    ]


def _ids(feedback: Sequence[Feedback]) -> tuple[tuple[str, int], ...]:
    return tuple((one.id, one.revision) for one in feedback)
