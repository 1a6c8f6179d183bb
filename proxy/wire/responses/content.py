"""The content of a message or a tool's result in a Responses request, as chat content.

Pure. Does not know who says it.
"""

from collections.abc import Mapping

from strop.proxy.wire.members import list_in, object_in, optional_string, refuse, string

_TEXTS = frozenset({"input_text", "output_text", "text"})
# What chat completions have; others are hints to the vendor's models.
_DETAILS = frozenset({"auto", "low", "high"})
_INLINE = "strop keeps no files: send the content itself, as a data: URL"

Content = str | list[dict[str, object]]


def texts_in(content: object, path: str) -> list[str]:
    """Return the texts of content that may hold nothing else.

    Raises:
        BadRequest: it is malformed, or holds something else.
    """
    if isinstance(content, str):
        return [content]
    return [
        text_in(object_in(part, f"{path}[{position}]"), f"{path}[{position}]")
        for position, part in enumerate(list_in(content, path))
    ]


def text_in(part: Mapping[str, object], path: str) -> str:
    """Return the text of a part that has to be one; raises as `texts_in`."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXTS:
        refuse(f"{path}.type", "text", kind)
    return string(part, "text", path)


def chat_content(content: object, path: str, left_out: list[str]) -> Content:
    """Return content as chat has it: a string where it is one text, else parts.

    Raises:
        BadRequest: it is malformed, or holds what chat can't.
    """
    if isinstance(content, str):
        return content
    parts = [
        _part(object_in(value, f"{path}[{position}]"), f"{path}[{position}]", left_out)
        for position, value in enumerate(list_in(content, path))
    ]
    if not parts:
        return ""
    text = parts[0].get("text") if len(parts) == 1 else None
    return text if isinstance(text, str) else parts


def parts_of(content: object) -> list[dict[str, object]]:
    """Return chat content as parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def one_text(content: Content) -> Content:
    """Return content as one text where it holds nothing else, a part a line.

    For a tool's result: some templates print a list of parts as it stands.
    """
    texts = [part.get("text") for part in parts_of(content)]
    told = [text for text in texts if isinstance(text, str)]
    return "\n".join(told) if len(told) == len(texts) else content


def _part(part: Mapping[str, object], path: str, left_out: list[str]) -> dict[str, object]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXTS:
        return {"type": "text", "text": string(part, "text", path)}
    if kind == "input_image":
        return _image(part, path, left_out)
    if kind == "input_file":
        return _file(part, path)
    if kind == "input_audio":
        audio = object_in(part.get("input_audio"), f"{path}.input_audio")
        return {"type": "input_audio", "input_audio": audio}
    return refuse(f"{path}.type", "input_text, input_image, input_file or input_audio", kind)


def _image(part: Mapping[str, object], path: str, left_out: list[str]) -> dict[str, object]:
    url = part.get("image_url")
    if not isinstance(url, str):
        refuse(f"{path}.image_url", "a string", url, _INLINE)
    image: dict[str, object] = {"url": url}
    detail = optional_string(part, "detail", path)
    if detail in _DETAILS:
        image["detail"] = detail
    elif detail is not None:
        left_out.append(f"{path}.detail")
    return {"type": "image_url", "image_url": image}


def _file(part: Mapping[str, object], path: str) -> dict[str, object]:
    data = part.get("file_data")
    if not isinstance(data, str):
        refuse(f"{path}.file_data", "a string", data, _INLINE)
    file: dict[str, object] = {"file_data": data}
    if name := optional_string(part, "filename", path):
        file["filename"] = name
    return {"type": "file", "file": file}
