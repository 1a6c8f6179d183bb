"""Chat messages in the one form that engines of few forms take, and that the trainer renders.

Pure. Knows no engine: a driver whose engine gives no prompt ids asks for it, so that the trainer's
rendering of the prompt has as many tokens as the engine's.
"""

from collections.abc import Mapping

_REASONING = ("reasoning", "reasoning_content")


def plain(messages: object) -> object:
    """Return `messages` in that form; themselves, where they have it.

    Texts in parts become one, a part a line; what a model thought stands under both names in use;
    a developer is the system; an answer without text, and a call without arguments, say so by an
    empty string and an empty object. What isn't text, or isn't a message, stays as it is.
    """
    if not isinstance(messages, list):
        return messages
    said = [_plain(one) if isinstance(one, dict) else one for one in messages]
    is_same = all(new is old for new, old in zip(said, messages, strict=True))
    return messages if is_same else said


def _plain(message: dict[str, object]) -> dict[str, object]:
    changes: dict[str, object] = {}
    role, content = message.get("role"), message.get("content")
    if role == "developer":
        # Most templates would pass over it in silence.
        changes["role"] = "system"
    if content is None and role == "assistant":
        changes["content"] = ""
    elif isinstance(content, list) and (text := _joined(content)) is not None:
        changes["content"] = text
    thought = next((said for name in _REASONING if (said := message.get(name))), None)
    if isinstance(thought, str):
        changes |= {name: thought for name in _REASONING if message.get(name) != thought}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and any(map(_lacks_arguments, calls)):
        changes["tool_calls"] = [_with_arguments(one) for one in calls]
    return {**message, **changes} if changes else message


def _joined(parts: list[object]) -> str | None:
    """Return parts as one text; None where one is something else."""
    texts = [
        text
        for part in parts
        if isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(text := part.get("text"), str)
    ]
    return "\n".join(texts) if len(texts) == len(parts) else None


def _lacks_arguments(call: object) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and function.get("arguments") in ("", None)


def _with_arguments(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call["function"] if _lacks_arguments(call) else None
    return (
        {**call, "function": {**function, "arguments": "{}"}}
        if isinstance(function, dict)
        else call
    )
