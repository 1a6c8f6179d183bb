"""LoRA adapter versions on disk and the formats they come in."""
