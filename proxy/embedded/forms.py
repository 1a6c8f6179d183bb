"""What a request says its answer has to look like: OpenAI's `response_format`, vLLM's other ways.

Pure. Does not know whether a schema is one, or how an answer is held to it.
"""

import json
from dataclasses import dataclass
from typing import Literal

from strop.proxy.embedded.fields import Fields, wrong

SPACES = r"( |\n[ \t]{0,16})?"
"""What may stand between the parts of JSON: nothing, a space, or a new line with its indent.

A small model would go on with spaces for ever.
"""

_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class Form:
    """A form: `text` is a JSON schema, a regular expression, or a grammar in Lark's notation.

    `param` is the member of the request that says so.
    """

    kind: Literal["json", "regex", "lark"]
    text: str
    param: str


def form_in(fields: Fields) -> Form | None:
    """Return the form that a request asks for; None where its answer is free.

    Raises:
        BadRequest: it is malformed, or two forms are asked for, or one beside `min_tokens`.
    """
    form = _response_format(fields)
    for name, value in fields.mapping("structured_outputs").items():
        if value is None or value is False:
            continue
        if form is not None:
            raise wrong("structured_outputs", "the only form of the answer", {name: value})
        form = _structured_output(name, value)
    if form is not None and fields.integer("min_tokens", 0, low=0, high=1 << 31):
        raise wrong("min_tokens", "0 where the answer has a form", fields.get("min_tokens"))
    return form


def _response_format(fields: Fields) -> Form | None:
    param = "response_format"
    wanted = fields.mapping(param)
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("json", _ANY_OBJECT, param)
    if kind != "json_schema":
        raise wrong(param, "of the type text, json_object or json_schema", kind)
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict | bool):
        raise wrong(param, "a `json_schema` that holds a `schema`", described)
    return Form("json", json.dumps(schema), param)


def _structured_output(name: str, value: object) -> Form:
    param = "structured_outputs"
    if name == "json" and isinstance(value, str | dict):
        return Form("json", value if isinstance(value, str) else json.dumps(value), param)
    if name == "json_object" and value is True:
        return Form("json", _ANY_OBJECT, param)
    if name == "regex" and isinstance(value, str):
        return Form("regex", value, param)
    texts = value if name == "choice" and isinstance(value, list) else []
    if texts and all(isinstance(text, str) and text for text in texts):
        return Form("lark", "start: " + " | ".join(map(json.dumps, texts)), param)
    raise wrong(param, "`json`, `json_object`, `regex` or `choice`", {name: value})
