"""Pydantic AI: an agent with a tool, a rating typed to it, and one more message.

Prints what the agent saw as JSON. Knows nothing of strop.
"""

import asyncio
import json
import sys
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse

QUESTION, RATING, NEXT, MODE = sys.argv[1:]


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return "21 degrees"


agent = Agent("openai-chat:tiny", model_settings={"temperature": 0}, tools=[get_weather])


async def main() -> None:
    """Talk to the agent."""
    messages: list[Any] = []
    for text in (QUESTION, RATING, NEXT):
        if MODE == "stream":
            async with agent.run_stream(text, message_history=messages) as result:
                async for _ in result.stream_text(delta=True):
                    pass
        else:
            result = await agent.run(text, message_history=messages)
        messages = result.all_messages()
    answers = [
        {
            "text": message.text or "",
            "calls": [[call.tool_name, call.args_as_dict()] for call in message.tool_calls],
            "usage": [message.usage.input_tokens, message.usage.output_tokens],
        }
        for message in messages
        if isinstance(message, ModelResponse)
    ]
    print(json.dumps({"answers": answers}))


asyncio.run(main())
