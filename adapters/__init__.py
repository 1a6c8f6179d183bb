"""LoRA adapter versions on disk, their formats, and what else engine and trainer must agree on."""
