"""Small random models, adapters and reference logprobs for the tests, kept in a cache.

Downloads nothing and knows nothing of strop: whatever the product says about these models is
checked against transformers and peft here. Heavy imports happen inside the functions.
"""

import functools
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "fixture-models"

VOCAB_SIZE = 1280
MAX_POSITIONS = 4096
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [END_OF_TEXT, IM_START, IM_END]
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ATTENTION + MLP

# Characters of two, three and four bytes, few of which the tokenizer learns as one token.
UNICODE_TEXT = (
    "Grüße aus Köln, naïve façade, “quoted” – dashed … 你好，世界。今天天气很好。"
    "こんにちは、元気ですか。안녕하세요. Привет, как дела? مرحبا بالعالم 😀 🎉 🚀 👩‍💻 🇫🇷 ∑ √ ≤ €"
)

# ChatML as Qwen3 speaks it: Hermes tool calls, thoughts kept only after the last user message.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable -%}{%- for part in content -%}{{ part.text or '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- '<|im_start|>system\\n# Tools\\nCall a function by <tool_call>{"name": ..., ' -}}
{{- '"arguments": ...}</tool_call>. Functions:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson -}}{{- '\\n' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set content = text_of(message.content) -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- else -%}
{%- set thought = message.reasoning_content or message.reasoning or '' -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if thought and loop.index0 > ns.last_user -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- set tool_call = call.function or call -%}
{%- if content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """Return the cached folder `name`, made by `make(folder)` if it isn't there.

    The cache is keyed by the makers' source and the versions of what writes the files, and safe
    against other test processes: a folder appears whole or not at all.
    """
    key = hashlib.sha256()
    for source in ("models.py", "scripted_models.py"):
        key.update((Path(__file__).parent / source).read_bytes())
    for package in ("torch", "transformers", "peft", "tokenizers", "click"):
        key.update(f"{package}={version(package)};".encode())
    folder = CACHE / key.hexdigest()[:16] / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        made = scratch / name
        make(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # Not another process's, made meanwhile.
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def make_qwen3(
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    bits: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a random Qwen3ForCausalLM (3 blocks, 128 wide, under 1 M parameters) to `folder`.

    Its answers are gibberish that depends on every prompt token, with peaked distributions. The
    template takes tools and thinking. With `bits` the linear layers are quantised by mlx-lm, in a
    process of its own, to a folder that only mlx-lm loads.
    """
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.25,
        tie_word_embeddings=True,
    )
    if bits is None:
        return _write_random(folder, config, dtype, seed)
    with tempfile.TemporaryDirectory() as scratch:
        plain = _write_random(Path(scratch) / "plain", config, dtype, seed)
        command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(plain)]
        command += ["--mlx-path", str(folder), "-q", "--q-bits", str(bits), "--q-group-size", "64"]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env={**os.environ, "MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1"},
        )
    return folder


def make_llama(folder: Path, *, seed: int = 1) -> Path:
    """Write a random LlamaForCausalLM of the same sizes, vocabulary and template to `folder`."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.25,
        tie_word_embeddings=True,
    )
    return _write_random(folder, config, "float32", seed)


def make_peft(
    base: Path,
    folder: Path,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    layers: Sequence[int] | None = None,
    seed: int,
    rslora: bool = False,
    scale: float,
) -> Path:
    """Write a random PEFT LoRA adapter for `base` to `folder`.

    Args:
        base: a plain (not quantised) model folder.
        folder: where to write `adapter_config.json` and `adapter_model.safetensors`.
        rank: the LoRA rank.
        alpha: the LoRA alpha; the multiplier is alpha / rank (alpha / sqrt(rank) with `rslora`).
        targets: names of the linear layers, for instance `ALL_LINEAR`.
        layers: the blocks that get LoRA; all of them by default.
        seed: of A and B.
        rslora: whether the multiplier is rank-stabilised.
        scale: standard deviation of B's entries.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=list(targets),
                layers_to_transform=None if layers is None else list(layers),
                use_rslora=rslora,
                task_type="CAUSAL_LM",
            ),
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=scale)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def reference_logprobs(
    base: Path, adapter: Path | None, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> list[float]:
    """Return the raw log-softmax (T = 1, fp32, nats) of each answer token after `prompt_ids`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a renamed attribute
            model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    ids = torch.tensor([[*prompt_ids, *answer_ids]])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    start = len(prompt_ids) - 1
    return [float(logprobs[start + i, token]) for i, token in enumerate(answer_ids)]


@functools.cache
def training_text() -> str:
    """Return some 200 kB of click's source, with Unicode in between.

    Its release is pinned, so the text is the same on every machine; that of Python's is not.
    """
    sources = [Path(inspect.getfile(module)) for module in (click.core, click.types)]
    return (UNICODE_TEXT + "\n").join(path.read_text(encoding="utf-8") for path in sources)


@functools.cache
def _trained() -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        training_text().splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - len(MARKERS),
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As in Qwen3, the markers are single tokens but not special: they stay in decoded text.
    bpe.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    return bpe


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer: any text encodes, many characters take several tokens."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_trained(),
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=SPECIALS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Return the special token ids as model configs name them."""
    end_of_text, im_end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, IM_END])
    return {"bos_token_id": end_of_text, "eos_token_id": im_end, "pad_token_id": end_of_text}


def _write_random(folder: Path, config: "PretrainedConfig", dtype: str, seed: int) -> Path:
    """Write a model with random weights and our tokenizer to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer()
    for name, token_id in token_ids(tokenizer).items():
        setattr(config, name, token_id)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return save(folder, model.to(getattr(torch, dtype)), tokenizer)


def save(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> Path:
    """Write model and tokenizer to `folder` and return it."""
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
