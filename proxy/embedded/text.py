"""From token ids to text: detokenising, stop strings, and the text of single tokens.

Knows no tools, no reasoning and no HTTP. Holds back what later tokens may still change: pieces of
a character, and what may be the beginning of a stop string.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_BROKEN = "\ufffd"
# A character has four bytes at most; tokens of broken ones are held back no longer than this.
_MOST_HELD_TOKENS = 32


class Vocabulary:
    """Decodes ids with a Hugging Face tokenizer.

    Args:
        tokenizer: mlx-lm's wrapper of it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._markers = marker_ids(tokenizer)
        self._text_of = functools.lru_cache(maxsize=1 << 16)(lambda token: self.decode((token,)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def silent(self, *, keeps_markers: bool) -> frozenset[int]:
        """Return the special tokens, which give no text.

        Args:
            keeps_markers: leave out those that mark reasoning and tool calls.
        """
        return self._special - self._markers if keeps_markers else self._special

    def token_text(self, token: int, before: Sequence[int]) -> str:
        """Return the text of one token as logprobs show it, as vLLM does.

        A piece of a character gives "", and the piece that completes it the whole character.
        """
        text = self._text_of(token)
        if not text.endswith(_BROKEN):
            return text
        for count in range(1, min(4, len(before)) + 1):
            context = before[-count:]
            whole = self.decode((*context, token))
            if not whole.endswith(_BROKEN):
                return whole.removeprefix(self.decode(context).rstrip(_BROKEN))
        return ""


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of all special tokens, those too that the tokenizer has no name for."""
    added = (token for token, each in tokenizer.added_tokens_decoder.items() if each.special)
    return frozenset((*added, *tokenizer.all_special_ids))


def marker_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that mark reasoning and tool calls."""
    markers = (
        tokenizer.think_start_tokens,
        tokenizer.think_end_tokens,
        tokenizer.tool_call_start_tokens,
        tokenizer.tool_call_end_tokens,
    )
    return frozenset(token for ids in markers for token in ids or ())


class Detokenizer:
    """Turns one answer's ids into text as they come.

    Decodes a window that begins at the last boundary where the text was whole, so that tokenizers
    which join tokens differently at a beginning give the same text as for the whole answer.

    Args:
        vocabulary: decodes.
        silent: ids that give no text.
        before: the last ids of the prompt, so that the first token joins them.
    """

    def __init__(
        self, vocabulary: Vocabulary, silent: Collection[int], before: Sequence[int] = ()
    ) -> None:
        self._vocabulary = vocabulary
        self._silent = silent
        self._window = [token for token in before[-4:] if token not in silent]
        self._num_read = len(self._window)
        self._read_text = vocabulary.decode(self._window)

    def add(self, token: int, *, keeps_special: bool = False) -> str:
        """Return the text that this token makes certain, "" while a character is incomplete.

        Args:
            token: of the answer.
            keeps_special: whether this one is not to be silent, whatever it is.
        """
        if token in self._silent and not keeps_special:
            return ""
        self._window.append(token)
        text = self._vocabulary.decode(self._window)
        num_held = len(self._window) - self._num_read
        is_whole = len(text) > len(self._read_text) and not text.endswith(_BROKEN)
        if not is_whole and num_held < _MOST_HELD_TOKENS:
            return ""
        new = text[len(self._read_text) :]
        # Of broken bytes the last token is enough to decode the next ones after.
        del self._window[: self._num_read if is_whole else -1]
        self._num_read = len(self._window)
        self._read_text = self._vocabulary.decode(self._window)
        return new

    @property
    def held(self) -> str:
        """The text of the tokens that are held back, if nothing completes it."""
        return self._vocabulary.decode(self._window)[len(self._read_text) :]


@dataclass(slots=True)
class StopStrings:
    """Ends an answer at the first of some strings, however the tokens cut them.

    Attributes:
        strings: none of them empty; may be empty itself.
        is_included: whether the string that ended the answer is part of it.
        found: the string that ended the answer.
    """

    strings: tuple[str, ...]
    is_included: bool = False
    found: str | None = None
    _held: str = ""

    def add(self, text: str, *, may_end: bool = True) -> str:
        """Return the text that is certain; sets `found` where the answer ends with it.

        Where it may not end yet, a string that is whole is passed over, and one that begins counts.
        """
        if not self.strings:
            return text
        held, num_old = self._held + text, len(self._held)
        hits = [
            (at, stop)
            for stop in self.strings
            if may_end and (at := held.find(stop, max(0, num_old - len(stop) + 1))) >= 0
        ]
        if hits:
            at, self.found = min(hits, key=lambda hit: hit[0])
            self._held = ""
            return held[: at + len(self.found)] if self.is_included else held[:at]
        # Keep the longest end that a stop string could begin with.
        longest = max(len(stop) for stop in self.strings) - 1
        for start in range(max(0, len(held) - longest), len(held)):
            if any(stop.startswith(held[start:]) for stop in self.strings):
                self._held = held[start:]
                return held[:start]
        self._held = ""
        return held

    def flush(self) -> str:
        """Return what was held back, at an end that no stop string made."""
        held, self._held = self._held, ""
        return held
