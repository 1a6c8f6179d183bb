"""Which tokens an answer may go on with, to have the form that was asked for.

Compiles and follows grammars with llguidance, as vLLM can. Knows no logits, no batch and no HTTP.
"""

import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.forms import SPACES, Form

FORM = "@form"
"""The form, in the grammar of a frame around it."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What an answer may have beside its form, and where that begins and ends.

    Attributes:
        thought: the token that begins a thought before the answer; None where there is none.
        thought_end: the tokens that end it.
        is_thinking: whether the prompt has begun one.
        call: the token that begins a tool call, which may stand in place of the form.
    """

    thought: int | None = None
    thought_end: tuple[int, ...] = ()
    is_thinking: bool = False
    call: int | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled form.

    Attributes:
        matcher: at its start; each answer follows a copy, which costs a thousandth of compiling.
        vocab_size: the width of the logits.
        beside: what else the answer may have.
    """

    matcher: LLMatcher
    vocab_size: int
    beside: Beside


class Grammars:
    """Compiles forms for one model.

    Args:
        tokenizer: mlx-lm's.
        vocab_size: the width of the logits.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._tokens: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, form: Form, beside: Beside, frame: str = "") -> Grammar:
        """Return the grammar of `form`.

        Args:
            form: what to follow.
            beside: what else the answer may have.
            frame: a grammar in Lark's notation in which the form is `FORM`; "" for the form alone.

        Raises:
            BadRequest: it is no schema or expression, or has what llguidance can't follow.
        """
        tokens = self._read_tokens()
        try:
            if form.kind == "json":
                text = LLMatcher.grammar_from_json_schema(
                    form.text, defaults={"whitespace_pattern": SPACES}
                )
            elif form.kind == "regex":
                text = LLMatcher.grammar_from_regex(form.text)
            else:
                text = LLMatcher.grammar_from_lark(form.text)
            if frame:
                text = _framed(text, frame)
            fault = LLMatcher.validate_grammar(text, tokens)
        except ValueError as error:
            fault = str(error)
        if fault:
            raise BadRequest(f"`{form.param}` can't be followed: {fault[:500]}", param=form.param)
        return Grammar(LLMatcher(tokens, text), self._vocab_size, beside)

    def _read_tokens(self) -> LLTokenizer:
        """Read the tokenizer, which takes about a second for a large vocabulary, once."""
        with self._lock:
            if self._tokens is None:
                # mlx-lm's wraps transformers', and that one the tokenizers library's.
                fast = getattr(self._tokenizer, "backend_tokenizer", None)
                if fast is None or not self._tokenizer.eos_token_ids:
                    raise BadRequest(
                        "this model's tokenizer is of a kind that answers can't be bound to a form"
                        " with, or has no token that ends them",
                        param="response_format",
                    )
                self._tokens = LLTokenizer(
                    fast.to_str(),
                    n_vocab=self._vocab_size,
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )
            return self._tokens


def _framed(form: str, frame: str) -> str:
    """Return llguidance's list of grammars, of which the first is followed and names the second."""
    listed = json.loads(form) if form.startswith("{") else {"grammars": [{"lark_grammar": form}]}
    (grammar,) = listed["grammars"]
    named = {**grammar, "name": FORM.removeprefix("@")}
    return json.dumps({**listed, "grammars": [{"name": "frame", "lark_grammar": frame}, named]})


class Follower:
    """One answer's way through its grammar.

    One thought before it, or a tool call in its place, is free. Never raises: it runs in a batch
    with the answers of others.

    Args:
        grammar: what to follow.
        stop_ids: the tokens that end the answer.
    """

    def __init__(self, grammar: Grammar, stop_ids: frozenset[int]) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._stop_ids = sorted(stop_ids)
        self._thought = None if grammar.beside.is_thinking else grammar.beside.thought
        self._is_thinking = grammar.beside.is_thinking
        self._is_call = False
        self._has_begun = False
        self._last: tuple[int, ...] = ()

    def read(self, token: int) -> None:
        """Take the next token of the answer."""
        beside = self._grammar.beside
        if self._is_thinking:
            self._last = (*self._last, token)[-len(beside.thought_end) :]
            self._is_thinking = self._last != beside.thought_end
        elif not self._has_begun and token == self._thought:
            self._thought, self._is_thinking = None, True
        elif not self._has_begun and token == beside.call:
            self._is_call = True
        elif not self._is_call:
            self._has_begun = True
            self._matcher.consume_token(token)

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return which tokens may come next, of shape (vocabulary,); None for all."""
        if self._is_thinking or self._is_call:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        size = self._grammar.vocab_size
        may_come = np.unpackbits(bits, count=size, bitorder="little").astype(np.bool_)
        if self._matcher.is_accepting():
            may_come[self._stop_ids] = True
        if not self._has_begun:
            others = (self._thought, self._grammar.beside.call)
            may_come[[token for token in others if token is not None]] = True
        return may_come
