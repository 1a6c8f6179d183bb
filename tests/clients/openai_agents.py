"""The OpenAI Agents SDK over chat completions: an agent with a tool, a rating, one more message.

Prints what the SDK saw as JSON. Knows nothing of strop.
"""

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    Runner,
    SQLiteSession,
    function_tool,
    set_default_openai_api,
    set_tracing_disabled,
)

QUESTION, RATING, NEXT, MODE = sys.argv[1:]

set_default_openai_api("chat_completions")
set_tracing_disabled(disabled=True)


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return "21 degrees"


agent = Agent(
    name="weather",
    model="tiny",
    tools=[function_tool(get_weather)],
    model_settings=ModelSettings(temperature=0, include_usage=True),
)


def seen(response: Any) -> dict[str, Any]:
    """Return what one answer of the model said."""
    parts = [part for item in response.output if item.type == "message" for part in item.content]
    calls = [item for item in response.output if item.type == "function_call"]
    return {
        "text": "".join(part.text for part in parts),
        "calls": [[call.name, json.loads(call.arguments)] for call in calls],
        "usage": [response.usage.input_tokens, response.usage.output_tokens],
    }


async def main() -> None:
    """Talk to the agent, whose session keeps the history."""
    session = SQLiteSession("weather")
    answers: list[dict[str, Any]] = []
    for text in (QUESTION, RATING, NEXT):
        if MODE == "stream":
            result = Runner.run_streamed(agent, text, session=session)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, text, session=session)
        answers += map(seen, result.raw_responses)
    print(json.dumps({"answers": answers}))


asyncio.run(main())
