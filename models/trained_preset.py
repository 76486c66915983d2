"""Presets with weights: the folders in pretrained/, which are installed with the library.

No TensorFlow here, so that they can be listed at once.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

# Of preset folders, see `preset_folder`.
CONFIG, RESULTS = "config.json", "results.json"
FORMAT_VERSION = 1

FOLDER = pathlib.Path(__file__).parent / "pretrained"

_TASKS = {"Translator": "translation", "Captioner": "captioning"}


@dataclasses.dataclass(frozen=True)
class TrainedPreset:
    """A model that comes with its weights.

    Attributes:
        name: What `from_preset` takes.
        folder: Where it is.
        task: "translation" or "captioning".
        description: One sentence for listings.
        parameters: Number of its weights.
        megabytes: Size of its files.
        scores: Its scores, as the results.json of a run has them; empty if there is no such file.
    """

    name: str
    folder: pathlib.Path
    task: str
    description: str
    parameters: int
    megabytes: float
    scores: dict[str, Any]

    @classmethod
    def read(cls, folder: pathlib.Path) -> "TrainedPreset":
        """Reads the facts of a preset folder, not the weights."""
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        results, scores = folder / RESULTS, {}
        if results.is_file():
            scores = json.loads(results.read_text(encoding="utf-8"))["scores"]
        return cls(
            name=folder.name,
            folder=folder,
            task=_TASKS[facts["class"]],
            description=facts["description"],
            parameters=facts["parameters"],
            megabytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
            scores=scores,
        )

    @property
    def headline(self) -> str:
        """The score that says most, for listings; "" if there is none."""
        if "exact_match" in self.scores:
            return f"exact match {100 * self.scores['exact_match']:.1f} %"
        for kind, tokens in (("tokenized", "none"), ("detokenized", "13a")):
            if kind in self.scores:
                return f"BLEU {self.scores[kind]['bleu']:.2f} (tok:{tokens})"
        if "captions" in self.scores:
            return "BLEU-4 {bleu_4:.1f}, CIDEr-D {cider_d:.3f}".format_map(self.scores["captions"])
        return ""


@functools.cache
def trained_presets() -> dict[str, TrainedPreset]:
    """The presets with weights that are installed, by name."""
    folders = sorted(path.parent for path in FOLDER.glob(f"*/{CONFIG}"))
    return {folder.name: TrainedPreset.read(folder) for folder in folders}


def find_folder(preset: str | os.PathLike) -> pathlib.Path | None:
    """The folder of a preset with weights.

    Args:
        preset: The name of an installed one, or the path of a folder.

    Returns:
        The folder; None if `preset` is neither an installed one nor looks like a path: it may be the name of
        a composition.
    """
    if preset in trained_presets():
        return trained_presets()[preset].folder
    path = pathlib.Path(preset)
    is_path = isinstance(preset, os.PathLike) or os.sep in preset or (path / CONFIG).is_file()
    return path if is_path else None


def refuse_changes(preset: str | os.PathLike, changes: dict[str, Any]) -> None:
    """Raises ValueError if anything but None is to be changed in a preset that has weights."""
    given = [name for name, value in changes.items() if value is not None]
    if given:
        raise ValueError(
            f"from_preset: expected no {', '.join(given)} with {str(preset)!r}, which has weights: they were "
            "trained with its own tokenizers, sizes and settings; leave that out, or take a composition and "
            "train it"
        )
