"""OpenAI's Responses API, said in chat completions; pure."""
