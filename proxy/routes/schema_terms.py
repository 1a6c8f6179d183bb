"""The makers of JSON schemas (2020-12) for the OpenAPI document, as short as they can be.

Plain values. Knows no endpoint.
"""

from typing import Any, get_args

Schema = dict[str, Any]


def string(description: str = "", **more: Any) -> Schema:
    """Return the schema of a string."""
    return {"type": "string", **({"description": description} if description else {}), **more}


def ref(name: str) -> Schema:
    """Return a reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def number(description: str = "", **more: Any) -> Schema:
    """Return the schema of a number."""
    return {**string(description, **more), "type": "number"}


def integer(description: str = "", **more: Any) -> Schema:
    """Return the schema of an integer."""
    return {**string(description, **more), "type": "integer"}


def boolean(description: str = "") -> Schema:
    """Return the schema of a boolean."""
    return {**string(description), "type": "boolean"}


def array_of(items: Schema, description: str = "") -> Schema:
    """Return the schema of an array of `items`."""
    return {**string(description), "type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    """Return the schema of what `schema` allows, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def object_of(properties: Schema, description: str = "", optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object with these properties alone, the `optional` ones at will."""
    return {
        **string(description),
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def enum(union: Any, description: str = "") -> Schema:
    """Return the schema of a string that is one of a Literal."""
    return string(description, enum=list(get_args(union)))


def list_of(name: str) -> Schema:
    """Return the schema of a list object of what `name` refers to."""
    return object_of(
        {
            "object": {"const": "list"},
            "data": array_of(ref(name)),
            "has_more": boolean("Whether older ones follow: ask again with `after`."),
        },
        "Newest first.",
    )
