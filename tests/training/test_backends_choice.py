"""Which training backend computes here, and what is said where none can."""

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strop.adapters import peft
from strop.configs import installation
from strop.training import memory, presets
from strop.training.backends import Choice, choose, confirmed, open_policy
from strop.training.backends.base import BackendUnavailable
from strop.training.backends.base_files import BaseFiles
from strop.training.backends.torch_model import pick_device, runs_on
from strop.training.doctor import examine
from strop.training.recipe import Recipe
from strop.training.run_settings import RunSettings
from strop.training.sequences import Tokens

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this machine look like another."""

    def become(system: str, processor: str, *, without: tuple[str, ...] = ()) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in without else real(name)
        )

    return become


def test_torch_on_linux_and_mlx_on_apple_silicon(machine: Machine) -> None:
    """Where both are installed, the faster one on this machine computes."""
    machine("Linux", "x86_64")
    assert ("torch", "cpu") == (choose().name, choose(device="cpu").device)

    machine("Darwin", "arm64")
    assert ("mlx", "gpu") == (choose().name, choose().device)
    assert "Apple Silicon" in choose().why


def test_the_one_that_is_installed_where_the_other_is_not(machine: Machine) -> None:
    """What is missing is said, with the command that installs it."""
    machine("Linux", "x86_64", without=("torch",))

    chosen = choose()

    assert ("mlx", "cpu") == (chosen.name, chosen.device)
    assert installation.install("strop[torch]") in chosen.why


@pytest.mark.parametrize(
    ("system", "processor", "wanted", "extra"),
    [
        ("Linux", "x86_64", "auto", "torch"),
        ("Darwin", "arm64", "auto", "mlx"),
        ("Linux", "x86_64", "mlx", "mlx"),
    ],
)
def test_neither_is_installed(
    machine: Machine, system: str, processor: str, wanted: str, extra: str
) -> None:
    """The error names the extra to install for this machine, or for what was asked."""
    machine(system, processor, without=("torch", "peft", "mlx_lm"))

    with pytest.raises(
        BackendUnavailable, match=re.escape(installation.install(f"strop[{extra}]"))
    ):
        choose(wanted)


def test_settings_and_bases_that_leave_one_backend(
    machine: Machine, qwen3_4bit: Path, qwen3: Path
) -> None:
    """A base quantised for MLX needs mlx; a CUDA device needs torch."""
    machine("Linux", "x86_64")
    assert "mlx" == choose(base=qwen3_4bit).name
    assert "torch" == choose(base=qwen3).name

    machine("Darwin", "arm64")
    assert "torch" == choose(device="mps").name
    assert "torch" == choose("torch").name


def test_a_driver_is_no_gpu(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch finds none the CPU computes; one that was asked for is said to be missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    likely = Choice("torch", "cuda", "the fastest here")

    assert "cpu" == confirmed(likely).device
    with pytest.raises(BackendUnavailable, match="finds none here"):
        confirmed(likely, "cuda")
    asked = RunSettings(qwen3, "topr", "balanced", device="cuda")
    with pytest.raises(BackendUnavailable, match="finds none here"):
        _ = Recipe(asked).chosen
    (problem,) = examine(qwen3, "auto", "cuda", "balanced", quantize_base=False).problems
    assert "finds none here" in problem


@pytest.mark.parametrize(
    ("backend", "says"), [("torch", "the device is cpu"), ("mlx", "torch's alone")]
)
def test_the_doctor_says_what_a_run_says_of_four_bits(qwen3: Path, backend: str, says: str) -> None:
    """Not that this machine can train, where each run fails."""
    (problem,) = examine(qwen3, backend, "cpu", "balanced", quantize_base=True).problems

    with pytest.raises(BackendUnavailable) as refused:
        open_policy(qwen3, backend=backend, device="cpu", quantize_base=True)
    assert str(refused.value) == problem
    assert says in problem


def test_little_memory_is_said_and_none_is_a_problem(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only short conversations fit, a run learns from these."""
    rank = presets.load("balanced", BaseFiles(qwen3).config).rank
    needed = memory.estimate(qwen3, choose("torch", "cpu", base=qwen3), rank=rank)
    said = {}

    for longest in (100, 0):
        free = needed.total(longest, longest)
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        said[longest] = examine(qwen3, "torch", "cpu", "balanced", quantize_base=False)

    little, none = said[100], said[0]
    facts = dict(little.rows)
    assert [] == little.problems
    assert "up to about 90 tokens" in facts["learns from"]
    (problem,) = none.problems
    assert "of memory are needed" in facts["from longer ones"]
    assert "of memory are needed" in problem
    assert "learns from" not in dict(none.rows)


def test_a_gpu_that_torch_has_no_code_for_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch finds an old one and fails at its first kernel; a run goes elsewhere, or says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_80"])

    assert "cpu" == pick_device("auto").type
    with pytest.raises(BackendUnavailable, match=r"finds none here that it can use.*\"cpu\""):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((8, 0), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_80"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((7, 0), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((12, 0), [], False),
    ],
)
def test_code_runs_on_what_it_was_made_for_and_its_successors(
    capability: tuple[int, int], archs: list[str], *, expected: bool
) -> None:
    """A binary on the same major version, PTX on all that is newer."""
    assert expected is runs_on(capability, archs)


def test_choosing_imports_no_framework() -> None:
    """The proxy and `strop doctor` ask without loading torch or mlx."""
    code = (
        "import sys; from strop.training.backends import choose; choose();"
        "print([name for name in ('torch', 'mlx.core', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout


def test_mlx_trains_on_a_machine_without_torch(qwen3: Path, tmp_path: Path) -> None:
    """Opening, a step, sampling and saving with mlx need no torch and no peft."""
    code = f"""
import sys
for name in ("torch", "peft"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
from strop.training.backends import open_policy
from strop.training.sequences import Tokens
policy = open_policy(Path({str(qwen3)!r}))
tokens = Tokens(np.arange(3, 15, dtype=np.int32), 4)
policy.accumulate([tokens], lambda values: [-np.ones_like(one) for one in values])
policy.step(0.01)
policy.sample([[3, 4]], max_tokens=3, temperature=1, seed=0)
policy.save_adapter(Path({str(tmp_path)!r}))
"""

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    assert peft.read(tmp_path).modules


def test_a_base_in_4_bits_trains_with_mlx_alone(qwen3_4bit: Path, tmp_path: Path) -> None:
    """On a base that mlx-lm quantised a step follows the gradient, and what is saved loads."""
    tokens = Tokens(np.arange(3, 40, dtype=np.int32), 10)
    policy = open_policy(qwen3_4bit)
    (before,) = policy.logprobs([tokens])

    for _ in range(3):
        policy.accumulate([tokens], lambda values: [np.full_like(values[0], -1 / 27)])
        policy.step(0.01)
    policy.save_adapter(tmp_path)

    (after,) = policy.logprobs([tokens])
    assert after.mean() > before.mean() + 0.1
    (again,) = open_policy(qwen3_4bit, start=tmp_path).logprobs([tokens])
    np.testing.assert_allclose(after, again, atol=1e-5)
    module = peft.read(tmp_path).modules["model.layers.0.self_attn.k_proj"]
    assert ((8, 128), (64, 8)) == (module.a.shape, module.b.shape)


def test_torch_refuses_a_base_quantised_for_mlx(qwen3_4bit: Path) -> None:
    """The message says which backend can, and what else to set."""
    with pytest.raises(BackendUnavailable, match=r'training\.backend to "mlx"'):
        open_policy(qwen3_4bit, backend="torch")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "torch", "device": "cuda"}, r"training\.device = 'cuda'"),
        ({"backend": "mlx", "device": "cuda"}, r'training\.backend to "torch"'),
        ({"backend": "torch", "quantize_base": True}, "bitsandbytes"),
        ({"backend": "mlx", "quantize_base": True}, "torch's alone"),
    ],
)
def test_what_this_machine_can_not_do_is_refused(
    qwen3: Path, settings: dict[str, Any], message: str
) -> None:
    """A device or a quantisation that isn't there is an error, never something else instead."""
    with pytest.raises(BackendUnavailable, match=message):
        open_policy(qwen3, **settings)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_folder_that_is_no_model(backend: str, tmp_path: Path) -> None:
    """Missing or unusable files are named."""
    with pytest.raises(BackendUnavailable, match=r"config\.json"):
        open_policy(tmp_path, backend=backend)

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BackendUnavailable, match="safetensors"):
        open_policy(tmp_path, backend=backend)

    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(BackendUnavailable, match=r"model\.safetensors"):
        open_policy(tmp_path, backend=backend)


def test_a_base_that_lacks_a_file_of_its_weights_is_not_loaded(qwen3: Path, tmp_path: Path) -> None:
    """What the index names must be there, whatever else is."""
    base = Path(shutil.copytree(qwen3, tmp_path / "base"))
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    )

    with pytest.raises(BackendUnavailable, match=r"lacks model-2\.safetensors"):
        open_policy(base)


def test_a_pickle_is_not_loaded(qwen3: Path, tmp_path: Path) -> None:
    """Weights in a pickle count as no weights."""
    (tmp_path / "config.json").write_bytes((qwen3 / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")

    for backend in ("torch", "mlx"):
        with pytest.raises(BackendUnavailable, match="pickles are never loaded"):
            open_policy(tmp_path, backend=backend)


def test_what_a_base_says_of_itself(qwen3: Path, qwen3_4bit: Path, tmp_path: Path) -> None:
    """Context, dtype, sizes and end ids are read from the folder's JSON and headers."""
    import torch
    from transformers import AutoModelForCausalLM

    files = BaseFiles(qwen3)
    model = AutoModelForCausalLM.from_pretrained(qwen3, dtype=torch.float32)

    assert (4096, "float32", False) == (
        files.context_length,
        files.dtype,
        files.is_mlx_quantized,
    )
    assert sum(p.numel() for p in model.parameters()) == files.num_weights
    assert 4 * files.num_weights == files.num_weight_bytes
    assert frozenset({2}) == files.end_ids
    assert BaseFiles(qwen3_4bit).is_mlx_quantized


def test_end_ids_of_the_generation_config_come_before_the_configs(tmp_path: Path) -> None:
    """As engines take them: the generation config's, else the config's, and the tokenizer's own."""
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert frozenset({5}) == BaseFiles(tmp_path).end_ids

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<e>"}}')
    added = {"added_tokens": [{"id": 9, "content": "<e>"}, {"id": 10, "content": "<x>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(added))
    assert frozenset({7, 8, 9}) == BaseFiles(tmp_path).end_ids


def test_a_model_for_images_too_is_read_by_its_text_part(tmp_path: Path) -> None:
    """What the language model says stands in `text_config`."""
    text = {"max_position_embeddings": 77, "dtype": "bfloat16", "eos_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "eos_token_id": 1}))

    files = BaseFiles(tmp_path)

    assert (77, "bfloat16", frozenset({3})) == (files.context_length, files.dtype, files.end_ids)
