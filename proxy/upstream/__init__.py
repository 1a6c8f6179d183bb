"""Bytes to and from one engine over HTTP/1.1, at the cost that the hot path can bear."""
