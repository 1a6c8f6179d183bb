"""Requests in vLLM's dialect, validated: JSON fields in, plain values out.

Every range is checked here, because an exception in a batch would end other requests' answers too.
Knows no tokenizer; what needs token counts is checked where the prompt is encoded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.fields import Fields, token_ids, wrong
from strop.proxy.embedded.forms import Form, form_in
from strop.proxy.embedded.jobs import Sampling
from strop.proxy.wire import weights

Dialect = Literal["chat", "completions"]
Prompt = str | tuple[int, ...]

MAX_TOP_LOGPROBS = 20
MAX_N = 64
MAX_PROMPTS = 256
DEFAULT_MAX_TOKENS = 16  # of text completions
NEUTRAL = Sampling()
_MOST_ID_DIGITS = 10

# Would change the answer, so ignoring them would be a lie. With the values that mean nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "functions": ([],),
    "documents": ([],),
    "truncate_prompt_tokens": (),
    "chat_template": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A chat or text completion as asked for.

    Attributes:
        max_tokens: None for the rest of the context; 0 for the echoed prompt alone.
        logprobs: how many alternatives to give with each logprob; None for no logprobs.
        prompt_logprobs: the same for the prompt's tokens.
        messages: of a chat.
        tools: what the template and the tool parser get: none with `tool_choice` none, one alone
            where it names one.
        must_call: whether the answer has to begin with a tool call.
        wants_one_call: whether further tool calls are to be dropped.
        template_kwargs: further arguments of the chat template.
        form: what the answer has to look like; None for any.
        prompts: of a text completion.
        echo: whether its answers begin with their prompts.
        cache_salt: only requests with the same one share a prefix cache; empty for the common one.
    """

    dialect: Dialect
    model: str
    sampling: Sampling
    is_stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    include_reasoning: bool = True
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] | None = None
    must_call: bool = False
    wants_one_call: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    form: Form | None = None
    prompts: tuple[Prompt, ...] = ()
    echo: bool = False
    add_special_tokens: bool = True
    cache_salt: str = ""


def parse_chat(body: object, usual: Sampling = NEUTRAL) -> Request:
    """Return a chat request; what it leaves out is sampled as `usual` says.

    Raises:
        BadRequest: a field is missing, wrong, or asks for what this engine can't do.
    """
    fields = Fields(body)
    messages = fields.objects("messages")
    if not messages:
        raise wrong("messages", "a list of at least one message", fields.get("messages"))
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise wrong("messages", "messages that each have a `role`", message)
    if fields.flag("echo"):
        raise BadRequest(
            "the embedded engine supports `echo` of a prompt, not of `messages`; use"
            " /v1/completions",
            param="echo",
        )
    top = fields.integer("top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    wants_logprobs = fields.flag("logprobs")
    if top and not wants_logprobs:
        raise BadRequest(
            "when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs"
        )
    template_kwargs = dict(fields.mapping("chat_template_kwargs"))
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in fields:
            template_kwargs[name] = fields.flag(name)
    if "reasoning_effort" in fields:
        template_kwargs.setdefault("reasoning_effort", fields.string("reasoning_effort"))
    tools, must_call = _tools(fields)
    limit = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    return _request(
        fields,
        usual,
        "chat",
        max_tokens=_max_tokens(fields, limit),
        logprobs=(top or 0) if wants_logprobs else None,
        messages=messages,
        tools=tools,
        must_call=must_call,
        wants_one_call=not fields.flag("parallel_tool_calls", default=True),
        template_kwargs=template_kwargs,
        include_reasoning=fields.flag("include_reasoning", default=True),
    )


def parse_completion(body: object, usual: Sampling = NEUTRAL) -> Request:
    """Return a text completion request; raises as `parse_chat`."""
    fields = Fields(body)
    # As in vLLM, and OpenAI's own; a null asks for the rest of the context.
    is_null = isinstance(body, dict) and "max_tokens" in body and "max_tokens" not in fields
    logprobs = fields.get("logprobs")
    if isinstance(logprobs, bool):
        logprobs = int(logprobs)  # as vLLM takes them
    else:
        logprobs = fields.integer("logprobs", low=0, high=MAX_TOP_LOGPROBS)
    echo = fields.flag("echo")
    default = None if is_null else DEFAULT_MAX_TOKENS
    return _request(
        fields,
        usual,
        "completions",
        max_tokens=_max_tokens(fields, "max_tokens", default, low=0 if echo else 1),
        logprobs=logprobs,
        prompts=_prompts(fields.get("prompt")),
        echo=echo,
        add_special_tokens=fields.flag("add_special_tokens", default=True),
    )


def _max_tokens(
    fields: Fields, name: str, default: int | None = None, *, low: int = 1
) -> int | None:
    return fields.integer(name, default, low=low, high=1 << 31)


def _request(fields: Fields, usual: Sampling, dialect: Dialect, **rest: Any) -> Request:
    _refuse(fields)
    is_stream = fields.flag("stream")
    prompt_logprobs = fields.integer("prompt_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    if is_stream and prompt_logprobs is not None:
        raise BadRequest(
            "`prompt_logprobs` are not available when `stream=True`.", param="prompt_logprobs"
        )
    return Request(
        dialect=dialect,
        model=fields.string("model") if "model" in fields else "",
        sampling=read_sampling(fields, usual),
        is_stream=is_stream,
        include_usage=bool(fields.mapping("stream_options").get("include_usage")),
        n=fields.integer("n", 1, low=1, high=MAX_N) or 1,
        stop=_stop(fields.get("stop")),
        stop_token_ids=frozenset(fields.token_ids("stop_token_ids")),
        include_stop=fields.flag("include_stop_str_in_output"),
        ignore_eos=fields.flag("ignore_eos"),
        skip_special_tokens=fields.flag("skip_special_tokens", default=True),
        prompt_logprobs=prompt_logprobs,
        return_token_ids=fields.flag("return_token_ids"),
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
        form=form_in(fields),
        cache_salt=_cache_salt(fields),
        **rest,
    )


def _refuse(fields: Fields) -> None:
    for name in weights.FIELDS:
        if name in fields:
            raise BadRequest(
                f"`{name}` is not accepted; name a loaded version in `model` instead", param=name
            )
    for name, harmless in _UNSUPPORTED.items():
        if name in fields and fields.get(name) not in harmless:
            raise BadRequest(f"`{name}` is not supported by the embedded engine", param=name)


def read_sampling(fields: Fields, usual: Sampling) -> Sampling:
    """Return how tokens are to be drawn; what `fields` don't say of that is as usual.

    Raises:
        BadRequest: a value that can't be.
    """

    def penalty(name: str, otherwise: float) -> float:
        return fields.number(name, otherwise, lambda x: -2 <= x <= 2, "a number from -2 to 2")

    seed = fields.integer("seed", low=-(1 << 63), high=(1 << 63) - 1)
    return Sampling(
        temperature=fields.number(
            "temperature", usual.temperature, lambda x: x >= 0, "a number of at least 0"
        ),
        top_p=fields.number(
            "top_p", usual.top_p, lambda x: 0 < x <= 1, "a number above 0 and up to 1"
        ),
        top_k=max(0, fields.integer("top_k", usual.top_k, low=-1, high=1 << 31) or 0),
        min_p=fields.number("min_p", usual.min_p, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        seed=None if seed == -1 else seed,  # As in vLLM, -1 is none.
        presence_penalty=penalty("presence_penalty", usual.presence_penalty),
        frequency_penalty=penalty("frequency_penalty", usual.frequency_penalty),
        repetition_penalty=fields.number(
            "repetition_penalty",
            usual.repetition_penalty,
            lambda x: 0 < x <= 10,
            "a number above 0 and up to 10",
        ),
        logit_bias=_logit_bias(fields),
        min_tokens=fields.integer("min_tokens", 0, low=0, high=1 << 31) or 0,
    )


def _logit_bias(fields: Fields) -> dict[int, float]:
    bias = {}
    for token, value in fields.mapping("logit_bias").items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_token = token.isascii() and token.isdigit() and len(token) <= _MOST_ID_DIGITS
        if not (is_token and is_number and math.isfinite(value)):
            raise wrong("logit_bias", "an object of token ids to numbers", {token: value})
        bias[int(token)] = min(100.0, max(-100.0, float(value)))
    return bias


def _cache_salt(fields: Fields) -> str:
    if "cache_salt" not in fields:
        return ""
    salt = fields.string("cache_salt")
    if not salt:
        raise wrong("cache_salt", "a string that is not empty", salt)
    return salt


def _stop(value: object) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if strings is None:
        return ()
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise wrong("stop", "a string or a list of strings, none of them empty", value)
    return tuple(strings)


def _prompts(value: object) -> tuple[Prompt, ...]:
    expected = "a string, token ids, or a list of either, none of them empty"
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise wrong("prompt", expected, value)
    if isinstance(value[0], int):
        return (token_ids(value, "prompt"),)
    if len(value) > MAX_PROMPTS:
        raise wrong("prompt", f"a list of at most {MAX_PROMPTS} prompts", f"{len(value)} of them")
    prompts = tuple(item if isinstance(item, str) else token_ids(item, "prompt") for item in value)
    if not all(prompt or isinstance(prompt, str) for prompt in prompts):
        raise wrong("prompt", expected, value)
    return prompts


def _tools(fields: Fields) -> tuple[tuple[Mapping[str, Any], ...] | None, bool]:
    """Return the tools that the model is told of, and whether it must call one."""
    tools = fields.objects("tools")
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong("tools", "a list of functions, each with a `name`", tool)
    choice = fields.get("tool_choice")
    if choice == "none":
        return None, False
    if choice in (None, "auto"):
        return tools or None, False
    if choice == "required":
        named = tools
    else:
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        named = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not named:
        raise wrong("tool_choice", "none, auto, required, or a function among `tools`", choice)
    return named, True
