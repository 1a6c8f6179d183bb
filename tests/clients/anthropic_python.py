"""The Anthropic SDK for Python: a tool loop, a rating, and one more message.

Or, where asked to, one tool loop by the SDK's own runner. Prints what the SDK saw as JSON. Knows
nothing of strop.
"""

import json
import os
import sys
from typing import Any

from anthropic import Anthropic, beta_tool

QUESTION, RATING, NEXT, MODE = sys.argv[1:]
TOOLS = [
    {
        "name": "get_weather",
        "description": "Current weather in a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]

client = Anthropic(
    base_url=os.environ["OPENAI_BASE_URL"].removesuffix("/v1"),
    api_key=os.environ["OPENAI_API_KEY"],
)
messages: list[dict[str, Any]] = []
answers: list[dict[str, Any]] = []


def ask() -> Any:
    """Return the assistant's message, and append it to the messages as the SDK gave it."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": messages,
        "tools": TOOLS,
        "max_tokens": 200,
    }
    asked["extra_body"] = {"temperature": 0}
    if MODE == "stream":
        with client.messages.stream(**asked) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)
    messages.append({"role": "assistant", "content": message.content})
    usage = message.usage
    answers.append(
        {
            "text": "".join(block.text for block in message.content if block.type == "text"),
            "calls": [[block.name, block.input] for block in calls_in(message)],
            "usage": [
                usage.input_tokens + usage.cache_read_input_tokens,
                usage.output_tokens,
            ],
        }
    )
    return message


def calls_in(message: Any) -> list[Any]:
    """Return the tool calls of a message."""
    return [block for block in message.content if block.type == "tool_use"]


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return "21 degrees"


if MODE == "runner":
    messages.append({"role": "user", "content": QUESTION})
    asked = {"model": "tiny", "messages": messages, "max_tokens": 200}
    said = client.beta.messages.tool_runner(**asked, tools=[beta_tool(get_weather)])
    print(json.dumps([message.stop_reason for message in said]))
    sys.exit()

for text in (QUESTION, RATING, NEXT):
    messages.append({"role": "user", "content": text})
    message = ask()
    while message.stop_reason == "tool_use":
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
            for call in calls_in(message)
        ]
        messages.append({"role": "user", "content": results})
        message = ask()

print(json.dumps({"answers": answers}))
