"""The content of a message or a tool's result in a Responses request, as chat content.

Pure. Does not know who says it.
"""

from collections.abc import Mapping

from strop.proxy.wire.chat_messages import Part, file_part, text_part
from strop.proxy.wire.members import object_in, objects_in, optional_string, refuse, string

_TEXTS = frozenset({"input_text", "output_text", "text"})
# What chat completions have; others are hints to the vendor's models.
_DETAILS = frozenset({"auto", "low", "high"})
_INLINE = "strop keeps no files: send the content itself, as a data: URL"


def texts_in(content: object, path: str) -> list[str]:
    """Return the texts of content that may hold nothing else.

    Raises:
        BadRequest: it is malformed, or holds something else.
    """
    if isinstance(content, str):
        return [content]
    return [text_in(part, here) for part, here in objects_in(content, path)]


def text_in(part: Mapping[str, object], path: str) -> str:
    """Return the text of a part that has to be one; raises as `texts_in`."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXTS:
        refuse(f"{path}.type", "text", kind)
    return string(part, "text", path)


def parts_in(content: object, path: str, left_out: list[str]) -> list[Part]:
    """Return content as the parts of a chat message; a string is one text.

    Raises:
        BadRequest: it is malformed, or holds what chat can't.
    """
    if isinstance(content, str):
        return [text_part(content)]
    return [_part(part, here, left_out) for part, here in objects_in(content, path)]


def _part(part: Mapping[str, object], path: str, left_out: list[str]) -> Part:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXTS:
        return text_part(string(part, "text", path))
    if kind == "input_image":
        return _image(part, path, left_out)
    if kind == "input_file":
        return _file(part, path)
    if kind == "input_audio":
        audio = object_in(part.get("input_audio"), f"{path}.input_audio")
        return {"type": "input_audio", "input_audio": audio}
    return refuse(f"{path}.type", "input_text, input_image, input_file or input_audio", kind)


def _image(part: Mapping[str, object], path: str, left_out: list[str]) -> Part:
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


def _file(part: Mapping[str, object], path: str) -> Part:
    data = part.get("file_data")
    if not isinstance(data, str):
        refuse(f"{path}.file_data", "a string", data, _INLINE)
    return file_part(data, optional_string(part, "filename", path))
