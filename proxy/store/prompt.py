"""What the engine was asked in a recorded completion, read from the body that the client sent.

Pure. Encodes nothing: it tells the trainer what to encode where the snapshot has no ids.
"""

from strop.proxy.commands import without_commands
from strop.proxy.errors import BadRequest
from strop.proxy.redaction import MARK
from strop.proxy.store.records import Choice, Completion
from strop.proxy.wire import body


def fields(completion: Completion) -> dict[str, object] | None:
    """Return the request's members, commands taken out as they were for the engine.

    None where the body is no JSON object.
    """
    try:
        read = body.loads(completion.request)
    except BadRequest:
        return None
    if not isinstance(read, dict):
        return None
    messages = read.get("messages")
    kept = without_commands(messages) if isinstance(messages, list) else None
    return read if kept is None else {**read, "messages": kept}


def text(completion: Completion, choice: Choice) -> str | None:
    """Return what a choice answered, where that is text and nothing else."""
    try:
        message = body.loads(choice.message)
    except BadRequest:
        return None
    if not isinstance(message, dict):
        return None
    if completion.dialect == "completions":
        said = message.get("text")
    elif message.get("tool_calls") or message.get("reasoning") or message.get("reasoning_content"):
        return None
    else:
        said = message.get("content")
    return said if isinstance(said, str) else None


def is_redacted(recorded: bytes) -> bool:
    """Return whether something was taken out of a recorded request or message."""
    return MARK.encode() in recorded
