"""Results: every play so far, in one JSON file with a line for each, so that a run can go on.

Reads and writes that file; plays nothing. Says which plays went wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from bench.learning.demo import Worth
from bench.learning.play import NUM_RATINGS, Played
from strop.training.gate import ENTROPY_RATIO, LENGTH_RATIO, max_base_nll

Key = tuple[str, str, int]
"""Arm, condition, seed."""

MIN_WELL_FORMED: Final = 0.85
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Result:
    """One play. `worths` has the base first, then what served after each round.

    `states`, `num_good`, `num_steps` and `cpu_s` have one value for each round.
    """

    arm: str
    condition: str
    seed: int
    worths: tuple[Worth, ...]
    num_good: tuple[int, ...]
    states: tuple[str, ...]
    num_steps: tuple[int, ...]
    cpu_s: tuple[float, ...]

    @classmethod
    def of(cls, key: Key, played: Played) -> "Result":
        """Return what is kept of a play."""
        learned = [one.learned for one in played.rounds]
        return cls(
            *key,
            worths=(played.base, *(one.worth for one in played.rounds)),
            num_good=tuple(one.num_good for one in played.rounds),
            states=tuple(one.state for one in learned),
            num_steps=tuple(one.num_steps for one in learned),
            cpu_s=tuple(one.cpu_s for one in learned),
        )

    @property
    def key(self) -> Key:
        """What it is a result of."""
        return self.arm, self.condition, self.seed

    def after(self, num_ratings: int) -> Worth:
        """Return what the version is worth that serves after so many ratings."""
        return self.worths[num_ratings // NUM_RATINGS]

    @property
    def is_degenerate(self) -> bool:
        """Whether any version that served can hardly answer any more, whatever the style."""
        return any(one.well_formed < MIN_WELL_FORMED for one in self.worths[1:])

    @property
    def is_out_of_bounds(self) -> bool:
        """Whether any fails the gate's tests of fresh samples, here on held-out questions."""
        base, *served = self.worths
        return any(
            one.base_nll > max_base_nll(base.base_nll)
            or one.length / base.length not in LENGTH_RATIO
            or one.entropy / base.entropy not in ENTROPY_RATIO
            for one in served
        )


@dataclass(slots=True)
class Results:
    """All that was measured so far.

    Attributes:
        plays: by what they are of.
        cost: CPU milliseconds for 1,000 tokens of training, by sequence length.
        facts: what the last of it was measured on.
    """

    plays: dict[Key, Result] = field(default_factory=dict)
    cost: dict[int, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def load(path: Path) -> Results:
    """Return what is in the file; nothing where there is none."""
    if not path.exists():
        return Results()
    whole = orjson.loads(path.read_bytes())
    plays = map(_of_json, whole["plays"])
    cost = {int(length): spent for length, spent in whole["cost"].items()}
    return Results({one.key: one for one in plays}, cost, whole["facts"])


def save(results: Results, path: Path) -> None:
    """Write them to `path`, which then has all of them or is as it was."""
    plays = [orjson.dumps(_to_json(results.plays[key])) for key in sorted(results.plays)]
    cost = {str(length): round(spent, _DIGITS) for length, spent in results.cost.items()}
    temporary = path.with_suffix(".part")
    temporary.write_bytes(
        b'{"facts": %s,\n"cost": %s,\n"plays": [\n%s\n]}\n'
        % (orjson.dumps(results.facts), orjson.dumps(cost), b",\n".join(plays))
    )
    temporary.rename(path)


def _to_json(result: Result) -> dict[str, Any]:
    """Return columns rather than rows, rounded: a quarter of the size."""
    fields = asdict(result)
    worths: Sequence[dict[str, float]] = fields.pop("worths")
    columns = {name: [round(one[name], _DIGITS) for one in worths] for name in worths[0]}
    return fields | {"cpu_s": [round(one, _DIGITS) for one in result.cpu_s], "worths": columns}


def _of_json(fields: dict[str, Any]) -> Result:
    columns = fields.pop("worths")
    rows = zip(*columns.values(), strict=True)
    worths = tuple(Worth(**dict(zip(columns, row, strict=True))) for row in rows)
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Result(worths=worths, **plain)
