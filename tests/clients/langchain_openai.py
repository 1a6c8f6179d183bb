"""LangChain's ChatOpenAI: a tool loop, a rating, and one more message.

Prints what LangChain saw as JSON. Knows nothing of strop.
"""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION, RATING, NEXT, MODE = sys.argv[1:]


@tool
def get_weather(city: str) -> str:
    """Current weather in a city."""
    return "21 degrees"


model = ChatOpenAI(model="tiny", temperature=0).bind_tools([get_weather])
messages = []
answers = []


def ask():
    """Return the model's message, and append it to the messages."""
    if MODE == "stream":
        message = None
        for chunk in model.stream(messages):
            message = chunk if message is None else message + chunk
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
        messages += [get_weather.invoke(call) for call in message.tool_calls]
        message = ask()

print(json.dumps({"answers": answers}))
