"""An engine's own base beside the one that is trained: how far off it is, and what is kept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from unasked import Unasked

from strop.adapters.probe import Item, Judgement, Outcome, Probe
from strop.proxy.engines.base import EngineState
from strop.proxy.store.store import Store
from strop.proxy.versions.pairing import Pairings, digest_of
from strop.proxy.versions.probing import base_error

BASE = "sha256:" + "b" * 64
STATE = EngineState(models=("tiny",), version="1")


def make_item(seed: int, length: int = 12) -> Item:
    chance = random.Random(seed)
    logprobs = tuple(-chance.random() for _ in range(length))
    return Item(
        prompt_ids=(seed,),
        ids=tuple(range(100 * seed, 100 * seed + length)),
        margins=(1.0,) * length,
        candidate=tuple(logprob + 3 for logprob in logprobs),
        parent=None,
        base=logprobs,
    )


PROBE = Probe((make_item(1), make_item(2)), "float32")


@dataclass
class OffEngine(Unasked):
    """An engine whose base is off by so many nats a token, and agrees on the first so many ids."""

    off: float
    num_shared: int = 12
    asked: list[str] = field(default_factory=list)

    async def generate(
        self, name: str, prompt_ids: Sequence[int], num_tokens: int, *, uses_cache: bool
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Answer as the base of the item with this prompt does, with errors of either sign."""
        assert not uses_cache
        self.asked.append(name)
        (item,) = [item for item in PROBE.items if item.prompt_ids == tuple(prompt_ids)]
        ids = item.ids[: self.num_shared] + (7,) * (num_tokens - self.num_shared)
        return ids, self._off(item)

    async def score(
        self, name: str, prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Score as the base does, with errors of either sign."""
        self.asked.append(name)
        (item,) = [item for item in PROBE.items if item.ids == tuple(ids)]
        assert item.prompt_ids == tuple(prompt_ids)
        return self._off(item)

    def _off(self, item: Item) -> tuple[float, ...]:
        return tuple(logprob + self.off * (-1) ** place for place, logprob in enumerate(item.base))


@pytest.mark.parametrize("scores", [True, False])
async def test_the_base_is_measured_and_not_a_version(scores: bool) -> None:
    """The mean of the differences' sizes, whatever their signs; each prompt is asked once."""
    engine = OffEngine(0.2)

    error = await base_error(engine, "tiny", PROBE, scores=scores)

    assert pytest.approx(0.2) == error
    assert ["tiny", "tiny"] == engine.asked


async def test_tokens_after_another_choice_don_t_count() -> None:
    """They follow another text; with a handful left nothing can be said."""
    assert pytest.approx(0.1) == await base_error(OffEngine(0.1, 5), "tiny", PROBE, scores=False)
    assert await base_error(OffEngine(0.1, 3), "tiny", PROBE, scores=False) is None


@pytest.mark.parametrize("scores", [True, False])
async def test_another_model_is_no_inexact_base(
    scores: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A tolerance as wide as that would let everything pass; the log asks whether it is one."""
    assert await base_error(OffEngine(0.6), "tiny", PROBE, scores=scores) is None

    (said,) = caplog.messages
    assert "is it the same model?" in said


def judgement(outcome: Outcome) -> Judgement:
    return Judgement(outcome, "", {"candidate": 0.25}, 24)


async def test_what_is_kept_is_the_base_s_error(tmp_path: Path) -> None:
    """Once a version was proven on it; a later start takes it up again."""
    store = await Store.open(tmp_path / "strop.db")
    try:
        pairings = Pairings(store, "vllm")
        await pairings.check(STATE, BASE)
        await pairings.note(BASE, judgement("proven"))
        assert await store.versions.pairing("vllm") is None

        pairings.measured(0.02)
        pairings.measured(None)
        assert pairings.was_measured
        await pairings.note(BASE, judgement("indistinguishable"))
        assert await store.versions.pairing("vllm") is None
        await pairings.note(BASE, judgement("proven"))

        kept = await store.versions.pairing("vllm")
        assert kept is not None
        assert (digest_of(STATE), BASE, 0.02) == (kept.engine_digest, kept.base, kept.error)
        again = Pairings(store, "vllm")
        await again.check(STATE, BASE)
        assert (0.02, True) == (again.error, again.was_measured)
        await again.check(EngineState(models=("tiny",), version="2"), BASE)
        assert (None, False) == (again.error, again.was_measured)
        assert await store.versions.pairing("vllm") is None
    finally:
        await store.close()


async def test_another_name_for_the_same_weights_is_no_other_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the engine says better what it serves; else its name is all that there is."""
    caplog.set_level("INFO")
    store = await Store.open(tmp_path / "strop.db")
    errors = []
    try:
        for engine, digest in (("vllm", "models/tiny"), ("openai", None)):
            pairings = Pairings(store, engine)
            await pairings.check(EngineState(("tiny",), "1", digest=digest), BASE)
            pairings.measured(0.02)
            await pairings.note(BASE, judgement("proven"))
            await pairings.check(EngineState(("mine",), "1", digest=digest), BASE)
            errors.append(pairings.error)
    finally:
        await store.close()

    assert [0.02, None] == errors
    (said,) = caplog.records
    assert ("INFO", "openai") == (said.levelname, vars(said)["engine"])
