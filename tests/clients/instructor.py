"""Instructor over the OpenAI SDK: an object made by a forced tool call, its result, a rating.

Prints what Instructor saw as JSON. Knows nothing of strop.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import instructor
from openai import OpenAI
from pydantic import BaseModel

QUESTION, RATING, NEXT, MODE = sys.argv[1:]


class get_weather(BaseModel):  # noqa: N801  (its name is the tool's)
    """Current weather in a city."""

    city: str


client = instructor.from_openai(OpenAI())
messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
answers: list[dict[str, Any]] = []


def heard(completion: Any, calls: Sequence[object] = ()) -> Any:
    """Note an answer and append it to the messages."""
    message, usage = completion.choices[0].message, completion.usage
    messages.append(message.model_dump())
    answers.append(
        {
            "text": message.content or "",
            "calls": list(calls),
            "usage": [usage.prompt_tokens, usage.completion_tokens],
        }
    )
    return message


def ask() -> Any:
    """Return a plain answer, with no object made of it."""
    return client.chat.completions.create(model="tiny", messages=messages, response_model=None)


made, completion = client.chat.completions.create_with_completion(
    model="tiny", messages=messages, response_model=get_weather
)
(call,) = heard(completion, [["get_weather", made.model_dump()]]).tool_calls
messages.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees"})
heard(ask())
for text in (RATING, NEXT):
    messages.append({"role": "user", "content": text})
    heard(ask())

print(json.dumps({"answers": answers}))
