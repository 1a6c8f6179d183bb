"""Which answers have memory for their KV caches, and which wait for it: first come, first served.

Decides; the worker carries it out. Belongs to the owner thread. Knows no model and no batch.
"""

import bisect
from collections.abc import Sequence

from strop.proxy.embedded.group import Group
from strop.proxy.embedded.jobs import Place, Waiting
from strop.proxy.embedded.memory import Room

# Tokens that each running answer has room for when another is let in. Most end before; and one that
# was sent back to wait gets at least as far before it is again.
_AHEAD = 512


class Admission:
    """The line of those that wait.

    Nobody passes who waits for memory, or a long prompt would wait for ever beside short ones. Who
    waits for others of the same version to end is passed by those of another. Who came last goes
    back into the line where running answers outgrow the memory; the first never does, and has it
    all in the end.

    Args:
        room: the memory there is.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._line: list[tuple[Waiting, Group]] = []

    @property
    def num_rows(self) -> int:
        """How many answers wait."""
        return sum(waiting.num_rows for waiting, _ in self._line)

    def add(self, waiting: Waiting, group: Group) -> None:
        """Put a job or one of its answers into the line, where it belongs by its age."""
        bisect.insort(self._line, (waiting, group), key=lambda each: each[0].place)

    def cancel(self, number: int, choice: int | None = None) -> None:
        """Forget a job, or one of its answers."""
        self._line = [
            each
            for each in self._line
            if each[0].number != number or choice not in (None, each[0].choice)
        ]

    @property
    def begun(self) -> set[int]:
        """The jobs of which an answer waits to go on behind what it has drawn."""
        return {waiting.number for waiting, _ in self._line if waiting.choice is not None}

    def holds(self, group: Group) -> bool:
        """Whether anything of this group waits."""
        return any(each is group for _, each in self._line)

    def num_bytes(self, groups: Sequence[Group]) -> int:
        """Return what the running answers take in the next step."""
        return sum(group.num_bytes() for group in groups)

    def left(self, groups: Sequence[Group]) -> int:
        """Return the bytes that running answers leave, for the prefix cache."""
        return max(0, self._room.max_bytes - self.num_bytes(groups))

    def excess(self, groups: Sequence[Group]) -> tuple[Group, Place] | None:
        """Return whose answer must go back into the line, None while there is memory for all."""
        if self.num_bytes(groups) <= self._room.max_bytes:
            return None
        places = [(place, group) for group in groups for place in group.places()]
        if len(places) < 2:
            return None
        place, group = max(places, key=lambda each: each[0])
        return group, place

    def next(self, groups: Sequence[Group]) -> tuple[Group, Waiting] | None:
        """Take the first of the line that may run; None if there is no memory for it yet."""
        at = next((at for at, (_, group) in enumerate(self._line) if not group.is_full), None)
        if at is None:
            return None
        waiting, group = self._line[at]
        needed = sum(each.num_bytes(_AHEAD, waiting if each is group else None) for each in groups)
        # Alone, a row always fits. Several of one job may not; they go back into the line then.
        if needed > self._room.max_bytes and any(each.is_busy for each in groups):
            return None
        del self._line[at]
        return group, waiting
