"""The probe: whether an engine that was asked what a version must answer serves that version.

One judgement over pure values. Asks no engine and runs no model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from strop.adapters.probe_values import Item, Judgement, Measured, Outcome, Probe

__all__ = [
    "BADNESS",
    "MIN_TOKENS",
    "Item",
    "Judgement",
    "Measured",
    "Outcome",
    "Probe",
    "judge",
]

MIN_TOKENS = 16
"""Fewer tokens than this decide nothing: noise in 16 dimensions mimics a version once in 10⁵."""

_OTHERS = ("parent", "base")
# Errors are mostly far below the largest: their root mean square is about a quarter of it.
_RMS_OF_TOLERANCE = 0.25
# Where every error is as large as the tolerance allows (uniform within it), the mean square root is
# 0.58 of it; with few tokens it scatters.
_MAX_RMS = 0.6
_OUTLIER = 4.0
_MARGIN = 3.0
_NEARER = 0.25
_MAX_SHARE = 0.2
_SURE = 6.0


def judge(probe: Probe, measured: Sequence[Measured], *, tolerance: float) -> Judgement:
    """Return whether the engine serves the version that `probe` is of.

    Three measurements are judged, each alone: greedy answers with a cold cache, with a warm one,
    and the scores of the probe's own ids where the engine gives them. The worst verdict stands.

    A greedy answer counts up to where it leaves the probe's ids. It may leave them where the margin
    is within three tolerances, which noise on both tokens can turn; anywhere else the version is
    another. A measurement is

    - `failed` where it lies beyond the tolerance from the candidate (root mean square over 0.6 of
      it, or one token beyond four), or nearer to parent or base: a mean squared error under a
      quarter of the candidate's, over all tokens or one item's; or clearly part of the way to them;
    - `unproven` with fewer than 16 tokens;
    - `proven` where the candidate's mean squared error is under a quarter of both the parent's and
      the base's, and they lie apart by more than half the tolerance (twice the noise);
    - `indistinguishable` otherwise.

    Where `base_scored` is given, the engine's own base is taken as the reference: what it differs
    by from the probe's is subtracted token by token, and the tolerance grows by three times its
    root mean square: where a version's noise has nothing to do with its base's, what is left is √2
    times as large as either, and its tails are long.

    Args:
        probe: what the version must answer.
        measured: what the engine did with each of the probe's items, in their order.
        tolerance: the largest error of one logprob, in nats; see `tolerances`.
    """
    if not probe.items or len(measured) != len(probe.items):
        return Judgement(
            "unproven", f"{len(measured)} of {len(probe.items)} prompts were measured", {}, 0
        )
    items: Sequence[Item] = probe.items
    if any(item.parent is not None for item in items):
        items = [replace(item, parent=item.parent or item.base) for item in items]
    pairs = [*zip(items, measured, strict=True)]
    if not all(map(math.isfinite, _logprobs_of(measured))):
        return Judgement("failed", "the engine returned a logprob that is no number", {}, 0)
    offsets = [_offsets(item, each) for item, each in pairs]
    raw = [offset for each in offsets if each is not None for offset in each]
    tolerance += 3 * _rms(raw)
    cold = _generated(pairs, offsets, tolerance, "cold")
    warm = _generated(pairs, offsets, tolerance, "warm")
    verdicts = [_verdict(cold, tolerance, has_offsets=bool(raw))]
    warm_verdict = _verdict(warm, tolerance, has_offsets=bool(raw))
    if warm_verdict.outcome == "failed" and verdicts[0].outcome != "failed":
        return replace(
            warm_verdict,
            reason="right with a cold prefix cache, wrong with a warm one: the engine reuses what "
            f"it computed with other weights ({warm_verdict.reason})",
        )
    verdicts.append(warm_verdict)
    if any(each.scored is not None for each in measured):
        verdicts.append(_verdict(_scored(pairs, offsets), tolerance, has_offsets=bool(raw)))
    return max(verdicts, key=lambda verdict: BADNESS[verdict.outcome])


BADNESS: Mapping[Outcome, int] = {"proven": 0, "indistinguishable": 1, "unproven": 2, "failed": 3}
"""Of several judgements, the one with the most stands."""


@dataclass(frozen=True, slots=True)
class _Token:
    """One logprob that the engine gave, offset subtracted, and what each version gives."""

    observed: float
    candidate: float
    others: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Measurement:
    """The tokens of each item that count, and why the ids are wrong, where they are."""

    name: str
    items: tuple[tuple[_Token, ...], ...]
    wrong_ids: str | None = None

    @property
    def tokens(self) -> tuple[_Token, ...]:
        return tuple(token for item in self.items for token in item)


def _verdict(measurement: _Measurement, tolerance: float, *, has_offsets: bool) -> Judgement:
    tokens = measurement.tokens
    if not tokens:
        outcome: Outcome = "unproven" if measurement.wrong_ids is None else "failed"
        reason = measurement.wrong_ids or "the engine gave no logprobs of the probe's tokens"
        return Judgement(outcome, f"{measurement.name}: {reason}", {}, 0)
    outcome, reason = _outcome(measurement, tolerance, has_offsets=has_offsets)
    return Judgement(outcome, f"{measurement.name}: {reason}", _errors(tokens), len(tokens))


def _outcome(
    measurement: _Measurement, tolerance: float, *, has_offsets: bool
) -> tuple[Outcome, str]:
    tokens = measurement.tokens
    errors = _errors(tokens)
    others = [name for name in _OTHERS if name in errors]
    told_apart = [name for name in others if _told_apart(tokens, name, tolerance)]
    rms, worst = math.sqrt(errors["candidate"]), max(abs(t.observed - t.candidate) for t in tokens)
    said = f"{len(tokens)} tokens, {rms:.2g} nats from the candidate (root mean square)"
    nearest = min(told_apart, key=errors.__getitem__, default=None)
    if nearest is not None and errors[nearest] < _NEARER * errors["candidate"]:
        return (
            "failed",
            f"the engine serves the {nearest}: {said}, {_away(errors, nearest)} from it",
        )
    if measurement.wrong_ids is not None:
        return "failed", measurement.wrong_ids
    if len(tokens) < MIN_TOKENS:
        return "unproven", f"only {len(tokens)} tokens can be compared; {MIN_TOKENS} are needed"
    most = _MAX_RMS * tolerance * (1 + 2 / math.sqrt(len(tokens)))
    if rms > most or worst > _OUTLIER * tolerance:
        return "failed", (
            f"the engine serves neither the candidate nor the {' or the '.join(others)}: {said}, "
            f"{worst:.2g} at most; expected {most:.2g} and {_OUTLIER * tolerance:.2g}"
        )
    for place, item in enumerate(measurement.items):
        if len(item) >= MIN_TOKENS and (name := _mistaken(item, tolerance)) is not None:
            return "failed", f"the engine answers prompt {place} as the {name}"
    for name in told_apart:
        share = _share(tokens, name)
        if share is not None and not has_offsets:
            return "failed", f"the engine's logprobs lie {share:.0%} of the way to the {name}"
    close = {n for n in others if n not in told_apart or errors["candidate"] >= _NEARER * errors[n]}
    # One item by itself may be too alike to fail, and yet be another version's.
    whole = [item for item in measurement.items if len(item) >= MIN_TOKENS]
    close |= {name for item in whole if (name := _mistaken(item, 0.0)) is not None}
    if close:
        near = ", ".join(f"the {name} {_apart(tokens, name):.2g}" for name in sorted(close))
        return "indistinguishable", (
            f"{said}; too near to be told from it with a tolerance of {tolerance:.2g}: {near} nats"
        )
    away = ", ".join(f"the {name} is {_away(errors, name)} away" for name in others)
    return "proven", f"{said}; {away}"


def _errors(tokens: Sequence[_Token]) -> dict[str, float]:
    """Return the mean squared difference to each version, in nats²."""
    errors = {"candidate": _mean_square([t.observed - t.candidate for t in tokens])}
    for name in tokens[0].others:
        errors[name] = _mean_square([t.observed - t.others[name] for t in tokens])
    return errors


def _mistaken(tokens: Sequence[_Token], tolerance: float) -> str | None:
    """Return which other version answered, where one clearly did."""
    errors = _errors(tokens)
    for name in sorted(tokens[0].others, key=errors.__getitem__):
        if errors[name] < _NEARER * errors["candidate"] and _told_apart(tokens, name, tolerance):
            return name
    return None


def _told_apart(tokens: Sequence[_Token], name: str, tolerance: float) -> bool:
    """Return whether candidate and another version differ by more than twice the noise."""
    return _apart(tokens, name) >= 2 * _RMS_OF_TOLERANCE * tolerance


def _apart(tokens: Sequence[_Token], name: str) -> float:
    return _rms([token.others[name] - token.candidate for token in tokens])


def _share(tokens: Sequence[_Token], name: str) -> float | None:
    """Return how far towards another version the logprobs lie, where that is no accident.

    The slope of observed - candidate over other - candidate, by least squares through zero: noise
    averages out of it, so that it shows a mixture which the errors alone would let pass.
    """
    off = [token.observed - token.candidate for token in tokens]
    way = [token.others[name] - token.candidate for token in tokens]
    length = math.fsum(x * x for x in way)
    share = math.fsum(x * y for x, y in zip(way, off, strict=True)) / length
    left = _rms([y - share * x for x, y in zip(way, off, strict=True)])
    return share if share > max(_MAX_SHARE, _SURE * left / math.sqrt(length)) else None


def _generated(
    pairs: Sequence[tuple[Item, Measured]],
    offsets: Sequence[Sequence[float] | None],
    tolerance: float,
    name: Literal["cold", "warm"],
) -> _Measurement:
    """Return the tokens of greedy answers, each up to where it leaves the probe's ids."""
    items = []
    wrong: str | None = None
    for place, ((item, measured), offset) in enumerate(zip(pairs, offsets, strict=True)):
        ids, logprobs = measured.cold if name == "cold" else measured.warm
        same = 0
        while same < min(len(ids), len(item.ids)) and ids[same] == item.ids[same]:
            same += 1
        left_ids = same < min(len(ids), len(item.ids))
        if left_ids and item.margins[same] > _MARGIN * tolerance:
            wrong = wrong or (
                f"the engine answers prompt {place} with other tokens: {ids[same]} instead of "
                f"{item.ids[same]} at token {same}, where the candidate is sure by "
                f"{item.margins[same]:.2g} nats"
            )
        # Missing logprobs can't be told to which tokens they belong.
        items.append(_tokens(item, logprobs[:same] if len(logprobs) == len(ids) else (), offset))
    return _Measurement(f"{name} cache", tuple(items), wrong)


def _scored(
    pairs: Sequence[tuple[Item, Measured]], offsets: Sequence[Sequence[float] | None]
) -> _Measurement:
    items = []
    for (item, measured), offset in zip(pairs, offsets, strict=True):
        scored = measured.scored or ()
        items.append(_tokens(item, scored if len(scored) == len(item.ids) else (), offset))
    return _Measurement("scores", tuple(items))


def _tokens(
    item: Item, logprobs: Sequence[float], offsets: Sequence[float] | None
) -> tuple[_Token, ...]:
    return tuple(
        _Token(
            logprob - (offsets[place] if offsets else 0.0),
            item.candidate[place],
            {"base": item.base[place]}
            if item.parent is None
            else {"parent": item.parent[place], "base": item.base[place]},
        )
        for place, logprob in enumerate(logprobs)
    )


def _offsets(item: Item, measured: Measured) -> tuple[float, ...] | None:
    """Return by how much the engine's own base differs from the probe's, token by token."""
    if measured.base_scored is None or len(measured.base_scored) != len(item.ids):
        return None
    return tuple(a - b for a, b in zip(measured.base_scored, item.base, strict=True))


def _logprobs_of(measured: Sequence[Measured]) -> Iterator[float]:
    for each in measured:
        yield from (*each.cold[1], *each.warm[1], *(each.scored or ()), *(each.base_scored or ()))


def _away(errors: Mapping[str, float], name: str) -> str:
    return f"{math.sqrt(errors[name]):.2g} nats"


def _mean_square(values: Sequence[float]) -> float:
    return math.fsum(value * value for value in values) / len(values)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_mean_square(values)) if values else 0.0
