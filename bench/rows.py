"""What strop has recorded, read from its database as any other program would."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path


def count_complete(home: Path) -> int:
    """Return how many completions are recorded as complete, each with its token ids."""
    question = (
        "SELECT count(*) FROM completions JOIN choices ON choices.completion = completions.id"
        " WHERE state = 'complete' AND token_ids IS NOT NULL"
    )
    with closing(_open(home)) as database:
        (found,) = database.execute(question).fetchone()
        return int(found)


def lost(home: Path, completions: Iterable[str]) -> list[str]:
    """Return those of the ids that are not recorded."""
    with closing(_open(home)) as database:
        recorded = {row[0] for row in database.execute("SELECT id FROM completions")}
    return [completion for completion in completions if completion not in recorded]


def _open(home: Path) -> sqlite3.Connection:
    # Not read-only: after a kill there is a log to replay.
    return sqlite3.connect(f"file:{home / 'strop.db'}?mode=rw", uri=True, timeout=30)
