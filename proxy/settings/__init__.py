"""What a person sets: each key with its default, where it came from, and what it may be."""
