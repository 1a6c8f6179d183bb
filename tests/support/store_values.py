"""Completions and ratings for the store's tests, with defaults for all that a test doesn't say."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from strop.proxy.store.held_out import is_held_out
from strop.proxy.store.records import Choice, Completion, FeedbackOutcome, NewFeedback, Recorded
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Version

KEY = "key_a"
OTHER_KEY = "key_b"
NOON_MS = 1_700_000_000_000
MODEL = "sha256:" + "ab" * 32
OTHER_MODEL = "sha256:" + "cd" * 32

REQUEST = b'{"model": "m", "messages": [{"role": "user", "content": "What is a strop?"}]}'
MESSAGE = b'{"role":"assistant","content":"A leather for blades."}'


def choice(index: int = 0, **changes: Any) -> Choice:
    """A choice of three tokens."""
    made = Choice(
        index=index,
        message=MESSAGE,
        finish_reason="stop",
        token_ids=array("i", [7, 11, 2]),
        logprobs=array("f", [-0.1, -2.5, -0.0]),
        logprobs_source="engine",
        logprobs_kind="raw",
    )
    return msgspec.structs.replace(made, **changes)


def completion(id_: str, **changes: Any) -> Completion:
    """A chat completion with one choice, that follows nothing."""
    made = Completion(
        id=id_,
        created_ms=NOON_MS,
        key_id=KEY,
        dialect="chat",
        engine="vllm",
        model="m",
        served="m",
        version="base",
        state="complete",
        delivered=True,
        stream=False,
        request=REQUEST,
        status=200,
        choices=(choice(),),
    )
    return msgspec.structs.replace(made, **changes)


def rating(completion_id: str, value: float = 1.0, **changes: Any) -> NewFeedback:
    """A rating by API."""
    made = NewFeedback(
        completion=completion_id,
        key_id=KEY,
        rating=value,
        original=b'"good"' if value > 0 else b'"bad"',
    )
    return replace(made, **changes)


def never(_: str) -> bool:
    """Say of every completion that it isn't in flight."""
    return False


def always(_: str) -> bool:
    """Say of every completion that it is in flight."""
    return True


async def record(store: Store, id_: str, **changes: Any) -> Recorded:
    """Record a completion made by `completion`."""
    made = completion(id_, **changes)
    return await store.commit_completion(lambda: made, len(made.request))


async def rate(
    store: Store, completion_id: str, value: float = 1.0, **changes: Any
) -> FeedbackOutcome:
    """Add a rating made by `rating`, with nothing in flight."""
    return await store.add_feedback(rating(completion_id, value, **changes), never)


def first_of_session(number: int, *, held_out: bool = False) -> str:
    """An id for the first completion of a session that is held out, or isn't."""
    tries = (f"cmp_{number:03}_{attempt}" for attempt in range(1000))
    return next(id_ for id_ in tries if is_held_out(id_) is held_out)


async def learnable(
    store: Store, number: int, value: float = 1.0, *, held_out: bool = False, **changes: Any
) -> tuple[str, int]:
    """Record an answer of MODEL in a session of its own, and rate it; return what is learned."""
    id_ = first_of_session(number, held_out=held_out)
    await record(store, id_, base=MODEL)
    given = (await rate(store, id_, value, **changes)).feedback
    return given.id, given.revision


async def version(
    store: Store, *learned: tuple[str, int], parent: str | None = None, is_active: bool = False
) -> Version:
    """Publish a version that learned from some feedback, and activate it if asked to."""
    made = await store.versions.reserve(base=MODEL, parent=parent)
    made = await store.versions.publish(made.id, b"{}", learned, state="ready", actor="gate")
    if is_active:
        await store.versions.activate(made.id, actor="api")
    return made


def database_in(folder: Path) -> Path:
    """Where a test keeps its database."""
    return folder / "strop.db"
