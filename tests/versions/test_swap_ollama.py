"""Switching on Ollama: a fake of its routes, with a real small model behind them.

The whole way of a version: PEFT to GGUF, uploaded, made a model, loaded, proven, and sampled from.
"""

import asyncio
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import models
import probes
import pytest
from fake_engine import FakeEngine
from fake_ollama import Model, base_of
from fake_ollama_model import FakeOllamaModel, linear_weights
from ollama_vocabulary import END_ID
from running import Running, running, settings_for
from shelved import copy_of, publish
from waiting import until

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.adapters.probe import Probe
from strop.proxy.engines.ollama_models import is_ours
from strop.proxy.errors import ActivationFailed, Conflict
from strop.proxy.settings.settings import Settings

NUM_PROMPTS = 3
NUM_SHARED = 6
Ids = tuple[int, ...]
make_tokenizer = functools.cache(models.make_tokenizer)


@functools.cache
def probe_of(
    base: Path, adapter: Path, parent: Path | None = None, bits: int | None = None
) -> Probe:
    """Return the probe of `adapter`, of prompts whose answers Ollama can show.

    Those are whole characters: a random model says few. Where `bits` are given, the base says the
    first `NUM_SHARED` tokens of each as well, as it is and rounded to so many.
    """
    bases = [linear_weights(base, to) for to in (None, bits)] if bits else []
    shown = (ids for ids, num in texts(base, adapter, bases) if num == probes.NUM_TOKENS)
    prompts = tuple(itertools.islice(shown, NUM_PROMPTS))
    assert NUM_PROMPTS == len(prompts)
    return probes.probe_of(base, adapter, parent, prompts)


def nums_shown(
    base: Path, adapter: Path, prompts: Sequence[Ids], bases: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return how many tokens come before one that is a part of a character, or ends the text.

    None of them count from where one of `bases` says another one of the first `NUM_SHARED`. The
    prompts have one length, and are answered together: one by one takes ten times as long.
    """
    import torch

    tokenizer, ids = make_tokenizer(), torch.tensor(prompts)
    nums, left = [0] * len(prompts), [*range(len(prompts))]
    for number in range(probes.NUM_TOKENS):
        with torch.no_grad():
            tokens = probes.model_of(base, adapter)(ids).logits[:, -1].argmax(-1)
            said = [tokens.tolist()]
            for weights in bases if number < NUM_SHARED else ():
                of_base = torch.func.functional_call(probes.model_of(base, None), weights, (ids,))
                said.append(of_base.logits[:, -1].argmax(-1).tolist())
        kept = [
            at
            for at, (token, *others) in enumerate(zip(*said, strict=True))
            if token > END_ID
            and "\ufffd" not in tokenizer.decode([token])
            and {token}.issuperset(others)
        ]
        if not kept:
            break
        left = [left[at] for at in kept]
        for at in left:
            nums[at] += 1
        ids = torch.cat([ids[kept], tokens[kept, None]], dim=1)
    return nums


def texts(
    base: Path, adapter: Path, bases: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[Ids, int]]:
    """Yield prompts, as ids that a text stands for, and how much of the answer can be shown."""
    tokenizer = make_tokenizer()
    lines = dict.fromkeys(models.training_text().splitlines())
    every = (tuple(tokenizer.encode(line)) for line in lines if line.isascii())
    short = (ids for ids in every if 2 < len(ids) < 12)
    while some := tuple(itertools.islice(short, 200)):
        nums: dict[Ids, int] = {}
        for length in {len(ids) for ids in some}:
            alike = [ids for ids in some if len(ids) == length]
            nums |= zip(alike, nums_shown(base, adapter, alike, bases), strict=True)
        yield from ((ids, nums[ids]) for ids in some)


def settings(url: str, base: Path) -> Settings:
    return settings_for(
        url,
        kind="ollama",
        model={"base": str(base), "name": "tiny"},
        engine={"health_interval_s": 0.05},
    )


async def shelve(
    proxy: Running,
    base: Path,
    adapter: Path,
    *,
    parent: tuple[str, Path] | None = None,
    probe: Probe | None = None,
) -> str:
    """Add an adapter as a version."""
    return await publish(
        proxy.services.store,
        Library((proxy.services.home / "adapters").absolute()),
        base=identify(base, cache=None),
        write=copy_of(adapter),
        parent=parent[0] if parent else None,
        probe=probe or probe_of(base, adapter, parent[1] if parent else None),
    )


def without_adapters(model: Model) -> Model:
    return replace(model, adapters=())


def ours(fake: FakeOllamaModel) -> list[str]:
    return [tag for tag in fake.models if is_ours(tag)]


async def assert_served_by(
    proxy: Running, fake: FakeOllamaModel, version: str, base: Path, adapter: Path | None
) -> None:
    """Ask until an answer has all its logprobs, and compare them with transformers and peft."""
    for number in range(40):
        answer = await proxy.chat(f"Question {number}?", temperature=0.0, max_tokens=8)
        assert (200, version) == (answer.status_code, answer.headers["x-strop-adapter"])
        row = (await proxy.rows())[-1]
        (choice,) = row.completion.choices
        if choice.logprobs is None:
            continue
        prompt, said = fake.sampled[-1]
        # The token that ends the text is not always among them.
        ids = said.ids[: len(choice.logprobs)]
        prompt_ids = make_tokenizer().encode(prompt)
        expected = probes.logprobs_of(probes.model_of(base, adapter), prompt_ids, ids)
        assert pytest.approx(expected, abs=1e-4) == list(choice.logprobs)
        assert version == row.completion.version
        return
    raise AssertionError("no answer had all its logprobs")


async def test_a_version_is_proven_and_its_logprobs_are_what_answers_have(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """One after the other in Ollama's one place; only the model of the one in use is kept."""
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        await shelve(proxy, qwen3, peft_b, parent=("v1", peft_a))
        await assert_served_by(proxy, fake, "base", qwen3, None)

        for version, adapter in (("v1", peft_a), ("v2", peft_b), ("v1", peft_a)):
            done = await proxy.services.swapper.activate(version, actor="api")
            assert done.probe is not None
            assert "proven" == done.probe.outcome, done.probe
            assert done.pause_ms > 0
            await assert_served_by(proxy, fake, version, qwen3, adapter)
            assert fake.runner is not None
            assert 1 == len(fake.runner.adapters)
        await proxy.services.swapper.activate("base", actor="api")
        await assert_served_by(proxy, fake, "base", qwen3, None)

        assert [] == ours(fake)


async def test_a_llama_s_version_is_proven(llama: Path, tmp_path: Path) -> None:
    """Its q and k projections are in another order in a GGUF file."""
    adapter = models.cached(
        "peft-llama-ollama",
        lambda to: models.make_peft(
            llama, to, rank=8, alpha=16, targets=models.ALL_LINEAR, seed=5, rslora=True, scale=0.1
        ),
    )
    fake = FakeOllamaModel(folder=llama)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, llama), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, llama, adapter)

        done = await proxy.services.swapper.activate("v1", actor="api")

        assert done.probe is not None
        assert "proven" == done.probe.outcome, done.probe
        await assert_served_by(proxy, fake, "v1", llama, adapter)


async def test_prompts_whose_answers_can_t_be_shown_are_made_up_for_by_others(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Tokens that end inside a character come without logprobs; what came is compared."""
    in_parts = (ids for ids, num in texts(qwen3, peft_a) if num < 4)
    broken = probes.probe_of(qwen3, peft_a, None, tuple(itertools.islice(in_parts, 3)))
    # Where there is a choice, those are asked first that tell most: let it be these.
    telling = tuple(
        replace(item, base=tuple(logprob - 50 for logprob in item.base)) for item in broken.items
    )
    probe = probe_of(qwen3, peft_a)
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a, probe=replace(probe, items=(*telling, *probe.items)))

        done = await proxy.services.swapper.activate("v1", actor="api")

        assert done.probe is not None
        assert "proven" == done.probe.outcome, done.probe


async def test_an_adapter_that_is_left_out_is_noticed(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Ollama says that it has it, and answers as the base: nothing changes, and its model goes."""
    fake = FakeOllamaModel(folder=qwen3, really=without_adapters)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)

        with pytest.raises(ActivationFailed, match="serves the base"):
            await proxy.services.swapper.activate("v1", actor="api")

        await assert_served_by(proxy, fake, "base", qwen3, None)
        assert [] == ours(fake)


async def test_a_parent_that_is_served_still_is_noticed(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """The parent is loaded again, and serves on."""
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        await shelve(proxy, qwen3, peft_b, parent=("v1", peft_a))
        await proxy.services.swapper.activate("v1", actor="api")
        (tag,) = ours(fake)
        parent = fake.models[tag]
        fake.really = lambda _: parent

        with pytest.raises(ActivationFailed, match="does not serve it"):
            await proxy.services.swapper.activate("v2", actor="api")

        await assert_served_by(proxy, fake, "v1", qwen3, peft_a)
        assert 1 == len(ours(fake))


async def test_none_of_sixteen_running_requests_fails_and_new_ones_wait(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Each is answered by one version to its end; how long the others waited is said."""
    gate, num_streams = asyncio.Event(), 0

    async def second_event(number: int) -> None:
        nonlocal num_streams
        if number == 1:
            num_streams += 1
            await gate.wait()

    fake = FakeOllamaModel(folder=qwen3, before_event=second_event)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        swapper, serving = proxy.services.swapper, proxy.services.serving

        async def ask(number: int) -> httpx.Response:
            return await proxy.chat(f"question {number}", max_tokens=6, stream=True)

        under_way = [asyncio.create_task(ask(number)) for number in range(16)]
        await until(lambda: num_streams == 16)
        switching = asyncio.create_task(swapper.activate("v1", actor="api"))
        await until(lambda: serving.is_held)
        meanwhile = [asyncio.create_task(ask(number)) for number in range(16)]
        await asyncio.sleep(0.05)
        assert (16, 16, 1) == (serving.leases.total, num_streams, fake.num_loads)
        gate.set()
        done = await switching

        answers = await asyncio.gather(*under_way, *meanwhile)
        assert [200] * 32 == [answer.status_code for answer in answers]
        assert all("[DONE]" in answer.text for answer in answers)
        assert ["base"] * 16 + ["v1"] * 16 == [one.headers["x-strop-adapter"] for one in answers]
        assert done.pause_ms >= done.timings_ms["loading"] + done.timings_ms["probing"]
        # The base, then the version: nothing was loaded back and forth.
        assert 2 == fake.num_loads


async def test_a_restarted_ollama_has_its_version_proven_before_it_answers(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """It would load the model by itself, and nobody would know."""
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        await proxy.services.swapper.activate("v1", actor="api")
        serving = proxy.services.serving
        await engine.stop()
        fake.restart()
        assert 200 != (await proxy.chat()).status_code
        await until(lambda: serving.state is None)
        engine.requests.clear()

        await engine.start()
        await serving.wait_until_ready()
        await assert_served_by(proxy, fake, "v1", qwen3, peft_a)

        asked = [request.path for request in engine.requests]
        before = asked[: asked.index("/v1/chat/completions")]
        # One to load it, and each prompt cold and warm.
        assert before.count("/api/generate") > 2 * NUM_PROMPTS
        assert fake.is_kept


@pytest.mark.parametrize("is_asked", [True, False], ids=["loaded by a request", "empty"])
async def test_a_restart_between_two_looks_is_noticed_all_the_same(
    is_asked: bool, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """A model that a request has brought back is not kept: that tells."""
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        await proxy.services.swapper.activate("v1", actor="api")
        (tag,) = ours(fake)
        num_sampled = len(fake.sampled)

        fake.restart()
        upstream = proxy.services.serving.engine.upstream
        lines = set(upstream._connections)
        for connection in list(engine.open):
            connection.reset()
        # Strop hears of the end before anything is loaded again.
        await until(lambda: not lines & upstream._connections)
        if is_asked:
            await fake.start_runner(fake.models[tag])
            fake.runner = fake.models[tag]
        await until(lambda: fake.is_kept and len(fake.sampled) >= num_sampled + NUM_PROMPTS)
        await proxy.services.serving.wait_until_ready()

        await assert_served_by(proxy, fake, "v1", qwen3, peft_a)


async def test_models_that_take_turns_in_memory_cost_no_proofs(
    qwen3: Path, peft_a: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The version is back as it was proven: from the same files, by the same process."""
    caplog.set_level("INFO")
    fake = FakeOllamaModel(folder=qwen3)
    fake.models["other:latest"] = base_of("other")
    config = replace(settings("", qwen3).model, name="tiny:latest")
    async with FakeEngine(fake) as engine:
        wanted = replace(settings(engine.url, qwen3), model=config)
        async with running(wanted, tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
            num_sampled = len(fake.sampled)

            for _ in range(3):
                await proxy.chat(model="other:latest")
                assert not fake.is_kept
                answer = await proxy.chat(model="tiny:latest")
                assert "v1" == answer.headers["x-strop-adapter"]
                await until(lambda: fake.is_kept)

            assert num_sampled + 6 == len(fake.sampled)
            assert "has lost" not in caplog.text
            assert 1 == caplog.text.count("is back")


async def test_strop_finds_what_it_made_before_its_restart(
    qwen3: Path, peft_a: Path, peft_b: Path, tmp_path: Path
) -> None:
    """It makes nothing again, and deletes what is not needed any more."""
    fake = FakeOllamaModel(folder=qwen3)
    async with FakeEngine(fake) as engine:
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await shelve(proxy, qwen3, peft_b, parent=("v1", peft_a))
            await proxy.services.swapper.activate("v1", actor="api")
            made = ours(fake)
        engine.requests.clear()
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await assert_served_by(proxy, fake, "v1", qwen3, peft_a)
            assert [] == [one for one in engine.requests if one.path == "/api/create"]
            assert made == ours(fake)
            await proxy.services.swapper.activate("v2", actor="api")

            await proxy.services.swapper.remove("v1", actor="api")

            (tag,) = ours(fake)
            assert ":v2-" in tag
            await assert_served_by(proxy, fake, "v2", qwen3, peft_b)


async def test_after_a_pull_a_version_is_served_over_the_newer_base(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Once strop starts anew: its model is made of what the base's name stands for then."""
    fake = FakeOllamaModel(folder=qwen3)
    async with FakeEngine(fake) as engine:
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
        fake.models["tiny:latest"] = base_of("newer")
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await assert_served_by(proxy, fake, "v1", qwen3, peft_a)

    assert fake.runner is not None
    assert (base_of("newer").base, 1) == (fake.runner.base, len(fake.runner.adapters))
    assert 1 == len(ours(fake))


async def test_what_was_made_before_is_served_without_gguf_too(
    qwen3: Path, peft_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is converted for it; that nothing else can be served is said."""
    fake = FakeOllamaModel(folder=qwen3)
    async with FakeEngine(fake) as engine:
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
        # Only looked for: the fake reads what was made with it.
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name == "gguf" else find(name, *more),
        )
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await assert_served_by(proxy, fake, "v1", qwen3, peft_a)
            (shortfall,) = proxy.services.serving.engine.shortfalls

    assert "need the gguf package" in shortfall
    assert 1 == proxy.services.serving.engine.capabilities.adapters


def _create_fails(fake: FakeOllamaModel) -> None:
    fake.create_error = "invalid file magic"


def _create_fails_in_a_stream(fake: FakeOllamaModel) -> None:
    fake.create_error, fake.streams_anyway = "invalid file magic", True


def _upload_is_cut(fake: FakeOllamaModel) -> None:
    fake.cuts_uploads = True


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (_create_fails, "does not make tiny-strop:v2-.*invalid file magic"),
        (_create_fails_in_a_stream, "does not make tiny-strop:v2-.*invalid file magic"),
        (_upload_is_cut, "digest mismatch"),
    ],
    ids=["create", "create, after a status of 200", "upload"],
)
async def test_what_ollama_can_t_make_is_said_and_the_former_serves_on(
    breaks: Callable[[FakeOllamaModel], None],
    reason: str,
    qwen3: Path,
    peft_a: Path,
    peft_b: Path,
    tmp_path: Path,
) -> None:
    """In Ollama's words; no request is ever held for it."""
    fake = FakeOllamaModel(folder=qwen3)
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        await shelve(proxy, qwen3, peft_b, parent=("v1", peft_a))
        await proxy.services.swapper.activate("v1", actor="api")
        num_loads = fake.num_loads
        breaks(fake)

        with pytest.raises(ActivationFailed, match=reason):
            await proxy.services.swapper.activate("v2", actor="api")

        await assert_served_by(proxy, fake, "v1", qwen3, peft_a)
        assert num_loads == fake.num_loads
        assert 1 == len(ours(fake))
        (event, *_) = await proxy.services.store.versions.list_events("v2", limit=1)
        assert "activation_failed" == event.kind


async def test_an_ollama_too_old_for_adapters_serves_the_base_and_says_so(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """Before anything is uploaded."""
    fake = FakeOllamaModel(folder=qwen3, version="0.29.3")
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)

        with pytest.raises(Conflict, match=r"update it to 0\.30 or newer"):
            await proxy.services.swapper.activate("v1", actor="api")

        await assert_served_by(proxy, fake, "base", qwen3, None)
        assert {} == fake.blobs


async def test_an_ollama_that_was_made_older_can_serve_the_base_again(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """It says why the active version is not served, and what to do; that is possible."""
    fake = FakeOllamaModel(folder=qwen3)
    async with FakeEngine(fake) as engine:
        async with running(settings(engine.url, qwen3), tmp_path / "home") as proxy:
            await shelve(proxy, qwen3, peft_a)
            await proxy.services.swapper.activate("v1", actor="api")
        fake.restart()
        fake.version = "0.29.3"
        async with running(settings(engine.url, qwen3), tmp_path / "home", ready=False) as proxy:
            serving = proxy.services.serving
            await until(lambda: "can't be served" in serving.reason)
            refused = (await proxy.chat()).json()["error"]["message"]
            assert "loras are not yet implemented" in refused
            assert "strop adapters activate base" in refused

            await proxy.services.swapper.activate("base", actor="api")

            await assert_served_by(proxy, fake, "base", qwen3, None)


async def activated(base: Path, home: Path, fake: FakeOllamaModel) -> tuple[str, float | None]:
    """Activate a small change of the base; return what the probe says, and the pairing's error."""
    adapter = models.cached(
        "peft-small-step",
        lambda to: models.make_peft(
            base, to, rank=8, alpha=16, targets=models.ALL_LINEAR, seed=6, scale=0.02
        ),
    )
    async with FakeEngine(fake) as engine, running(settings(engine.url, base), home) as proxy:
        await shelve(proxy, base, adapter, probe=probe_of(base, adapter, None, fake.bits))
        done = await proxy.services.swapper.activate("v1", actor="api")
        assert done.probe is not None
        pairing = await proxy.services.store.versions.pairing("ollama")
        return done.probe.outcome, pairing.error if pairing else None


async def test_a_quantised_base_is_measured_before_its_first_version(
    qwen3: Path, tmp_path: Path
) -> None:
    """What it differs by is no fault of the version; it is measured where nothing else says it."""
    fake = FakeOllamaModel(folder=qwen3, bits=8)

    outcome, error = await activated(qwen3, tmp_path / "home", fake)

    assert "proven" == outcome
    assert error is not None
    # Beyond what a cache in float16 adds, which is what this Ollama owns up to.
    assert 0.01 < error < 0.1


async def test_a_quantised_base_that_ignores_adapters_is_noticed(
    qwen3: Path, tmp_path: Path
) -> None:
    """As long as versions are further apart than its weights are off."""
    fake = FakeOllamaModel(folder=qwen3, bits=8, quantization="Q8_0", really=without_adapters)

    with pytest.raises(ActivationFailed, match="serves the base"):
        await activated(qwen3, tmp_path / "home", fake)


async def test_a_step_smaller_than_the_base_s_own_error_is_not_called_proven(
    qwen3: Path, tmp_path: Path
) -> None:
    """In six bits this base is off by about as much as the version is from it."""
    fake = FakeOllamaModel(folder=qwen3, bits=6, quantization="Q6_K")

    assert ("indistinguishable", None) == await activated(qwen3, tmp_path / "home", fake)


async def test_a_base_too_coarse_to_be_compared_is_served_by_force(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """In four bits this one says other tokens at once: nothing is shown, and nothing refuted."""
    fake = FakeOllamaModel(folder=qwen3, bits=4, quantization="Q4_K_M")
    async with (
        FakeEngine(fake) as engine,
        running(settings(engine.url, qwen3), tmp_path / "home") as proxy,
    ):
        await shelve(proxy, qwen3, peft_a)
        swapper = proxy.services.swapper

        with pytest.raises(ActivationFailed, match="does not serve it"):
            await swapper.activate("v1", actor="api")
        assert "base" == (await proxy.chat(max_tokens=4)).headers["x-strop-adapter"]
        done = await swapper.activate("v1", actor="api", force=True)

        assert done.probe is not None
        assert "unproven" == done.probe.outcome
        assert "v1" == (await proxy.chat(max_tokens=4)).headers["x-strop-adapter"]
