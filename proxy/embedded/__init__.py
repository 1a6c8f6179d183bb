"""The embedded engine: an OpenAI-style server on mlx-lm, in vLLM's dialect, in its own process.

Only `server.run` starts it; nothing else of strop imports this package.
"""
