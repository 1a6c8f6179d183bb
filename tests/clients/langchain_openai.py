"""LangChain's ChatOpenAI: a tool loop, a rating, and one more message.

Prints what LangChain saw as JSON. Knows nothing of strop.
"""

import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION, RATING, NEXT, MODE = sys.argv[1:]


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return "21 degrees"


weather = tool(get_weather)
model = ChatOpenAI(model="tiny", temperature=0).bind_tools([weather])
messages: list[Any] = []
answers: list[dict[str, Any]] = []


def ask() -> Any:
    """Return the model's message, and append it to the messages."""
    if MODE == "stream":
        message, *chunks = model.stream(messages)
        for chunk in chunks:
            message += chunk
    else:
        message = model.invoke(messages)
    messages.append(message)
    usage = message.usage_metadata
    answers.append(
        {
            "text": message.text,
            "calls": [[call["name"], call["args"]] for call in message.tool_calls],
            "usage": usage and [usage["input_tokens"], usage["output_tokens"]],
        }
    )
    return message


for text in (QUESTION, RATING, NEXT):
    messages.append(HumanMessage(text))
    message = ask()
    while message.tool_calls:
        messages += [weather.invoke(call) for call in message.tool_calls]
        message = ask()

print(json.dumps({"answers": answers}))
