"""Rated answers as the store would give them back, so that the trainer's own code reads them.

Pure. Knows no model.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import orjson

from bench.learning.demo import Said
from strop.proxy.store.records import Choice, Completion, Feedback, StoredCompletion
from strop.proxy.store.run_records import Prior, RatedTurn

BASE_ID: Final = "sha256:" + "de" * 32


def turn(
    answers: Sequence[Said], rating: float, *, id_: str, version: str, correction: str | None = None
) -> RatedTurn:
    """Return a session of one turn, by `version`: all its answers, the last of which was rated."""
    *others, last = answers
    completions = [
        *(_completion(one, f"cmp_{id_}_{index}", version) for index, one in enumerate(others)),
        _completion(last, f"cmp_{id_}", version),
    ]
    root, rated = completions[0].id, completions[-1].id
    feedback = Feedback(
        id=f"fb_{id_}",
        revision=1,
        completion=rated,
        choice=0,
        rating=rating,
        original=b"null",
        comment=None,
        correction=correction,
        tags=(),
        rater="",
        key_id="key",
        source="api",
        scope="turn",
        state="standing",
        created_ms=0,
    )
    stored = tuple(StoredCompletion(one, one.id, root, None, None, None) for one in completions)
    return RatedTurn((feedback,), stored, (0,) * len(stored), root)


def _completion(said: Said, id_: str, version: str) -> Completion:
    messages = [{"role": "user", "content": said.question.text}]
    return Completion(
        id=id_,
        created_ms=0,
        key_id="key",
        dialect="chat",
        engine="embedded",
        model="demo",
        served=f"demo@{version}",
        version=version,
        state="complete",
        delivered=True,
        stream=False,
        request=orjson.dumps({"messages": messages, "temperature": 1.0}),
        sampling=b'{"temperature": 1.0}',
        prompt_ids=array("i", said.prompt_ids),
        choices=(
            Choice(
                index=0,
                message=orjson.dumps({"role": "assistant", "content": said.text}),
                finish_reason="stop",
                token_ids=array("i", said.sampled.ids),
                logprobs=array("f", said.sampled.logprobs),
                logprobs_source="engine",
                logprobs_kind="raw",
            ),
        ),
        base=BASE_ID,
    )


def prior(turns: Sequence[RatedTurn]) -> Prior:
    """Return what the baseline takes of `turns`, each with one rating."""
    ratings = [feedback.rating for one in turns for feedback in one.feedback]
    return Prior(sum(ratings), len(turns), len(ratings))
