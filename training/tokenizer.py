"""The base's own tokenizer and chat template: text and messages to token ids, and back.

Renders a chat as the embedded engine does, so that the ids are the same. Loads no model, reads only
the base's folder, and runs no code from it but the template, in transformers' sandbox.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from strop.adapters import chat
from strop.adapters.token_texts import TokenTexts
from strop.training.backends.base_files import BaseFiles

# What thoughts stand between, in the vocabularies of models that think.
_THINKING = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
)
_PLACEHOLDER = "answer"  # an assistant's message whose beginning and end are looked for
_ASKED = {"role": "user", "content": "question"}
_ANSWERED = {"role": "assistant", "content": _PLACEHOLDER}
# More ids than any template puts between the last message and the answer.
_HEADER = 64


class BaseTokenizer:
    """The tokenizer in a base's folder.

    Args:
        base: a folder in Hugging Face format.

    Raises:
        ValueError: there is no tokenizer in it that can be loaded.
    """

    def __init__(self, base: Path) -> None:
        from transformers import AutoTokenizer

        self._files = BaseFiles(base)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                base, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ImportError, KeyError, ValueError) as error:
            raise ValueError(f"{base} has no tokenizer that can be loaded: {error}") from error

    def encode_chat(self, fields: Mapping[str, object]) -> tuple[int, ...]:
        """Return the prompt of a chat request, up to where the assistant's answer begins.

        Args:
            fields: the body: `messages`, and where given `tools`, `tool_choice`,
                `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`.

        Raises:
            ValueError: there is no template, or it refuses the messages.
        """
        messages, arguments = self._chat(fields)
        ids: Sequence[int] = self._apply(messages, tokenize=True, return_dict=False, **arguments)
        return tuple(ids)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the prompt of a text completion."""
        return tuple(self._tokenizer.encode(text))

    def encode_shown(self, text: str) -> tuple[tuple[int, ...], ...]:
        """Return the ways to read a prompt that an engine shows as text, special tokens in it.

        What every text begins with is in it, or the engine adds it.
        """
        whole = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        return whole, self.encode_text(text)

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Return an assistant's message as it follows a prompt; the last id ends the turn.

        No part of `text` is read as a special token.
        """
        return (*self._encode_plain(text), self._end_id)

    def encode_opening(self, asked: Sequence[int], fields: Mapping[str, object]) -> tuple[int, ...]:
        """Return what stands between a prompt and the text of an answer that has no thoughts.

        Mostly nothing. A template that thinks writes empty thoughts there, and a prompt that ends
        within thoughts has to have them closed; other templates name a channel.

        Args:
            asked: the prompt's ids, as the model was given them.
            fields: the body of the chat request that they are of; nothing of a text completion.
        """
        prompt = self.decode(asked[-_HEADER:])
        header = self._header(fields)
        for start in range(max(0, len(prompt) - len(header)), len(prompt)):
            if header.startswith(prompt[start:]):
                opening = header[len(prompt) - start :]
                break
        else:
            opening = _closing(prompt)
        return tuple(self._tokenizer.encode(opening, add_special_tokens=False))

    def encode_tokens(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the ids of sampled tokens, given each one's text: that of the last may be empty.

        It ends the turn then. None where a text is not one token's alone.
        """
        if self._texts is None:
            return None
        has_end = bool(texts) and not texts[-1]
        ids = self._texts.ids_of(texts[:-1] if has_end else texts)
        return (*ids, self._end_id) if ids is not None and has_end else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(
            [*map(int, ids)], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        lead = self._encode(self._lead)
        ids = self._encode(self._lead + text)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def _chat(self, fields: Mapping[str, object]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return a request's messages, and what else the template is given."""
        messages = chat.messages(_objects(fields, "messages"))
        tools, must_call = _tools(fields)
        arguments = chat.arguments(_template_arguments(fields), must_call=must_call)
        return messages, {"tools": tools, **arguments}

    def _header(self, fields: Mapping[str, object]) -> str:
        """Return what the template writes between a chat and the text of an answer to it.

        Nothing where there is no telling: the chat ends with a part of the answer, or the template
        refuses it.
        """
        if fields.get("continue_final_message") or not fields.get("messages"):
            return ""
        try:
            messages, arguments = self._chat(fields)
            arguments |= {"add_generation_prompt": False, "tokenize": False}
            # An answer changes what some templates write before it: gpt-oss's drops thoughts then.
            for asked in (messages, [_ASKED]):
                alone: str = self._apply(asked, **arguments)
                answered: str = self._apply([*asked, _ANSWERED], **arguments)
                before = answered.rpartition(_PLACEHOLDER)[0]
                if before.startswith(alone):
                    return before.removeprefix(alone)
        except ValueError:
            pass
        return ""

    def _apply(self, messages: Sequence[Mapping[str, object]], **arguments: Any) -> Any:
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{self._files.folder} has no chat template")
        arguments.setdefault("enable_thinking", self._is_thinking)
        try:
            return self._tokenizer.apply_chat_template(messages, **arguments)
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    @cached_property
    def _is_thinking(self) -> bool:
        vocabulary = self._tokenizer.get_vocab()
        return any(start in vocabulary and end in vocabulary for start, end in _THINKING)

    @cached_property
    def _texts(self) -> TokenTexts | None:
        """None where the tokenizer is of another kind than those of the `tokenizers` package."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return TokenTexts(backend) if backend is not None else None

    @cached_property
    def _lead(self) -> str:
        """What an answer's text is encoded behind, which is then taken off: a line break, or none.

        Tokenizers of SentencePiece's kind begin a text with a space, which an answer behind a line
        break doesn't have in what the template writes.
        """
        try:
            asked = self.encode_chat({"messages": [_ASKED]})
            whole = self.encode_chat(
                {"messages": [_ASKED, _ANSWERED], "add_generation_prompt": False}
            )
        except ValueError:
            return ""
        lead = self._encode("\n")
        plain, behind = self._encode(_PLACEHOLDER), self._encode(f"\n{_PLACEHOLDER}")
        goes_on = whole[: len(asked) + len(behind) - len(lead)] == asked + behind[len(lead) :]
        return "\n" if goes_on and behind != lead + plain else ""

    @cached_property
    def _end_id(self) -> int:
        """The id with which the template ends an assistant's message; else the tokenizer's own.

        Raises:
            ValueError: there is neither.
        """
        ends = self._files.end_ids
        if self._tokenizer.chat_template is not None:
            rendered: str = self._apply(
                [_ASKED, _ANSWERED], tokenize=False, add_generation_prompt=False
            )
            after = rendered.rpartition(_PLACEHOLDER)[2]
            for token in self._tokenizer.encode(after, add_special_tokens=False):
                if token in ends:
                    return int(token)
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"{self._files.folder} names no token that ends an answer")
        return int(self._tokenizer.eos_token_id)


def _closing(prompt: str) -> str:
    """Return what ends the thoughts that a prompt ends with, in the manner in which they began."""
    for start, end in _THINKING:
        _, found, rest = prompt.rpartition(start)
        if found and not rest.strip():
            return f"\n{end}\n\n" if rest else end
    return ""


def _template_arguments(fields: Mapping[str, object]) -> dict[str, Any]:
    named = fields.get("chat_template_kwargs") or {}
    if not isinstance(named, Mapping) or chat.RESERVED & named.keys():
        raise ValueError(
            f"`chat_template_kwargs` must be an object without {sorted(chat.RESERVED)}, got {named}"
        )
    # Not `reasoning_effort`, nor what the embedded engine mends in a history for gpt-oss: it gives
    # the prompt's ids, and mlx_lm.server, which doesn't, does neither.
    flags = ("add_generation_prompt", "continue_final_message")
    given = {flag: fields[flag] for flag in flags if fields.get(flag) is not None}
    return {**named, **given}


def _objects(fields: Mapping[str, object], name: str) -> list[Mapping[str, Any]]:
    value = fields.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"`{name}` must be a list of objects, got {value!r:.80}")
    return value


def _tools(fields: Mapping[str, object]) -> tuple[list[dict[str, Any]] | None, bool]:
    """Return the tools that the model is told of, and whether it must call one."""
    tools = [dict(tool) for tool in _objects(fields, "tools")]
    choice = fields.get("tool_choice")
    if choice == "none":
        return None, False
    if choice in (None, "auto"):
        return tools or None, False
    if isinstance(choice, Mapping):
        name = (choice.get("function") or {}).get("name")
        tools = [tool for tool in tools if (tool.get("function") or {}).get("name") == name]
    return tools, True
