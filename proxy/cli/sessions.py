"""Conversations by the names that clients gave them: the one that is meant.

Asks the store, and prints nothing. Knows no command.
"""

from collections import Counter
from typing import TYPE_CHECKING, Final

import click

from strop.proxy.errors import BadRequest
from strop.proxy.store.records import CompletionFilter

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

_PAGE: Final = 1000

key_option: Final = click.option(
    "--key", metavar="KEY_ID", help="Made with one client key; `completions show` says its id."
)


async def key_of(store: "Store", session: str) -> str | None:
    """Return the client key that the one conversation called `session` was made with.

    None where nothing of that name is recorded.

    Raises:
        BadRequest: clients of several keys call one so.
    """
    num_by_key: Counter[str] = Counter()
    after, has_more = None, True
    while has_more:
        page = await store.list_completions(
            CompletionFilter(session=session), limit=_PAGE, after=after
        )
        num_by_key.update(one.key_id for one in page.data)
        has_more = page.has_more
        after = page.data[-1].id if has_more else None
    if len(num_by_key) > 1:
        each = ", ".join(f"{key} ({answers(num)})" for key, num in sorted(num_by_key.items()))
        raise BadRequest(
            f"{len(num_by_key)} conversations are called {session!r}, one of each key: {each};"
            " say whose with --key"
        )
    return next(iter(num_by_key), None)


def answers(num: int) -> str:
    """Return so many answers, in words."""
    return f"{num} answer{'' if num == 1 else 's'}"
