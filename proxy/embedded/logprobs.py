"""Logprobs in vLLM's dialect: of a chat's answer, of a text completion, and of a prompt.

Pure. Knows no bodies and chunks; those are for `render`.
"""

from collections.abc import Sequence
from typing import Any

from strop.proxy.embedded.answer import Piece
from strop.proxy.embedded.jobs import Scored
from strop.proxy.embedded.protocol import Request
from strop.proxy.embedded.text import Vocabulary

_LEAST = -9999.0  # JSON has no infinity; vLLM's stand-in


class Logprobs:
    """Writes the logprobs of one request's answers.

    Args:
        request: what was asked for.
        vocabulary: for the text of tokens.
    """

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self._request = request
        self._vocabulary = vocabulary
        self._offsets: dict[int, int] = {}

    def of_chat(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """Return those of some pieces of a chat's answer; None where none are asked for."""
        count = self._request.logprobs
        if count is None:
            return None
        return {
            "content": [
                {
                    **self._entry(piece.token.id, piece.token_text, piece.token.logprob),
                    "top_logprobs": [
                        self._entry(token, self._vocabulary.token_text(token, piece.before), value)
                        for token, value in _alternatives(piece.token)[:count]
                    ],
                }
                for piece in pieces
            ]
        }

    def of_text(
        self,
        index: int,
        prompt: Sequence[int],
        scores: Sequence[Scored | None],
        pieces: Sequence[Piece],
    ) -> dict[str, Any] | None:
        """Return those of the next pieces of a text completion; None where none are asked for.

        Args:
            index: of the choice.
            prompt: its prompt.
            scores: of the prompt's tokens, where they are to come first; the first has none.
            pieces: of the answer.
        """
        count = self._request.logprobs
        if count is None:
            return None
        offset = self._offsets.get(index, 0)
        offsets, tokens, logprobs, tops = [], [], [], []
        shown: list[tuple[int, Sequence[int], Scored | None]] = [
            (prompt[at], _before(prompt, at), scored) for at, scored in enumerate(scores)
        ]
        shown += [(piece.token.id, piece.before, piece.token) for piece in pieces]
        for token, before, scored in shown:
            text = self._vocabulary.token_text(token, before)
            name = self._name(token, text)
            offsets.append(offset)
            offset += len(text)
            tokens.append(name)
            logprobs.append(scored and max(scored.logprob, _LEAST))
            tops.append(scored and self._top(scored, name, before, count))
        self._offsets[index] = offset
        return {
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": tops,
        }

    def of_prompt(self, prompt: Sequence[int], scores: Sequence[Scored]) -> list[Any]:
        """Return those of a prompt.

        Args:
            prompt: its ids.
            scores: of all but the first.
        """
        return [
            None,
            *(
                self._prompt_entry(scored, _before(prompt, at))
                for at, scored in enumerate(scores, 1)
            ),
        ]

    def _entry(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        return {
            "token": self._name(token, text),
            "logprob": max(logprob, _LEAST),
            "bytes": list(text.encode()),
        }

    def _top(
        self, scored: Scored, name: str, before: Sequence[int], count: int
    ) -> dict[str, float]:
        top = {name: max(scored.logprob, _LEAST)}
        for token, value in _alternatives(scored)[1 : count + 1]:
            other = self._name(token, self._vocabulary.token_text(token, before))
            # Of tokens with one text the likeliest counts: evaluations look for the best of all.
            top[other] = max(value, top.get(other, _LEAST))
        return top

    def _name(self, token: int, text: str) -> str:
        return f"token_id:{token}" if self._request.tokens_as_ids else text

    def _prompt_entry(self, scored: Scored, before: Sequence[int]) -> dict[str, Any]:
        ranks = {token: rank for rank, (token, _) in enumerate(scored.top, 1)}
        return {
            str(token): {
                "logprob": max(value, _LEAST),
                "rank": scored.rank if token == scored.id else ranks[token],
                "decoded_token": self._vocabulary.token_text(token, before),
            }
            for token, value in _alternatives(scored)
        }


def _before(prompt: Sequence[int], at: int) -> Sequence[int]:
    """Return the ids that the text of the one at `at` may depend on."""
    return prompt[max(0, at - 4) : at]


def _alternatives(scored: Scored) -> list[tuple[int, float]]:
    """Return the token itself, then the best others."""
    others = [pair for pair in scored.top if pair[0] != scored.id]
    return [(scored.id, scored.logprob), *others]
