"""A fake Ollama that runs a small model with transformers, and the GGUF adapters uploaded to it.

Reads an adapter's file by itself: the product's converter is what it is there to check.
"""

import asyncio
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
from fake_ollama import FailedError, FakeOllama, Model
from fake_ollama_answers import Sampled
from ollama_vocabulary import END_ID, vocabulary_of
from probes import model_of

_LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass
class FakeOllamaModel(FakeOllama):
    """The handler; `folder` has the base, in Hugging Face format.

    Attributes:
        folder: the base.
        bits: what the base's linear layers are rounded to, where they are; groups of 32 weights.
        sampled: all that was sampled, in order, with the prompt.
    """

    folder: Path = Path()
    bits: int | None = None
    sampled: list[tuple[str, Sampled]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabulary = vocabulary_of(self.folder)
        self._tokenizer = models.make_tokenizer()
        self._weights: Mapping[str, Any] = {}
        self._computing = asyncio.Lock()

    def prompt_of(self, messages: list[dict[str, Any]]) -> str:
        """Return what the model's template makes of a chat."""
        text: str = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return text

    async def start_runner(self, model: Model) -> None:
        """Put the deltas of its adapters into the base's weights, as llama.cpp computes them."""
        async with self._computing:
            self._weights = await asyncio.to_thread(self._read, self.really(model))

    async def sample(self, prompt: str, limit: int | None, temperature: float) -> Sampled:
        """Return what is loaded answers; the logprobs are raw."""
        ids = self.vocabulary.encode(prompt)
        async with self._computing:
            said = await asyncio.to_thread(self._sample, ids, limit or 64, temperature)
        self.sampled.append((prompt, said))
        return said

    def _read(self, model: Model) -> Mapping[str, Any]:
        import torch

        weights = linear_weights(self.folder, self.bits)
        for digest in model.adapters:
            for name, delta in self._deltas(self.blobs[f"sha256:{digest}"]).items():
                weights[name] = weights[name] + torch.from_numpy(delta)
        return weights

    def _deltas(self, blob: bytes) -> Mapping[str, Any]:
        import gguf

        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(blob)
            file.flush()
            reader = gguf.GGUFReader(file.name)
            values = {key: found.contents() for key, found in reader.fields.items()}
            arrays = {tensor.name: tensor.data.copy() for tensor in reader.tensors}
        config = model_of(self.folder, None).config
        if values["general.architecture"] != config.model_type:
            raise FailedError("model arch and LoRA arch mismatch", 500)
        assert ("adapter", "lora") == (values["general.type"], values["adapter.type"])
        deltas = {}
        for name in arrays:
            if not name.endswith(".lora_a"):
                continue
            a, b = arrays[name], arrays[name.removesuffix("a") + "b"]
            found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight\.lora_a", name)
            assert found is not None, name
            if config.model_type == "llama" and found[2] in ("attn_q", "attn_k"):
                is_q = found[2] == "attn_q"
                b = _apart(b, config.num_attention_heads if is_q else config.num_key_value_heads)
            scale = values["adapter.lora.alpha"] / b.shape[1]
            deltas[f"model.layers.{found[1]}.{_LAYERS[found[2]]}.weight"] = scale * (b @ a)
        return deltas

    def _sample(self, prompt: Any, limit: int, temperature: float) -> Sampled:
        import torch

        ids: list[int] = []
        logprobs: list[float] = []
        model, seen = model_of(self.folder, None), list(prompt)
        cache = None
        while len(ids) < limit and END_ID not in ids:
            with torch.no_grad():
                out = torch.func.functional_call(
                    model,
                    dict(self._weights),
                    (torch.tensor([seen]),),
                    {"past_key_values": cache, "use_cache": True},
                )
            row, cache = out.logits[0, -1].log_softmax(-1), out.past_key_values
            if temperature:
                token = int(torch.multinomial((row / temperature).softmax(-1), 1))
            else:
                token = int(row.argmax())
            ids.append(token)
            logprobs.append(float(row[token]))
            seen = [token]
        return Sampled(ids, logprobs, len(prompt), self.vocabulary)


def linear_weights(folder: Path, bits: int | None) -> dict[str, Any]:
    """Return the weights of a base's linear layers by name, rounded to `bits` where those are."""
    weights = {
        name: weight.detach()
        for name, weight in model_of(folder, None).named_parameters()
        if name.endswith("_proj.weight")
    }
    if bits is None:
        return weights
    return {name: _rounded(weight, bits) for name, weight in weights.items()}


def _apart(b: Any, num_heads: int) -> Any:
    """Return B with its rows in transformers' order: llama.cpp has them in rotary pairs."""
    num_out, rank = b.shape
    return (
        b.reshape(num_heads, num_out // num_heads // 2, 2, rank)
        .swapaxes(1, 2)
        .reshape(num_out, rank)
    )


def _rounded(weight: Any, bits: int) -> Any:
    """Return weights as a symmetric quantisation in groups of 32 keeps them."""
    groups = weight.reshape(-1, 32)
    step = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((groups / step).round() * step).reshape(weight.shape)
