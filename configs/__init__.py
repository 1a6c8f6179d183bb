"""What strop's settings and presets are by default, as commented TOML, and the small model."""

from importlib.resources import files
from pathlib import Path


def demo_model() -> Path:
    """Return the folder of the demo model, in Hugging Face format."""
    return _path("demo_model")


def presets() -> dict[str, Path]:
    """Return the files of the presets for training, by name, sorted."""
    return {path.stem: path for path in sorted(_path("presets").glob("*.toml"))}


def preset_file(name: str) -> Path | None:
    """Return the file of a preset: a shipped one's by its name, or at that path; None for none."""
    path = presets().get(name) or Path(name).expanduser().absolute()
    return path if path.is_file() else None


def _path(name: str) -> Path:
    return Path(str(files("strop.configs").joinpath(name)))
