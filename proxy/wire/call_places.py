"""Which tool call of a message each of its pieces belongs to.

Pure. Joins nothing, and does not know what the pieces are joined to.
"""

from collections.abc import Iterator, Mapping


class CallPlaces:
    """The places of the calls in one message, as they come: at once, or in pieces.

    A whole call's place is its position. A piece's is its index, but some engines give each call
    the index 0: one that has another id, and names a function, begins a call of its own. (The id
    alone says nothing: some engines give each piece a new one.)
    """

    def __init__(self) -> None:
        self._ids: dict[int, object] = {}
        self._newest: dict[int, int] = {}

    def read(
        self, holder: Mapping[str, object], *, are_pieces: bool = True
    ) -> Iterator[tuple[int, Mapping[str, object]]]:
        """Yield each of `holder`'s `tool_calls` with its place; it is a delta or a message."""
        calls = holder.get("tool_calls")
        for position, part in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(part, dict):
                index = part.get("index") if are_pieces else None
                yield self._place(index if isinstance(index, int) else position, part), part

    def _place(self, index: int, part: Mapping[str, object]) -> int:
        place = self._newest.get(index, index)
        known, identity = self._ids.get(place), part.get("id")
        if known and identity and identity != known and _names_function(part):
            place = self._newest[index] = max(self._ids) + 1
        if identity:
            self._ids[place] = identity
        return place


def _names_function(part: Mapping[str, object]) -> bool:
    function = part.get("function")
    return isinstance(function, dict) and bool(function.get("name"))
