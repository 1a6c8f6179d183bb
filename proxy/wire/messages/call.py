"""A tool call of an answer, as a Messages client gets it: its arguments as an object.

Pure. Does not know events.
"""

from collections.abc import Mapping

from strop.proxy.errors import BadRequest
from strop.proxy.message import MALFORMED, OUTER, as_json, utf8
from strop.proxy.wire import body


class Call:
    """One call, made of its pieces.

    Args:
        identity: its id, where the engine gives none.
    """

    def __init__(self, identity: str) -> None:
        self.id = identity
        self.name = ""
        self._arguments: list[str] = []

    def add(self, part: Mapping[str, object]) -> None:
        """Take a piece, or the whole call."""
        if isinstance(identity := part.get("id"), str) and identity:
            self.id = identity
        function = part.get("function")
        if not isinstance(function, dict):
            return
        if isinstance(name := function.get("name"), str) and name:
            self.name = name
        if isinstance(arguments := function.get("arguments"), str):
            self._arguments.append(arguments)
        elif arguments is not None:
            self._arguments.append(as_json(arguments).decode())

    def input(self) -> dict[str, object]:
        """Return the arguments.

        A client has to get an object, or it breaks off. What is none, such as arguments that
        `max_tokens` cut short, is the one member `MALFORMED` of an object that fits no tool: the
        client tells the model so, and the canonical form takes it for what it was.
        """
        text = "".join(self._arguments)
        if text.strip(OUTER) in ("", "null"):
            return {}
        given = _parsed(text)
        return given if isinstance(given, dict) else {MALFORMED: text}

    def json(self) -> str:
        """Return the arguments as JSON, as they were written if they are an object."""
        text = "".join(self._arguments)
        return text if isinstance(_parsed(text), dict) else body.dumps(self.input()).decode()


def _parsed(text: str) -> object:
    try:
        return body.loads(utf8(text))
    except BadRequest:
        return None
