"""The content of a message or a tool's result in a Messages request, as chat content.

Pure. Does not know who says it. Blocks: Anthropic API reference, "Messages".
"""

from collections.abc import Iterator, Mapping

from strop.proxy.wire.chat_messages import Part, file_part, text_part
from strop.proxy.wire.members import (
    name_in,
    object_in,
    objects_in,
    optional_string,
    refuse,
    string,
)

_INLINE = "strop keeps and fetches no files: send the content itself"


def texts_in(content: object, path: str) -> list[str]:
    """Return the texts of content that may hold nothing else.

    Raises:
        BadRequest: it is malformed, or holds something else.
    """
    texts = []
    for block, here in blocks_in(content, path):
        if block.get("type") != "text":
            refuse(f"{here}.type", "text", block.get("type"))
        texts.append(string(block, "text", here))
    return texts


def blocks_in(content: object, path: str) -> Iterator[tuple[Mapping[str, object], str]]:
    """Yield each block of content with its path; a string is one text.

    Raises:
        BadRequest: it is malformed.
    """
    if isinstance(content, str):
        yield {"type": "text", "text": content}, path
    else:
        yield from objects_in(content, path)


def parts_in(content: object, path: str, left_out: list[str]) -> list[Part]:
    """Return content as the parts of a chat message.

    Raises:
        BadRequest: it is malformed, or holds what chat can't.
    """
    return [
        part for block, here in blocks_in(content, path) for part in parts_of(block, here, left_out)
    ]


def parts_of(block: Mapping[str, object], path: str, left_out: list[str]) -> list[Part]:
    """Return one block as the parts of a chat message.

    Raises:
        BadRequest: it is malformed, or chat has no such thing.
    """
    kind = block.get("type")
    if kind == "text":
        return [text_part(string(block, "text", path))]
    if kind == "image":
        return [_image(block, path)]
    if kind == "document":
        return _document(block, path, left_out)
    if kind == "search_result":
        head = [string(block, name, path) for name in ("title", "source")]
        said = texts_in(block.get("content"), f"{path}.content")
        return [text_part("\n".join([f"Search result: {head[0]}", head[1], *said]))]
    if kind == "tool_reference":
        return [text_part(f"The tool {name_in(block, 'tool_name', path)} can be used.")]
    return refuse(f"{path}.type", "text, image, document or search_result", kind)


def _image(block: Mapping[str, object], path: str) -> Part:
    here = f"{path}.source"
    source = object_in(block.get("source"), here)
    kind = source.get("type")
    if kind == "base64":
        url = _data_url(source, here)
    elif kind == "url":
        url = string(source, "url", here)
    else:
        refuse(f"{here}.type", "base64 or url", kind, _INLINE)
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Mapping[str, object], path: str, left_out: list[str]) -> list[Part]:
    here = f"{path}.source"
    source = object_in(block.get("source"), here)
    title, context = (optional_string(block, name, path) for name in ("title", "context"))
    kind = source.get("type")
    if kind == "text":
        said = [text_part(string(source, "data", here))]
    elif kind == "base64":
        said = [file_part(_data_url(source, here), title)]
    elif kind == "content":
        said = parts_in(source.get("content"), f"{here}.content", left_out)
    else:
        refuse(f"{here}.type", "text, base64 or content", kind, _INLINE)
    if block.get("citations"):
        left_out.append(f"{path}.citations")
    name = f"Document: {title or 'untitled'}"
    head = f"{name}\n{context}" if context else name
    if said and said[0]["type"] == "text":
        return [_quoted(head, said[0]), *(_quoted(name, part) for part in said[1:])]
    named = [text_part(head)] if title or context else []
    return [*named, *(_quoted(name, part) for part in said)]


def _quoted(head: str, part: Part) -> Part:
    """Return a part that nobody typed, a text under a head: so it is taken for no command."""
    return text_part(f"{head}\n{part['text']}") if part["type"] == "text" else part


def _data_url(source: Mapping[str, object], path: str) -> str:
    return f"data:{name_in(source, 'media_type', path)};base64,{string(source, 'data', path)}"
