"""Which sessions are held out: rated, never learned from, and what every gate measures on.

Pure. Both sides ask here: the trigger that counts ratings, and the trainer that learns from them.
"""

import hashlib
from typing import Final

HELD_OUT_SHARE: Final = 0.15
MOST_TURNS: Final = 512
"""How many held-out turns are looked at, the newest: by a run, and by who notes their prompts."""


def is_held_out(root: str) -> bool:
    """Return whether the session that begins with the completion `root` is held out.

    Decided by a hash, so it never changes, and all of a session's turns lie on one side.
    """
    digest = hashlib.sha256(b"held-out:" + root.encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64
