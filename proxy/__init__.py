"""The inference proxy: speaks OpenAI to agents, records, rates; no torch, and mlx only in `embedded`."""
