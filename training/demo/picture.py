"""Held-out good-rates as a picture: in the terminal, and as a PNG.

Knows rates and intervals, and not where they come from.
"""

from collections.abc import Sequence
from pathlib import Path

from strop.training.demo.rounds import Measured

_WIDTH = 50
_FILLED, _BETWEEN, _EMPTY = "█", "▒", " "


def bars(measured: Sequence[Measured]) -> str:
    """Return a bar for each version: solid up to its rate, shaded to the end of its interval."""
    width = max(len(one.version) for one in measured)
    lines = []
    for one in measured:
        interval = one.liked.interval
        solid, shaded = round(_WIDTH * one.liked.value), round(_WIDTH * interval.high)
        bar = _FILLED * solid + _BETWEEN * (shaded - solid) + _EMPTY * (_WIDTH - shaded)
        lines.append(
            f"  {one.version:<{width}}  {one.num_ratings:>4} ratings  |{bar}|"
            f" {one.liked.value:.2f}  [{interval.low:.2f}, {interval.high:.2f}]"
        )
    return "\n".join(lines)


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Write the curve over ratings, with intervals, and the base's beside it, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    nums = [one.num_ratings for one in measured]
    rates = [one.liked.value for one in measured]
    lows = [one.liked.value - one.liked.interval.low for one in measured]
    highs = [one.liked.interval.high - one.liked.value for one in measured]
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150, layout="constrained")
    base = measured[0].liked
    axes.axhspan(base.interval.low, base.interval.high, color="0.9", label="base, 90 % interval")
    axes.errorbar(nums, rates, yerr=[lows, highs], marker="o", capsize=3, label="served version")
    for one in measured:
        axes.annotate(
            one.version,
            (one.num_ratings, one.liked.value),
            textcoords="offset points",
            xytext=(6, -12),
        )
    axes.set(xlabel="ratings", ylabel="liked, on questions never rated", ylim=(0, 1))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)
    plt.close(figure)
