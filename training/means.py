"""Means of figures by name, added up in parts. Knows not what the figures are of."""

from collections import defaultdict


class Means:
    """Means of figures by name: each over what has it, not over all."""

    def __init__(self) -> None:
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._nums: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, total: float, num: float = 1.0) -> None:
        """Add the sum of `num` values of one figure."""
        self._totals[name] += total
        self._nums[name] += num

    def update(self, other: "Means") -> None:
        """Add all that `other` has."""
        for name, num in other._nums.items():
            self.add(name, other._totals[name], num)

    def values(self) -> dict[str, float]:
        """Return the mean of each figure that has a value."""
        return {name: self._totals[name] / num for name, num in self._nums.items() if num}
