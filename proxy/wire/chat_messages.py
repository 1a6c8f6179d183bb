"""The messages of a chat, as the dialects that are said in chat completions write them.

Pure. Does not know what they are made from. Parts: OpenAI API reference, "Chat".
"""

from collections.abc import Iterable, Sequence

from strop.proxy.inline import find_command, without_commands

Message = dict[str, object]
Part = dict[str, object]
Content = str | list[Part]


def text_part(text: str) -> Part:
    """Return a text as a part."""
    return {"type": "text", "text": text}


def file_part(data: str, name: str | None) -> Part:
    """Return a file as a part; `data` is a data: URL."""
    file = {"file_data": data}
    return {"type": "file", "file": {**file, "filename": name} if name else file}


def content_of(parts: list[Part]) -> Content:
    """Return parts as content: a string where they are one text."""
    if not parts:
        return ""
    text = parts[0].get("text") if len(parts) == 1 else None
    return text if isinstance(text, str) else parts


def parts_of(content: object) -> list[Part]:
    """Return content as parts."""
    return content if isinstance(content, list) else [text_part(str(content))]


def result_of(parts: list[Part]) -> Content:
    """Return parts as the content of a tool's result: one string where all are texts.

    A part a line: some templates print a list of parts as it stands.
    """
    texts = [text for part in parts if isinstance(text := part.get("text"), str)]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def reminder(text: str) -> str:
    """Return what the system says in the middle of a chat, to be said in another's message.

    No template takes a system message that is not the first: they refuse it, or drop it. The tag is
    the one that Claude Code itself uses before servers that take none.
    """
    return f"<system-reminder>\n{text}\n</system-reminder>"


def add_notes(message: Message, notes: Sequence[str]) -> None:
    """Put notes behind what a message says."""
    content = message["content"]
    if isinstance(content, list):
        message["content"] = [*content, *map(text_part, notes)]
    else:
        message["content"] = "\n\n".join([str(content), *notes])


def in_order(results: Iterable[Message], calls: Iterable[object]) -> list[Message]:
    """Return tools' messages in the order of the calls with these ids; others behind them.

    Some templates tell results apart by their order alone.
    """
    places = {identity: place for place, identity in enumerate(calls)}
    return sorted(results, key=lambda one: places.get(one["tool_call_id"], len(places)))


def joined(messages: Iterable[Message]) -> list[Message]:
    """Return a chat in which what a user said before a command is said with what comes after it.

    The command and its answer are taken out of it later, and some templates refuse two messages of
    a user in a row.
    """
    told: list[Message] = []
    for message in messages:
        # Looked for behind a user's words alone: each command is passed over once.
        end = _without_last_commands(told) if _is_own(message) else 0
        if 0 < end < len(told) and _is_own(told[end - 1]):
            contents = (told.pop(end - 1)["content"], message["content"])
            message = {**message, "content": [part for one in contents for part in parts_of(one)]}
        told.append(message)
    return told


def _without_last_commands(messages: Sequence[Message]) -> int:
    """Return how many messages stand before the commands, and their answers, at the end."""
    end = len(messages)
    while end:
        if without_commands(messages[end - 1 : end]) == []:
            end -= 1
        elif end > 1 and without_commands(messages[end - 2 : end]) == []:
            end -= 2
        else:
            break
    return end


def _is_own(message: Message) -> bool:
    return message["role"] == "user" and find_command([message]) is None
