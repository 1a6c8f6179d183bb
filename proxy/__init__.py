"""The inference proxy: speaks OpenAI to agents, records, rates; mlx only in `embedded`."""
