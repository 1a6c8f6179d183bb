"""The OpenAI SDK for Python: a tool loop, a rating, and one more message.

Prints what the SDK saw as JSON. Knows nothing of strop.
"""

import json
import sys
from typing import Any

from openai import OpenAI

QUESTION, RATING, NEXT, MODE = sys.argv[1:]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]

client = OpenAI()
messages: list[Any] = []
answers: list[dict[str, Any]] = []


def ask() -> Any:
    """Return the assistant's message, and append it to the messages as the SDK gave it."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": messages,
        "tools": TOOLS,
        "temperature": 0,
    }
    if MODE == "stream":
        with client.chat.completions.stream(
            **asked, stream_options={"include_usage": True}
        ) as stream:
            completion = stream.get_final_completion()
    else:
        completion = client.chat.completions.create(**asked)
    message, usage = completion.choices[0].message, completion.usage
    assert usage is not None
    messages.append(message)
    calls = [call.function for call in message.tool_calls or []]
    answers.append(
        {
            "text": message.content or "",
            "calls": [[call.name, json.loads(call.arguments)] for call in calls],
            "usage": [usage.prompt_tokens, usage.completion_tokens],
        }
    )
    return message


for text in (QUESTION, RATING, NEXT):
    messages.append({"role": "user", "content": text})
    message = ask()
    while message.tool_calls:
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
            for call in message.tool_calls
        ]
        message = ask()

print(json.dumps({"answers": answers}))
