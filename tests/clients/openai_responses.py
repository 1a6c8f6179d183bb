"""The OpenAI SDK for Python with the Responses API: a tool loop, a rating, and one more message.

Or, where asked to parse, one answer in a given form. Prints what the SDK saw as JSON. Knows nothing
of strop.
"""

import json
import sys
from typing import Any

from openai import OpenAI
from pydantic import BaseModel

QUESTION, RATING, NEXT, MODE = sys.argv[1:]
TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
        "strict": False,
    }
]


class Report(BaseModel):
    """The form of a parsed answer."""

    said: str


client = OpenAI()
items: list[Any] = []
answers: list[dict[str, Any]] = []


def ask() -> list[Any]:
    """Return the calls of the next answer, and append it to the items as the SDK gave it."""
    asked: dict[str, Any] = {"model": "tiny", "input": items, "tools": TOOLS, "temperature": 0}
    if MODE == "stream":
        with client.responses.stream(**asked) as stream:
            response = stream.get_final_response()
    else:
        response = client.responses.create(**asked)
    assert response.usage is not None
    items.extend(response.output)
    calls = [item for item in response.output if item.type == "function_call"]
    answers.append(
        {
            "text": response.output_text,
            "calls": [[call.name, json.loads(call.arguments)] for call in calls],
            "usage": [response.usage.input_tokens, response.usage.output_tokens],
        }
    )
    return calls


if MODE == "parse":
    report = client.responses.parse(model="tiny", input=QUESTION, text_format=Report).output_parsed
    assert report is not None
    print(json.dumps(report.model_dump()))
    sys.exit()

for text in (QUESTION, RATING, NEXT):
    items.append({"role": "user", "content": text})
    while calls := ask():
        items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
            for call in calls
        ]

print(json.dumps({"answers": answers}))
