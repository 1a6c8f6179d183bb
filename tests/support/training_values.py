"""Rated turns, units and a tokenizer for the trainer's tests, with defaults for the rest."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import store_values

from strop.proxy.store.records import Choice, Completion, Feedback, StoredCompletion
from strop.proxy.store.run_records import RatedTurn
from strop.training.sequences import Answer, Floats, Kind, Mask, Tokens, Unit

BASE = "sha256:" + "ab" * 32
PROMPT_IDS = (5, 6, 7)

LN2 = float(np.log(2))


class Bytes:
    """A tokenizer whose ids are bytes, and 256 ends a turn; it knows no tabs.

    Asked to think, its model begins its answers with 257.
    """

    def encode_chat(self, fields: Mapping[str, object]) -> tuple[int, ...]:
        messages = fields["messages"]
        assert isinstance(messages, list)
        if any(message["role"] == "robot" for message in messages):
            raise ValueError("the template knows no robots")
        return self._bytes("".join(f"{m['role']}:{m['content']}\n" for m in messages))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self._bytes(text)

    def encode_shown(self, text: str) -> tuple[tuple[int, ...], ...]:
        return self._bytes(text), (258, *self._bytes(text))

    def encode_answer(self, text: str) -> tuple[int, ...]:
        return (*self._bytes(text), 256)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Each token is a byte, and an empty one at the end ends the turn."""
        has_end = not texts[-1]
        found = [text.encode() for text in (texts[:-1] if has_end else texts)]
        if any(len(one) != 1 for one in found):
            return None
        return (*(one[0] for one in found), *([256] if has_end else []))

    def encode_opening(
        self,
        asked: Sequence[int],  # noqa: ARG002 - this model's prompts all end alike
        fields: Mapping[str, object],
    ) -> tuple[int, ...]:
        return (257,) if fields.get("chat_template_kwargs") == {"enable_thinking": True} else ()

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    def _bytes(self, text: str) -> tuple[int, ...]:
        return tuple(text.replace("\t", " ").encode())


def choice(index: int = 0, **changes: Any) -> Choice:
    """A choice of three tokens with raw logprobs."""
    return store_values.choice(index, **changes)


def completion(id_: str = "cmp_1", **changes: Any) -> Completion:
    """A completion of BASE with three prompt ids."""
    given = {"base": BASE, "prompt_ids": array("i", PROMPT_IDS)}
    return store_values.completion(id_, **(given | changes))


def stored(completion_: Completion) -> StoredCompletion:
    """A completion that follows nothing."""
    return StoredCompletion(completion_, "ses_1", completion_.id, None, None, None)


def feedback(rating: float = 1.0, id_: str = "fb_1", **changes: Any) -> Feedback:
    """A standing rating of the first choice."""
    given: dict[str, Any] = {
        "revision": 1,
        "completion": "cmp_1",
        "choice": 0,
        "original": b"null",
        "comment": None,
        "correction": None,
        "tags": (),
        "rater": "",
        "key_id": "key_a",
        "source": "api",
        "scope": "completion",
        "state": "standing",
        "created_ms": 0,
    }
    return Feedback(id=id_, rating=rating, **(given | changes))


def turn(
    *completions: Completion,
    given: Sequence[Feedback] = (),
    choices: Sequence[int] | None = None,
    root: str = "cmp_root",
) -> RatedTurn:
    """A rated turn; liked by one, of one completion, where nothing else is said."""
    credited = completions or (completion(),)
    return RatedTurn(
        feedback=tuple(given) or (feedback(),),
        completions=tuple(stored(one) for one in credited),
        choices=tuple(choices or [0] * len(credited)),
        root=root,
    )


def floats(*values: float) -> Floats:
    """An array of logprobs. In double precision, so that differences of losses are exact."""
    return np.array(values, np.float64)


def answer(
    base: Sequence[float],
    sampler: Sequence[float] | None = None,
    keep: Sequence[bool] | None = None,
) -> Answer:
    """An answer with these logprobs, sampled by the base and kept whole by default."""
    mask: Mask = np.array([True] * len(base) if keep is None else keep, np.bool_)
    ids = np.arange(1 + len(base), dtype=np.int32)
    sampled = floats(*(base if sampler is None else sampler))
    return Answer(Tokens(ids, 1), floats(*base), sampled, floats(*base), mask)


def unit(*answers: Answer, advantage: float = 1.0, kind: Kind = "rating", **changes: Any) -> Unit:
    """A unit whose rating has the sign of its advantage."""
    rating = changes.get("rating", 1.0 if advantage >= 0 else -1.0)
    return Unit(kind, advantage, answers, rating)
