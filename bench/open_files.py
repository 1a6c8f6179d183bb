"""How many files and sockets a process may have open: raised as far as it goes.

Children inherit it.
"""

import resource

# Logs, databases, listeners and what Python itself keeps open.
_OWN = 128


def allow(num_sockets: int) -> str | None:
    """Let this process and its children open that many sockets; return why that can't be."""
    needed = num_sockets + _OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return None
    if hard != resource.RLIM_INFINITY and hard < needed:
        return (
            f"{needed} open files are needed for {num_sockets} sockets, {hard} are allowed; raise"
            f" the limit (ulimit -Hn {needed}), or choose --scenarios with fewer connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return None
