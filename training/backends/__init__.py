"""Backends: torch and mlx behind one Protocol, and which of them computes here.

Choosing imports neither: it asks what is installed. Opening imports the one that was chosen.
"""

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from strop.adapters import peft
from strop.configs import installation
from strop.training.backends.base import AdamWSettings, BackendUnavailable, LoraSettings, Policy
from strop.training.backends.base_files import BaseFiles

__all__ = ["Choice", "check_quantizing", "choose", "confirmed", "open_policy"]

# What each backend imports.
_NEEDS = {"torch": ("torch", "transformers"), "mlx": ("mlx", "mlx_lm")}
# Where a GPU's driver shows: NVIDIA, NVIDIA in WSL, AMD.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and its device, and the reason, for people.

    `device` is what is likely for the setting `auto`; `confirmed` asks the framework itself.
    """

    name: str
    device: str
    why: str


def choose(backend: str = "auto", device: str = "auto", *, base: Path | None = None) -> Choice:
    """Return what computes for the settings `training.backend` and `training.device`.

    Args:
        backend: `auto`, `torch` or `mlx`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        base: the base's folder, where it is known: one quantised for MLX needs that backend.

    Raises:
        BackendUnavailable: it isn't installed, with the command that does so.
    """
    missing = {name: [m for m in needs if not _is_installed(m)] for name, needs in _NEEDS.items()}
    name, why = _pick(backend, device, base, missing)
    if missing[name]:
        raise BackendUnavailable(
            f"training needs {' and '.join(missing[name])}, which {_are(missing[name])} not"
            f" installed here ({why}): {installation.install(f'strop[{name}]')}"
        )
    return Choice(name, _likely_device(name, device), why)


def confirmed(choice: Choice, device: str = "auto") -> Choice:
    """Return `choice` with the device that torch finds, where a GPU is likely or asked for.

    A driver is no GPU: it may be too old, or hidden by CUDA_VISIBLE_DEVICES. Imports torch then.

    Args:
        choice: what `choose` returned.
        device: the setting `training.device` that it was chosen for.

    Raises:
        BackendUnavailable: torch doesn't find the one that is asked for.
    """
    if choice.name != "torch" or choice.device == "cpu":
        return choice
    from strop.training.backends.torch_model import pick_device

    return replace(choice, device=pick_device(device).type)


def check_quantizing(choice: Choice) -> None:
    """Check that `choice` can hold a base in 4 bits that isn't so already.

    Raises:
        BackendUnavailable: it can't; the message says what to set or install.
    """
    if choice.name != "torch":
        raise BackendUnavailable(
            "training.quantize_base is torch's alone; for MLX, set model.base to a model quantised"
            " by mlx-lm"
        )
    if choice.device != "cuda" or not _is_installed("bitsandbytes"):
        raise BackendUnavailable(
            f"training.quantize_base needs a CUDA device (the device is {choice.device}) and"
            f" bitsandbytes; set it to false, or: {installation.install('bitsandbytes')}"
        )


def open_policy(
    base: Path,
    *,
    start: Path | None = None,
    lora: LoraSettings | None = None,
    adamw: AdamWSettings | None = None,
    backend: str = "auto",
    device: str = "auto",
    quantize_base: bool = False,
) -> Policy:
    """Load the base with a trainable LoRA.

    Args:
        base: a folder in Hugging Face format.
        start: the PEFT folder whose LoRA is trained on, with its rank and layers; a fresh one by
            default.
        lora: of a fresh one.
        adamw: the optimizer.
        backend: `auto`, `torch` or `mlx`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quantize_base: whether torch holds the base in 4 bits.

    Raises:
        BackendUnavailable: it can't be loaded here; the message says what to install or set.
        InvalidAdapter: `start` is no adapter of this base.
        OutOfMemory: the device can't hold it.
    """
    files = BaseFiles(base)
    files.check()
    choice = choose(backend, device, base=base)
    if quantize_base:
        check_quantizing(confirmed(choice, device))
    adapter = peft.read(start) if start else None
    lora_settings, adamw = lora or LoraSettings(), adamw or AdamWSettings()
    if choice.name == "torch":
        from strop.training.backends.torch_backend import TorchPolicy

        return TorchPolicy(
            files,
            adapter,
            lora_settings=lora_settings,
            adamw=adamw,
            device=device,
            quantize_base=quantize_base,
        )
    from strop.training.backends.mlx_backend import MlxPolicy

    return MlxPolicy(files, adapter, lora_settings=lora_settings, adamw=adamw, device=device)


def _pick(
    backend: str, device: str, base: Path | None, missing: dict[str, list[str]]
) -> tuple[str, str]:
    """Return the backend, installed or not, and why it."""
    if backend != "auto":
        return backend, f"training.backend = {backend!r}"
    if base is not None and BaseFiles(base).is_mlx_quantized:
        return "mlx", "the base is quantised for MLX"
    if device in ("cuda", "mps"):
        return "torch", f"training.device = {device!r}"
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    best, other = ("mlx", "torch") if is_apple else ("torch", "mlx")
    machine = "Apple Silicon" if is_apple else f"{platform.system()} {platform.machine()}"
    if missing[best] and not missing[other]:
        command = installation.install(f"strop[{best}]")
        return other, f"{best} is faster on {machine}, but not installed: {command}"
    return best, f"the fastest on {machine}"


def _likely_device(name: str, device: str) -> str:
    if device != "auto":
        return device
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    if name == "mlx":
        return "gpu" if is_apple else "cpu"
    if is_apple:
        return "mps"
    is_cpu_build = "+cpu" in importlib.metadata.version("torch")
    has_driver = any(Path(path).exists() for path in _DRIVERS)
    return "cuda" if has_driver and not is_cpu_build else "cpu"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
