"""What the engine was asked in a recorded completion, read from the body that the client sent.

Pure. Encodes nothing: it tells the trainer what to encode where the snapshot has no ids.
"""

from collections.abc import Mapping

from strop.proxy.errors import BadRequest
from strop.proxy.inline import without_commands
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
        return continuation(fields(completion) or {}, message)
    if message.get("tool_calls") or message.get("reasoning") or message.get("reasoning_content"):
        return None
    said = message.get("content")
    return said if isinstance(said, str) else None


def has_ended(choice: Choice, sampling: Mapping[str, object]) -> bool:
    """Return whether the model ended its turn, and not a limit, the client, or its stop string.

    Args:
        choice: the answer.
        sampling: the completion's sampling parameters.
    """
    if choice.finish_reason in ("tool_calls", "function_call"):
        return True
    has_stops = sampling.get("stop") or sampling.get("stop_token_ids")
    return choice.finish_reason == "stop" and not has_stops


def continuation(asked: Mapping[str, object], message: Mapping[str, object]) -> str | None:
    """Return what a text completion says after its prompt, which `echo` lets it repeat.

    Args:
        asked: the request's members.
        message: the answer.
    """
    said = message.get("text")
    if not isinstance(said, str):
        return None
    # Who asks for ids has the prompt's beside the text, and not in it.
    if not asked.get("echo") or asked.get("return_token_ids"):
        return said
    repeated = only_prompt(asked)
    if repeated is None or not said.startswith(repeated):
        return None
    return said.removeprefix(repeated)


def only_prompt(asked: Mapping[str, object]) -> str | None:
    """Return the prompt of a text completion, where it is one, and text."""
    prompt = asked.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def has_several_prompts(asked: Mapping[str, object]) -> bool:
    """Return whether a text completion asks for answers to more than one prompt."""
    prompt = asked.get("prompt")
    # A list of numbers is one prompt, as token ids.
    return isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)


def is_redacted(recorded: bytes) -> bool:
    """Return whether something was taken out of a recorded request or message."""
    return MARK.encode() in recorded
