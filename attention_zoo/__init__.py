"""Attention Zoo: attention layers and prebuilt sequence-to-sequence models for Keras 3."""

import pathlib

from attention_zoo._lazy import attach
from attention_zoo._version import __version__ as __version__

# In a checkout models/ and training/ lie beside this folder; installed, they lie inside it.
_folder = pathlib.Path(__file__).parent
if not (_folder / "models").is_dir() and (_folder.parent / "models").is_dir():
    __path__.append(str(_folder.parent))

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "layers": "layers",
        "losses": "losses",
        "metrics": "metrics",
        "models": "models",
        "ops": "ops",
        "schedules": "schedules",
        "training": "training",
        "load": "models.saving",
        "enable_compilation_cache": "models.compilation_cache",
    },
)
