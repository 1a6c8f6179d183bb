"""A tokenizer that speaks harmony, with a template, and a small random gpt-oss that mlx-lm loads.

Knows nothing of strop. The template takes and refuses what the published one of gpt-oss does; its
words are its own.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = (
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
)  # fmt: skip
WINDOW = 32  # of the layers that don't look at the whole prompt

TEMPLATE = """\
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') -}}
{{- '\\n# Valid channels: analysis, commentary, final.<|end|>' -}}
{%- set rest = messages -%}
{%- set told = '' -%}
{%- if messages[0].role in ('system', 'developer') -%}
{%- set told = messages[0].content -%}
{%- set rest = messages[1:] -%}
{%- endif -%}
{%- if told or tools -%}
{{- '<|start|>developer<|message|>' + told -}}
{%- for tool in tools or [] -%}
{{- '\\n// ' + tool.function.description + '\\n' + tool.function | tojson -}}
{%- for schema in ((tool.function.parameters or {}).properties or {}).values() -%}
{%- if schema.enum and schema.default is defined -%}{{- ' // ' + schema.default -}}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- set last = namespace(name=none) -%}
{%- for message in rest -%}
{%- if message.role == 'user' -%}
{{- '<|start|>user<|message|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'tool' -%}
{%- if last.name is none -%}{{- raise_exception('a result of no call') -}}{%- endif -%}
{{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' -}}
{{- message.content | tojson + '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{%- if 'tool_calls' in message -%}
{%- if message.content and message.thinking -%}
{{- raise_exception('both content and thinking beside a call') -}}
{%- endif -%}
{%- set later = namespace(final=false) -%}
{%- for other in rest[loop.index:] -%}
{%- if other.role == 'assistant' and 'tool_calls' not in other -%}
{%- set later.final = true -%}
{%- endif -%}
{%- endfor -%}
{%- set thought = message.content or message.thinking -%}
{%- if thought and not later.final -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' -}}
{%- endif -%}
{%- set function = message.tool_calls[0].function -%}
{{- '<|start|>assistant to=functions.' + function.name + '<|channel|>commentary json<|message|>' -}}
{{- function.arguments | tojson + '<|call|>' -}}
{%- set last.name = function.name -%}
{%- else -%}
{%- if loop.last and not add_generation_prompt and 'thinking' in message -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content -}}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
{%- set last.name = none -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""


@functools.cache
def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Return the tokenizer of the other models with the marks of harmony as special tokens."""
    tokenizer = models.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def gpt_oss() -> Path:
    """Return the folder of the model, made once."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return models.cached(f"gpt-oss-{digest}", make_gpt_oss)


def make_gpt_oss(folder: Path) -> Path:
    """Write a random gpt-oss (4 layers of 2 kinds, 4 experts) in mlx-lm's names to `folder`.

    As published, `config.json` names one token that ends an answer and `generation_config.json`
    three: the end of text, `<|return|>` and `<|call|>`.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.models.gpt_oss import Model, ModelArgs

    tokenizer = make_tokenizer()
    config: dict[str, Any] = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "rope_theta": 150000,
        "max_position_embeddings": models.MAX_POSITIONS,
    }
    model = Model(ModelArgs.from_dict(config))
    key = mx.random.key(7)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        # Flat enough that a bias decides, and that nothing is sure.
        scale = 0.05 if "lm_head" in name else 0.2
        drawn = scale * mx.random.normal(array.shape, key=own)
        weights.append((name, array if "norm" in name else drawn))
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights))
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids([*MARKS]), strict=True))
    end_of_text = tokenizer.convert_tokens_to_ids(models.END_OF_TEXT)
    ends = {"eos_token_id": [ids["<|return|>"], end_of_text, ids["<|call|>"]]}
    config["eos_token_id"] = ids["<|return|>"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder
