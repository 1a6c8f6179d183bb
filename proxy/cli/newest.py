"""The newest answer: the one that a person means who names none, having just read it.

Looks; rates nothing, and prints nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strop.proxy import unread
from strop.proxy.store.records import StoredCompletion

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class Newest:
    """What was found: the answer, if there is one; and how many newer ones are none to rate.

    `passed_over` has their ids by the reason, newest first.
    """

    answer: StoredCompletion | None
    passed_over: Mapping[str, list[str]]


async def newest(store: "Store") -> Newest:
    """Return the newest answer that somebody can have read: the last that ended.

    One that was broken off is: who stops a bad answer has seen what there is of it. One of a single
    token is not: so agents count tokens. Nor is one that ended before it began, a title, or a
    summary that an agent goes on from.
    """
    passed_over: dict[str, list[str]] = {}
    before: int | None = None
    while ended := await store.list_latest(limit=_PAGE, before=before):
        for _, id_ in ended:
            found = await store.get_completion(id_)
            # Else it was deleted in that moment.
            if found is not None:
                reason = unread.why(found.completion)
                if reason is None:
                    return Newest(found, passed_over)
                passed_over.setdefault(reason, []).append(id_)
        before, _ = ended[-1]
    return Newest(None, passed_over)
