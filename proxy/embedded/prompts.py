"""Prompts of requests to token ids, and jobs for the worker.

Runs in threads of its own: encoding a long history takes tens of milliseconds. Knows no HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from jinja2 import TemplateError

from strop.adapters import chat
from strop.proxy.embedded import harmony, history
from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.fields import wrong
from strop.proxy.embedded.forms import Form
from strop.proxy.embedded.grammar import FORM, Beside, Grammar
from strop.proxy.embedded.jobs import Job
from strop.proxy.embedded.loading import LoadedModel
from strop.proxy.embedded.protocol import Prompt, Request
from strop.proxy.embedded.text_parts import Markup

# What templates raise on messages and arguments that they weren't written for.
_TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


def jobs(request: Request, loaded: LoadedModel) -> list[Job]:
    """Return one job per prompt.

    Raises:
        BadRequest: the template refuses the messages, an id is no token, or the context is too
            short.
    """
    if request.dialect == "chat":
        prompts: list[tuple[int, ...]] = [encode_chat(request, loaded.tokenizer)]
    else:
        prompts = [
            encode(prompt, loaded.tokenizer, add_special_tokens=request.add_special_tokens)
            for prompt in request.prompts
        ]
    eos = () if request.ignore_eos else loaded.tokenizer.eos_token_ids
    stop_ids = request.stop_token_ids | frozenset(eos)
    sampling = request.sampling
    if request.must_call and harmony.marks_of(loaded.tokenizer):
        sampling = replace(sampling, grammar=_call_grammar(request, loaded, prompts[0]))
    elif request.must_call:
        sampling = replace(sampling, forced=_call_start(loaded.tokenizer, prompts[0]))
    elif request.form is not None:
        sampling = replace(sampling, grammar=_grammar(request, loaded, prompts[0]))
    prompt_logprobs = request.prompt_logprobs
    if prompt_logprobs is None and request.echo:
        prompt_logprobs = request.logprobs
    check_ids("prompt", chain.from_iterable(prompts), loaded.vocab_size)
    check_ids("logit_bias", sampling.logit_bias, loaded.vocab_size)
    check_ids("stop_token_ids", request.stop_token_ids, loaded.vocab_size)
    return [
        Job(
            model=request.model,
            prompt=prompt,
            max_tokens=_max_tokens(request, len(prompt), loaded.max_model_len),
            stop_ids=stop_ids,
            sampling=sampling,
            n=request.n,
            num_top=request.logprobs or 0,
            prompt_logprobs=prompt_logprobs,
            cache_salt=request.cache_salt,
        )
        for prompt in prompts
    ]


def encode(prompt: Prompt, tokenizer: Any, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Return the ids of a text completion's prompt."""
    if isinstance(prompt, tuple):
        return prompt
    ids = tuple(tokenizer.encode(prompt, add_special_tokens=add_special_tokens))
    if not ids:
        raise BadRequest("`prompt` must not be empty", param="prompt")
    return ids


def encode_chat(request: Request, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of a chat as the model's template renders it.

    Raises:
        BadRequest: there is no template, or it refuses the messages, or makes nothing of them.
    """
    if not tokenizer.has_chat_template:
        raise BadRequest(
            "this model has no chat template, so it can't take messages; use /v1/completions",
            param="messages",
        )
    if reserved := chat.RESERVED & request.template_kwargs.keys():
        raise BadRequest(
            f"`chat_template_kwargs` must not hold {sorted(reserved)}", param="chat_template_kwargs"
        )
    arguments = chat.arguments(request.template_kwargs, must_call=request.must_call)
    try:
        messages = chat.messages(request.messages)
    except ValueError as error:
        raise BadRequest(
            f"the embedded engine can't take these messages: {error}", param="messages"
        ) from error
    tools = [dict(tool) for tool in request.tools] if request.tools else None
    if harmony.marks_of(tokenizer):
        messages = history.for_harmony(messages)
        tools = tools and history.tools_for_harmony(tools)
    try:
        ids = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, **arguments)
    except _TEMPLATE_ERRORS as error:
        raise BadRequest(
            f"the chat template refuses these messages: {error}", param="messages"
        ) from error
    if not ids:
        raise BadRequest("the chat template makes nothing of these messages", param="messages")
    return tuple(ids)


def _grammar(request: Request, loaded: LoadedModel, prompt: Sequence[int]) -> Grammar:
    """Return what the answer follows, behind a thought if the model has any, or a call instead.

    Raises:
        BadRequest: it can't be followed, or no call could be told from it by its first token.
    """
    assert request.form is not None
    tokenizer, beside = loaded.tokenizer, Beside()
    if request.dialect == "chat" and harmony.marks_of(tokenizer):
        frame = harmony.frame(tokenizer, prompt, _functions(request), FORM)
        return loaded.grammars.compile(request.form, beside, frame)
    if request.dialect == "chat":
        markup = Markup.of(tokenizer, prompt, has_tools=request.tools is not None)
        if markup.think is not None:
            begin = tokenizer.think_start_tokens
            beside = Beside(
                # Of several, the first could as well begin the form.
                thought=begin[0] if len(begin) == 1 else None,
                thought_end=tuple(tokenizer.think_end_tokens),
                is_thinking=markup.begins_thinking,
            )
        if markup.tool is not None:
            begin = tokenizer.tool_call_start_tokens
            if len(begin) != 1:
                raise BadRequest(
                    f"`{request.form.param}` and `tools` don't go together with this model; send"
                    " one of them",
                    param=request.form.param,
                )
            beside = replace(beside, call=begin[0])
    return loaded.grammars.compile(request.form, beside)


def _call_grammar(request: Request, loaded: LoadedModel, prompt: Sequence[int]) -> Grammar:
    """Return the grammar of an answer in harmony that calls a tool, behind a thought if it likes.

    A model that writes headers can't be kept from thinking by how its answer begins.

    Raises:
        BadRequest: the answer may not end where the call does.
    """
    if request.sampling.min_tokens:
        raise wrong(
            "min_tokens", "0 where this model has to call a tool", request.sampling.min_tokens
        )
    text = harmony.frame(loaded.tokenizer, prompt, _functions(request))
    return loaded.grammars.compile(Form("lark", text, "tool_choice"), Beside())


def _functions(request: Request) -> list[str]:
    return [tool["function"]["name"] for tool in request.tools or ()]


def _call_start(tokenizer: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    """Return the ids that begin a tool call, behind the end of a thought that the prompt opens.

    Raises:
        BadRequest: the model's chat template has no tool calls.
    """
    if not tokenizer.has_tool_calling:
        raise BadRequest(
            "this model's chat template has no tool calls, so none can be required; use"
            " `tool_choice` auto or none",
            param="tool_choice",
        )
    markup = Markup.of(tokenizer, prompt, has_tools=True)
    end = tokenizer.think_end_tokens if markup.begins_thinking else ()
    return (*end, *tokenizer.tool_call_start_tokens)


def check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise BadRequest for the field `name` unless the model has all these ids."""
    most = max(ids, default=0)
    if most >= vocab_size:
        raise BadRequest(
            f"Token id {most} is out of vocabulary; ids go up to {vocab_size - 1}", param=name
        )


def _max_tokens(request: Request, num_prompt: int, limit: int) -> int:
    if num_prompt >= limit:
        raise BadRequest(
            f"This model's maximum context length is {limit} tokens. However, your request has "
            f"{num_prompt} input tokens. Please reduce the length of the input messages.",
            param="input_tokens",
        )
    wanted = request.max_tokens
    if wanted is None:
        return limit - num_prompt
    wanted = max(1, wanted)  # As in vLLM, for a prompt alone one is drawn, and not shown.
    if num_prompt + wanted > limit:
        raise BadRequest(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{wanted} output tokens and your prompt contains {num_prompt} input tokens, for a "
            f"total of {num_prompt + wanted} tokens. Please reduce the length of the input prompt "
            "or the number of requested output tokens.",
            param="input_tokens",
        )
    return wanted
