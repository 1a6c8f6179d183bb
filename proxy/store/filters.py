"""Filters as conditions: the one that keeps the fewest rows finds them, the rest only check them.

Pure. Knows no table: SQLite's planner, which has no statistics of ours, would take the indexes of
two conditions for equally good.
"""

from collections.abc import Mapping, Sequence


def conditions(asked: Mapping[str, object], leads: Sequence[str]) -> tuple[list[str], list[object]]:
    """Return the conditions of a filter, and their parameters.

    Args:
        asked: the parameter of each condition, None where nothing is asked. A condition begins
            with its column.
        leads: those that may find rows by their index, the most selective first. The first that
            is asked does; a unary plus keeps all others from theirs.
    """
    given = {condition: value for condition, value in asked.items() if value is not None}
    leader = next((condition for condition in leads if condition in given), None)
    found = [condition if condition == leader else f"+{condition}" for condition in given]
    return found, list(given.values())
