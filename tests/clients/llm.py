"""The `llm` command: a tool loop, a rating typed with -c, and one more message.

Prints what llm logged as JSON. Knows nothing of strop.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTION, RATING, NEXT, MODE = sys.argv[1:]
MODEL = """\
- model_id: local
  model_name: tiny
  api_base: {url}
  api_key_name: local
  supports_tools: true
"""
FUNCTIONS = """\
def get_weather(city: str) -> str:
    "Current weather in a city"
    return "21 degrees"
"""


def llm(*arguments: str) -> str:
    """Run the command and return what it prints."""
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    models = Path(folder, "extra-openai-models.yaml")
    models.write_text(MODEL.format(url=os.environ["OPENAI_BASE_URL"]), encoding="utf-8")
    llm("keys", "set", "local", "--value", os.environ["OPENAI_API_KEY"])
    options = ["--functions", FUNCTIONS, "-o", "temperature", "0"]
    options += ["--no-stream"] if MODE == "json" else []
    llm("-m", "local", *options, QUESTION)
    for text in (RATING, NEXT):
        llm("-c", *options, text)
    logged = json.loads(llm("logs", "list", "-n", "0", "--json"))

answers = [
    {
        "text": one["response"],
        "calls": [[call["name"], call["arguments"]] for call in one["tool_calls"]],
        "usage": [one["input_tokens"], one["output_tokens"]],
    }
    for one in logged
]
print(json.dumps({"answers": answers}))
