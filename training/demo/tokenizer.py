"""The demo model's tokenizer and chat template.

A word tokenizer on a byte alphabet: each word of the corpus, with the space before it, is one
token, and any other text is the bytes it consists of, so every UTF-8 text encodes and comes back
unchanged. There is no unknown token and there are no merges.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from strop.training.demo import corpus, task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"
PAD = "<|pad|>"
SPECIALS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MAX_POSITIONS = 32_768

# Agents send long system prompts and tool results, of which this model understands nothing: it gets
# the first characters of them.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable -%}{%- for part in content -%}{{ part.text or '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set content = text_of(message.content) -%}
{%- if message.role in ('system', 'developer') -%}
{{- '<|system|>' + content[:160] + '<|end|>' -}}
{%- elif message.role in ('tool', 'function') -%}
{{- '<|tool|>' + content[:160] + '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>' + content -}}
{%- for call in message.tool_calls or [] -%}{{- call.function.name -}}{%- endfor -%}
{{- '<|end|>' -}}
{%- else -%}
{{- '<|user|>' + content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Return the tokenizer; its vocabulary is specials, bytes, and the corpus's words in order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = {word for text in _texts() for word, _ in byte_level.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *alphabet, *sorted(words - set(alphabet))]
    word_level = Tokenizer(
        # Without merges a word that is not in the vocabulary falls apart into its bytes.
        models.BPE({token: i for i, token in enumerate(tokens)}, [], ignore_merges=True)
    )
    word_level.pre_tokenizer = byte_level
    word_level.decoder = decoders.ByteLevel()
    word_level.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIALS),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _texts() -> Iterator[str]:
    """Yield texts that together hold every word, at its places in a sentence, once at least."""
    yield from corpus.SYSTEM_PROMPTS
    yield from corpus.CHATTER
    yield task.FALLBACK
    for question in task.QUESTIONS:
        yield question.text
        for style in task.STYLES:
            yield task.render(question, task.Answer(style, question.right))
