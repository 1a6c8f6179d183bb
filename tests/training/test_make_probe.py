"""Making probes: what is asked, what is measured, and that they tell versions apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import models
import numpy as np
import pytest
from backend_cases import TOLERANCE

from strop.adapters import probe as judging
from strop.adapters import probe_codec
from strop.adapters.probe_values import Item, Measured, Probe
from strop.proxy.store import run_lock
from strop.training import make_probe, memory
from strop.training.backends import open_policy
from strop.training.backends.base import BASE, OutOfMemory, Policy, Sampled, Weights
from strop.training.sequences import Floats, Tokens


def random_prompts(*sizes: int) -> list[list[int]]:
    """Return prompts of these lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, 1200, size).tolist() for size in sizes]


@pytest.fixture
def policy(qwen3: Path, peft_a: Path) -> Policy:
    """`qwen3` with `peft_a` as what is trained."""
    return open_policy(qwen3, start=peft_a, backend="torch")


def served(policy: Policy, probe: Probe, weights: Weights) -> list[Measured]:
    """Return what an engine that serves `weights` does with a probe."""
    measured = []
    for item in probe.items:
        ids, logprobs, _ = policy.greedy(item.prompt_ids, len(item.ids), weights)
        scored = policy.logprobs([tokens_of(item)], weights)[0]
        answer = (ids, tuple(map(float, logprobs)))
        measured.append(Measured(cold=answer, warm=answer, scored=tuple(map(float, scored))))
    return measured


def tokens_of(item: Item) -> Tokens:
    """Return an item as one sequence."""
    return Tokens(np.array([*item.prompt_ids, *item.ids], np.int32), len(item.prompt_ids))


def test_a_probe_proves_its_version_and_no_other(
    policy: Policy, qwen3: Path, peft_b: Path, peft_c: Path
) -> None:
    """An engine that serves the candidate passes; with parent, base or another version it fails."""
    probe = make_probe.make(policy, peft_c, random_prompts(9, 20, 5, 30))

    served_by: dict[str, Weights] = {
        "candidate": "trained",
        "parent": peft_c,
        "base": BASE,
        "other": peft_b,
    }
    outcomes = {
        name: judging.judge(probe, served(policy, probe, weights), tolerance=1e-3).outcome
        for name, weights in served_by.items()
    }

    assert {
        "candidate": "proven", "parent": "failed", "base": "failed", "other": "failed"
    } == outcomes  # fmt: skip
    assert "float32" == probe.dtype


def test_values_are_those_of_teacher_forcing(
    policy: Policy, qwen3: Path, peft_a: Path, peft_c: Path
) -> None:
    """Candidate, parent and base have transformers' and peft's logprobs of the same ids."""
    probe = make_probe.make(policy, peft_c, random_prompts(12, 7))

    item = probe.items[-1]
    for adapter, found in ((peft_a, item.candidate), (peft_c, item.parent), (None, item.base)):
        expected = models.reference_logprobs(qwen3, adapter, item.prompt_ids, item.ids)
        assert found is not None
        np.testing.assert_allclose(expected, found, atol=TOLERANCE)
    assert min(item.margins) > 0


def test_a_version_trained_from_the_base_has_no_other_parent(policy: Policy) -> None:
    """Where the parent is the base, its logprobs stand once."""
    probe = make_probe.make(policy, BASE, random_prompts(12))

    assert {None} == {item.parent for item in probe.items}


def test_without_prompts_there_is_no_probe(policy: Policy) -> None:
    """Empty prompts are none."""
    with pytest.raises(ValueError, match="at least one prompt"):
        make_probe.make(policy, BASE, [[], []])


class Telling:
    """A policy of which the candidate tells itself from others by a prompt's first id alone."""

    dtype = "bfloat16"
    end_ids = frozenset({0})

    def __init__(self, most: int) -> None:
        self.most = most

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, **_: object
    ) -> list[Sampled]:
        if len(prompts) > self.most:
            raise OutOfMemory
        row = np.zeros(max_tokens, np.float32)
        return [Sampled((7,) * max_tokens, row, row) for _ in prompts]

    def logprobs(self, sequences: Sequence[Tokens], weights: Weights) -> list[Floats]:
        away = {"trained": 0.0, "base": 1.0}.get(str(weights), 2.0)
        return [np.full(one.num_answer, -away * float(one.ids[0]), np.float32) for one in sequences]

    def greedy(
        self, _prompt: Sequence[int], num_tokens: int, _weights: Weights
    ) -> tuple[tuple[int, ...], Floats, Floats]:
        row = np.zeros(num_tokens, np.float32)
        return (7,) * num_tokens, row, row + 1


@pytest.mark.parametrize(
    "sizes", [(3,), (40, 50), (5,) * 40, (300, 20), (2000,), tuple(range(2, 90))]
)
def test_there_is_enough_to_go_by(sizes: Sequence[int]) -> None:
    """However few or short prompts are: one over 256 tokens, and 256 continued ones in all."""
    telling: Callable[..., Policy] = Telling  # type: ignore[assignment]

    probe = make_probe.make(telling(100), BASE, random_prompts(*sizes))

    assert any(256 < len(item.prompt_ids) for item in probe.items)
    assert all(len(item.prompt_ids) <= 400 for item in probe.items)
    assert 256 <= sum(len(item.ids) for item in probe.items) < 400
    assert len(probe.items) <= 8
    assert len({item.prompt_ids for item in probe.items}) == len(probe.items)


@pytest.mark.parametrize("most", [100, 1])
def test_prompts_that_differ_most_are_chosen(most: int) -> None:
    """Of what was recorded, it asks what parent and candidate answer in the most unlike ways.

    Where memory is short, prompts are tried in smaller batches.
    """
    prompts = [[first, 5, 5] for first in range(1, 21)]

    telling: Callable[..., Policy] = Telling  # type: ignore[assignment]
    probe = make_probe.make(telling(most), Path("/parent"), prompts)

    firsts = [item.prompt_ids[0] for item in probe.items]
    assert [1, *range(20, 13, -1)] == firsts  # the joined one begins with the first prompt
    assert 257 <= len(probe.items[0].prompt_ids) <= 259


def test_memory_for_not_even_one_prompt_is_out_of_memory() -> None:
    """The error comes through once nothing can be made smaller."""
    telling: Callable[..., Policy] = Telling  # type: ignore[assignment]

    with pytest.raises(OutOfMemory):
        make_probe.make(telling(0), BASE, [[1, 2]])


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_program_writes_the_probe_of_an_imported_adapter(
    backend: str, qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """`python -m strop.training.make_probe` makes a whole probe, the same with both backends."""
    out = tmp_path / "probe.json"

    done = run("--base", qwen3, "--adapter", peft_a, "--out", out, "--backend", backend)

    assert (0, "") == (done.returncode, done.stderr)
    assert [out] == [*tmp_path.iterdir()]
    probe = probe_codec.from_json(json.loads(out.read_text()))
    assert 8 == len(probe.items)
    policy = open_policy(qwen3, start=peft_a, backend="torch")
    judged = judging.judge(probe, served(policy, probe, "trained"), tolerance=1e-3)
    assert "proven" == judged.outcome


def test_the_program_says_why_no_probe_could_be_made(
    qwen3: Path, peft_a: Path, tmp_path: Path
) -> None:
    """One line on standard error, status 1, and no file."""
    done = run("--base", tmp_path, "--adapter", peft_a, "--out", tmp_path / "probe.json")

    assert 1 == done.returncode
    assert done.stderr.startswith("no probe could be made: ")
    assert not [*tmp_path.iterdir()]


def test_no_probe_is_made_while_a_run_trains(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """Two models in memory beside the engine's would be one too many."""
    with run_lock.hold(tmp_path, "run_7"):
        done = run("--base", qwen3, "--adapter", peft_a, "--out", tmp_path / "probe.json",
                   "--runs", tmp_path)  # fmt: skip

    assert os.EX_TEMPFAIL == done.returncode
    assert "run_7 is under way in this home already" in done.stderr


def test_a_base_that_does_not_fit_is_not_loaded(
    qwen3: Path, peft_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is said what would make it fit."""
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 2**20)
    monkeypatch.setattr(os, "nice", lambda _: 0)

    status = make_probe.main(
        ["--base", str(qwen3), "--adapter", str(peft_a), "--out", str(tmp_path / "probe.json")]
    )

    assert 1 == status
    assert "choose a smaller model" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_it_ends_with_its_parent(qwen3: Path, peft_a: Path, tmp_path: Path) -> None:
    """When the pipe that it was handed is closed, nobody waits for it any more."""
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "strop.training.make_probe", "--base", str(qwen3)),
            *("--adapter", str(peft_a), "--out", str(tmp_path / "probe.json")),
            *("--parent-fd", str(read_end)),
        ],
        pass_fds=[read_end],
    )
    os.close(read_end)

    os.close(write_end)

    assert 1 == child.wait()
    assert not [*tmp_path.iterdir()]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the program."""
    return subprocess.run(
        [sys.executable, "-m", "strop.training.make_probe", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
