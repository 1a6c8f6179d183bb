"""How many files and sockets this process may have open, and what the first three of them are.

Knows none of the others. Each answer in flight needs two, the client's and the engine's; a
terminal's limit is often 256 or 1024.
"""

import logging
import os
import resource
from typing import Final

log = logging.getLogger(__name__)

WANTED: Final = 65_536
# macOS takes no more of a process that isn't root's.
_WANTED_ELSEWHERE: Final = 10_240
_ENOUGH: Final = 4_096


def hold_standard() -> None:
    """Open those of standard input, output and error that are closed, on nothing.

    A socket would get their number, and libuv aborts the process that closes such a one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def raise_limit() -> int:
    """Raise the limit, for children too, and return it; the log says where it stays low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (WANTED, _WANTED_ELSEWHERE):
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= allowed:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (ValueError, OSError):
            continue
        soft = allowed
    limit = WANTED if soft == resource.RLIM_INFINITY else soft
    if limit < _ENOUGH:
        log.warning(
            "few files may be open",
            extra={
                "limit": limit,
                "answers_at_once": limit // 2,
                "do": f"raise it before strop starts: ulimit -Hn {WANTED}",
            },
        )
    return limit
