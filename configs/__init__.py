"""What strop's settings are by default, as commented TOML, and the small model it ships."""

from importlib.resources import files
from pathlib import Path


def demo_model() -> Path:
    """Return the folder of the demo model, in Hugging Face format."""
    return Path(str(files("strop.configs").joinpath("demo_model")))
