"""Asks an engine what a version's probe wants to know, with as little work for it as shows that.

Measures and doesn't judge: `strop.adapters.probe` does.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from strop.adapters.probe import MIN_TOKENS, Item, Measured, Probe
from strop.proxy.engines.base import AdapterControl

log = logging.getLogger(__name__)

Answer = tuple[tuple[int, ...], tuple[float, ...]]

# Prompts asked together are run together, padded to the longest; until then, others stand still.
_MOST_TOKENS = 512
# Longer than the blocks in which engines keep prompts.
_LONG = 257
_MIN_WARM_TOKENS = 2 * MIN_TOKENS
_MIN_SHARED_TOKENS = MIN_TOKENS // 2
# Nats a token. Four-bit weights of small models are about half as far off.
_MOST_BASE_ERROR = 0.5
_NOT_ASKED: Answer = ((), ())


async def measure(
    control: AdapterControl,
    name: str,
    probe: Probe,
    *,
    scores: bool,
    others: Sequence[str] = (),
) -> list[Measured]:
    """Return what the engine does as `name` with each item of `probe`.

    Every prompt is asked with a cold cache. The most telling of the long ones are asked again,
    after `others` and `name` itself were asked the same: a prefix cache that is shared between
    versions, or left over from another, then shows.

    Args:
        control: the engine.
        name: the served name of the version.
        probe: what to ask.
        scores: whether the engine can give the logprobs of given ids; it is asked for those that
            its own greedy answer left.
        others: served names whose caches must not be used for `name`.

    Raises:
        UpstreamError: the engine isn't there, or refuses.
    """
    items = probe.items
    if scores:
        lengths = [len(item.ids) for item in items]
        colds, warms = await asyncio.gather(
            _ask_cold(control, name, items), _ask_warm(control, name, items, others, lengths)
        )
    else:
        # Only what came can be compared, and only up to where it leaves the probe's tokens.
        colds = await _ask_cold(control, name, items)
        lengths = [
            min(len(logprobs), _num_shared(ids, item.ids))
            for item, (ids, logprobs) in zip(items, colds, strict=True)
        ]
        warms = await _ask_warm(control, name, items, others, lengths)
    measured = [Measured(cold, warms.get(place, _NOT_ASKED)) for place, cold in enumerate(colds)]
    if not scores:
        return measured
    return [
        replace(each, scored=await _scored(control, name, item, each.cold))
        for item, each in zip(items, measured, strict=True)
    ]


async def with_base(
    control: AdapterControl, base: str, probe: Probe, measured: Sequence[Measured]
) -> list[Measured]:
    """Return `measured` with what the base, served as `base`, makes of the same ids.

    Raises:
        UpstreamError: the engine isn't there, or refuses.
    """
    return [
        replace(each, base_scored=await control.score(base, item.prompt_ids, item.ids))
        for item, each in zip(probe.items, measured, strict=True)
    ]


async def base_error(
    control: AdapterControl, base: str, probe: Probe, *, scores: bool
) -> float | None:
    """Return how far the engine's own base, served as `base`, lies from the probe's.

    The mean absolute difference in nats: over the probe's tokens where the engine `scores`, else
    over those at which the base's greedy answer is the candidate's still. None where these are too
    few to tell, or lie so far off that it is another model.

    Raises:
        UpstreamError: the engine isn't there, or refuses.
    """
    items, errors = probe.items, []
    if scores:
        scored = [await control.score(base, item.prompt_ids, item.ids) for item in items]
        answers = [(item.ids, given) for item, given in zip(items, scored, strict=True)]
    else:
        answers = await _ask_cold(control, base, items)
    for item, (ids, logprobs) in zip(items, answers, strict=True):
        shared = _num_shared(ids, item.ids)
        pairs = zip(logprobs[:shared], item.base, strict=False)
        errors += [abs(logprob - expected) for logprob, expected in pairs]
    if len(errors) < _MIN_SHARED_TOKENS:
        return None
    error = math.fsum(errors) / len(errors)
    if error >= _MOST_BASE_ERROR:
        log.warning(
            "the engine's base is not like model.base; is it the same model?",
            extra={"engine_model": base, "nats_a_token": round(error, 3)},
        )
        return None
    return error


async def _ask_cold(control: AdapterControl, name: str, items: Sequence[Item]) -> list[Answer]:
    answers: dict[int, Answer] = {}

    async def ask(place: int) -> None:
        item = items[place]
        answers[place] = await control.generate(
            name, item.prompt_ids, len(item.ids), uses_cache=False
        )

    for wave in _waves(items):
        await asyncio.gather(*map(ask, wave))
    return [answers[place] for place in range(len(items))]


async def _ask_warm(
    control: AdapterControl,
    name: str,
    items: Sequence[Item],
    others: Sequence[str],
    lengths: Sequence[int],
) -> Mapping[int, Answer]:
    answers: dict[int, Answer] = {}
    for place in _telling(items, lengths):
        item = items[place]
        for other in (*others, name):
            await control.generate(other, item.prompt_ids, 1, uses_cache=True)
        answers[place] = await control.generate(
            name, item.prompt_ids, len(item.ids), uses_cache=True
        )
    return answers


async def _scored(
    control: AdapterControl, name: str, item: Item, cold: Answer
) -> tuple[float, ...]:
    ids, logprobs = cold
    if ids == item.ids and len(logprobs) == len(ids):
        return logprobs
    return await control.score(name, item.prompt_ids, item.ids)


def _num_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    same = (id_ == other for id_, other in zip(ids, others, strict=False))
    return sum(itertools.takewhile(bool, same))


def _waves(items: Sequence[Item]) -> Iterator[list[int]]:
    """Yield the places of items to ask together, the shortest prompts first."""
    wave: list[int] = []
    for place in sorted(range(len(items)), key=lambda place: len(items[place].prompt_ids)):
        if wave and (len(wave) + 1) * len(items[place].prompt_ids) > _MOST_TOKENS:
            yield wave
            wave = []
        wave.append(place)
    if wave:
        yield wave


def _telling(items: Sequence[Item], lengths: Sequence[int]) -> list[int]:
    """Return the places of a few items, long ones first, that tell most from the other versions.

    `lengths` says how many tokens of each can be compared.
    """
    ranked = sorted(
        (place for place, length in enumerate(lengths) if length),
        key=lambda place: (len(items[place].prompt_ids) >= _LONG, _distance(items[place])),
        reverse=True,
    )
    chosen: list[int] = []
    while ranked and sum(lengths[place] for place in chosen) < _MIN_WARM_TOKENS:
        chosen.append(ranked.pop(0))
    return chosen


def _distance(item: Item) -> float:
    """Return how far the candidate is from the nearer of parent and base, nats² a token."""
    others = [item.base] if item.parent is None else [item.base, item.parent]
    return min(
        sum((own - each) ** 2 for own, each in zip(item.candidate, other, strict=True))
        / max(1, len(item.ids))
        for other in others
    )
