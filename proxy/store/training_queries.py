"""Ratings as they are learned from: what is fresh, what is held out, and what each one credits.

Pure: makes queries and decodes their rows; runs and changes nothing. Only ratings of answers of one
known base are found here (see `binding`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from strop.adapters.rates import Rate
from strop.proxy.store import lineage
from strop.proxy.store.database import Query
from strop.proxy.store.run_records import FreshCounts, Prior
from strop.proxy.store.version_records import version_num

# CROSS JOIN keeps the order: the feedback first, then its current revision.
_REVISION: Final = """
CROSS JOIN feedback_revisions AS r ON r.feedback = f.id AND r.revision = f.revision"""
_IS_LESSON: Final = "f.state = 'standing' AND f.base = ? AND f.held_out = ?"
# All that stands on each of `answers`: one that several people rated is one, liked or not by their
# mean, whose sign is that of the sum.
_ALL_RATINGS: Final = f"""FROM answers CROSS JOIN feedback AS f
ON f.completion = answers.completion AND f.choice = answers.choice AND f.state = 'standing'
{_REVISION} GROUP BY answers.completion, answers.choice"""
# What nobody has learned, and what only versions beside the lineage have: they are few.
_FRESH: Final = f"""fresh (num) AS (
    SELECT f.num FROM feedback AS f
    WHERE f.state = 'standing' AND f.base = ? AND f.held_out = 0 AND f.learned = 0
    UNION ALL
    SELECT DISTINCT f.num FROM versions AS v CROSS JOIN version_feedback AS o ON o.version = v.num
    CROSS JOIN feedback AS f ON f.id = o.feedback
    WHERE v.num NOT IN (SELECT version FROM lineage) AND f.state = 'standing' AND f.base = ?
    AND f.held_out = 0 AND f.learned = 1 AND NOT {lineage.LEARNED}
)"""


@dataclass(frozen=True, slots=True)
class Rated:
    """A rated choice, and its session's first completion."""

    completion: str
    choice: int
    root: str


@dataclass(frozen=True, slots=True)
class Step:
    """A choice that was given on the way to the completion `rated`, in the same turn."""

    rated: str
    completion: str
    choice: int


NEWEST: Final = Rated("\U0010ffff", 0, "")
"""What every rated choice comes before, in the order of the ids."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """Which ratings are fresh: those that no version of a lineage has learned from.

    Attributes:
        active: the version that the lineage ends with, or `base`.
        base: the identity of the base.
    """

    active: str
    base: str

    def counts(self, since_ms: int) -> Query[FreshCounts]:
        """Return the query for the answers with ratings that came, or were revised, after that.

        As the trainer reads them: one that several people rated is one, good or bad by the mean of
        all that stands on it.
        """
        sql = f"""{lineage.OF_VERSION}, {_FRESH}, answers AS (
    SELECT f.completion, f.choice, max(r.created_ms) AS newest_ms
    FROM fresh CROSS JOIN feedback AS f ON f.num = fresh.num {_REVISION}
    WHERE r.created_ms > ? GROUP BY f.completion_num, f.choice
)
SELECT count(*) FILTER (WHERE total > 0), count(*) FILTER (WHERE total < 0),
count(*) FILTER (WHERE is_corrected), count(*), max(newest_ms)
FROM (
    SELECT sum(r.rating) AS total, max(r.correction IS NOT NULL) AS is_corrected, newest_ms
    {_ALL_RATINGS}
) AS rated"""
        parameters = (version_num(self.active), self.base, self.base, since_ms)
        return Query(sql, parameters, lambda row: FreshCounts(*row))

    def versions(self) -> Query[str]:
        """Return the query for the versions whose answers the fresh ratings are of."""
        sql = f"""{lineage.OF_VERSION}, {_FRESH}
SELECT DISTINCT c.version FROM fresh CROSS JOIN feedback AS f ON f.num = fresh.num
CROSS JOIN completions AS c ON c.num = f.completion_num"""
        parameters = (version_num(self.active), self.base, self.base)
        return Query(sql, parameters, lambda row: str(row[0]))

    def choices(self, limit: int, before: Rated = NEWEST) -> Query[Rated]:
        """Return the query for up to `limit` freshly rated choices, newest completions first."""
        sql = f"{lineage.OF_VERSION} {_choices(f'AND NOT {lineage.LEARNED}')}"
        num = version_num(self.active)
        parameters = (num, self.base, False, before.completion, before.choice, limit)
        return Query(sql, parameters, lambda row: Rated(*row))


def held_out_choices(base: str, limit: int, before: Rated = NEWEST) -> Query[Rated]:
    """Return the query for up to `limit` rated choices that are held out, newest first."""
    parameters = (base, True, before.completion, before.choice, limit)
    return Query(_choices(""), parameters, lambda row: Rated(*row))


def prior(base: str) -> Query[Prior]:
    """Return the query for all rated answers of a base, none held out."""
    sql = f"""SELECT coalesce(sum(rating), 0.0), count(*), coalesce(sum(num_ratings), 0)
FROM (
    SELECT avg(r.rating) AS rating, count(*) AS num_ratings
    FROM feedback AS f INDEXED BY feedback_standing {_REVISION}
    WHERE {_IS_LESSON} GROUP BY f.completion, f.choice
)"""
    return Query(sql, (base, False), lambda row: Prior(*row))


# Held-out ratings count too; those of 0 say neither.
_LIKING: Final = """FROM feedback AS f CROSS JOIN completions AS c ON c.num = f.completion_num
WHERE f.state = 'standing' AND f.base = ? AND f.sign <> 0"""


def live_rates(base: str) -> Query[tuple[str, Rate]]:
    """Return the query for how each version's own answers were rated."""
    sql = f"""SELECT c.version, count(*) FILTER (WHERE f.sign > 0), count(*)
{_LIKING} GROUP BY c.version"""
    return Query(sql, (base,), lambda row: (row[0], Rate(row[1], row[2])))


def rates_before(version: str, at_ms: int, *, base: str, most: int) -> Query[Rate]:
    """Return the query for how the newest `most` rated answers of a version before then are liked.

    One rate for each session that has any; see `_rates_beside`.
    """
    return _rates_beside(version, "f.completion_ms < ?", "DESC", base, at_ms, most)


def rates_from(version: str, at_ms: int, *, base: str, most: int) -> Query[Rate]:
    """Return the query for how the first `most` rated answers of a version from then on are liked.

    One rate for each session that has any; see `_rates_beside`.
    """
    return _rates_beside(version, "f.completion_ms >= ?", "ASC", base, at_ms, most)


def _rates_beside(
    version: str, side: str, order: str, base: str, at_ms: int, most: int
) -> Query[Rate]:
    # Of several ratings of an answer the first stands for it, so that no more answers are read.
    sql = f"""WITH answers AS (
    SELECT f.completion, f.choice, f.root {_LIKING} AND {side} AND c.version = ? AND NOT EXISTS (
        SELECT 1 FROM feedback AS before
        WHERE before.completion = f.completion AND before.choice = f.choice
        AND before.state = 'standing' AND before.sign <> 0 AND before.num < f.num
    )
    ORDER BY f.completion_ms {order} LIMIT ?
)
SELECT count(*) FILTER (WHERE total > 0), count(*)
FROM (
    SELECT answers.root, sum(r.rating) AS total {_ALL_RATINGS} HAVING total <> 0
) AS rated
GROUP BY root"""
    return Query(sql, (base, at_ms, version, most), lambda row: Rate(*row))


def standing(ids: Sequence[str]) -> Query[tuple[str, int]]:
    """Return the query for those of some feedback that stand, with their current revisions."""
    places = ", ".join("?" * len(ids))
    sql = f"SELECT id, revision FROM feedback WHERE id IN ({places}) AND state = 'standing'"
    return Query(sql, ids, lambda row: (row[0], row[1]))


def num_recorded(ids: Sequence[str]) -> Query[int]:
    """Return the query for how many of some completions are there."""
    places = ", ".join("?" * len(ids))
    sql = f"SELECT count(*) FROM completions WHERE id IN ({places})"
    return Query(sql, ids, lambda row: int(row[0]))


def steps(rated: Sequence[str]) -> Query[Step]:
    """Return the query for what was answered before each completion in its turn, oldest first."""
    places = ", ".join("?" * len(rated))
    sql = f"""WITH RECURSIVE steps (rated, completion, choice, num_after) AS (
    SELECT id, id, NULL, 0 FROM completions WHERE id IN ({places})
    UNION ALL
    SELECT steps.rated, p.id, c.parent_choice, steps.num_after + 1
    FROM steps CROSS JOIN completions AS c ON c.id = steps.completion
    CROSS JOIN completions AS p ON p.id = c.parent
    WHERE p.turn = c.turn
)
SELECT rated, completion, choice FROM steps WHERE num_after > 0 ORDER BY rated, num_after DESC"""
    return Query(sql, rated, lambda row: Step(*row))


def _choices(condition: str) -> str:
    # The index of what stands has them in this order; any other would sort all for each page.
    return f"""SELECT f.completion, f.choice, f.root
FROM feedback AS f INDEXED BY feedback_standing
WHERE {_IS_LESSON} {condition} AND (f.completion, f.choice) < (?, ?)
GROUP BY f.completion, f.choice ORDER BY f.completion DESC, f.choice DESC LIMIT ?"""
