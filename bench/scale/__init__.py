"""Whether a large store is as fast as a small one: fills both, asks both, and compares.

Knows nothing of engines and proxies; `bench` measures those.
"""
