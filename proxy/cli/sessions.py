"""Conversations by the names that clients gave them: the one that is meant.

Asks the store, and prints nothing. Knows no command.
"""

from typing import TYPE_CHECKING, Final

import click

from strop.proxy.errors import BadRequest

if TYPE_CHECKING:
    from strop.proxy.store.store import Store

key_option: Final = click.option(
    "--key", metavar="KEY_ID", help="Made with one client key; `completions show` says its id."
)


async def key_of(store: "Store", session: str) -> str | None:
    """Return the client key that the one conversation called `session` was made with.

    None where nothing of that name is recorded.

    Raises:
        BadRequest: clients of several keys call one so.
    """
    num_by_key = await store.count_by_key(session)
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
