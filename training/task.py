"""What a run needs to know of the thing that it trains; the rest of the run is the same for all."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import keras
from rich.console import Console

from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.sentencepiece_tokenizer import SentencePieceTokenizer
from attention_zoo.models.tokenizer import Tokenizer
from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer
from attention_zoo.training.recipe import Recipe, SentencePiece, TokenizerSettings

logger = logging.getLogger("attention_zoo")

SAMPLES = 8  # held-out inputs whose outputs are printed, and made once more by the SavedModel


class Task:
    """Base of `TranslationTask` and `CaptioningTask`: the methods that `run.train` calls, in this order.

    Data are a named tuple with `training`, `validation` and `test`; a part knows its length. Outputs are
    what the model makes of the test part, each with a `text`.

    Args:
        recipe: What to do.
        console: Where progress is shown.

    Attributes:
        inputs: What the model reads, in the plural, for log and results.
        outputs: What it makes of them.
    """

    inputs: str
    outputs: str

    def __init__(self, recipe: Recipe, console: Console | None = None) -> None:
        self.recipe = recipe
        self.console = console or Console()

    def read_data(self) -> Any:
        """Reads or generates the three parts of the data."""
        raise NotImplementedError

    def build_model(self, data: Any) -> EncoderDecoder:
        """Learns the tokenizers and builds the model, not yet compiled."""
        raise NotImplementedError

    def batches(self, model: EncoderDecoder, data: Any) -> tuple[Any, Any]:
        """Returns the batches for training and for validation."""
        raise NotImplementedError

    def objective(self) -> dict[str, Any]:
        """Returns what only this kind of model's recipes ask of `compile`."""
        return {}

    @property
    def monitored(self) -> str | None:
        """The score by which epochs are compared; None for the validation loss."""
        raise NotImplementedError

    def score_callback(self, model: EncoderDecoder, data: Any) -> keras.callbacks.Callback:
        """Returns the callback that computes what is `monitored`."""
        raise NotImplementedError

    def predict(self, model: EncoderDecoder, data: Any) -> list[Any]:
        """Makes the outputs of the test part as the recipe's `search` says."""
        raise NotImplementedError

    def score(self, data: Any, outputs: Sequence[Any]) -> dict[str, Any]:
        """Computes and logs the scores that the recipe's `evaluation` asks for."""
        raise NotImplementedError

    def examples(self, data: Any) -> list[tuple[str, list[str]]]:
        """Returns what to print for the first SAMPLES inputs of the test part, and the references of each."""
        raise NotImplementedError

    def draw(self, model: EncoderDecoder, data: Any) -> None:
        """Draws where the model looked."""
        raise NotImplementedError

    def serve(self, folder: pathlib.Path, data: Any) -> list[str]:
        """Serves a SavedModel in a fresh process: returns the texts for the first SAMPLES inputs."""
        raise NotImplementedError

    # === What is the same for all ===

    def print_samples(self, data: Any, outputs: Sequence[Any]) -> None:
        """Logs some inputs with their output and, where it differs, the reference."""
        for (name, references), output in zip(self.examples(data), outputs, strict=False):
            verdict = "" if output.text in references else f"    (reference: {references[0]})"
            logger.info("  %s  ->  %s%s", name, output.text, verdict)

    def export(self, model: EncoderDecoder, data: Any, outputs: Sequence[Any]) -> dict[str, int]:
        """Writes the SavedModel, loads it in a fresh process, and compares what it makes."""
        folder = self.recipe.folder / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier, finished run of the same recipe
        search = self.recipe.search
        model.export(folder, beams=search.beams, length_penalty=search.length_penalty)
        served = self.serve(folder, data)
        equal = sum(one == other.text for one, other in zip(served, outputs, strict=False))
        log = logger.info if equal == len(served) else logger.warning
        log(
            "SavedModel: %s; in a fresh process that imports only tensorflow and tensorflow_text, %d of %d "
            "%s are the same.", folder, equal, len(served), self.outputs
        )  # fmt: skip
        return {self.inputs: len(served), "equal": equal}


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole: under another name first."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def train_tokenizer(settings: TokenizerSettings, texts: Sequence[str]) -> Tokenizer:
    """Learns a tokenizer."""
    kind = SentencePieceTokenizer if isinstance(settings, SentencePiece) else WhitespaceTokenizer
    tokenizer = kind.train(texts, **settings.model_dump(exclude={"kind"}))
    logger.info("Tokenizer: %s, %d pieces", settings.kind, tokenizer.vocabulary_size)
    return tokenizer


def run_in_fresh_process(code: str, folder: pathlib.Path, request: Any) -> Any:
    """Runs Python code on a SavedModel, without this library.

    Args:
        code: Finds the folder in `sys.argv[1]` and the request, as JSON, on standard input; its last line
            of output is JSON.
        folder: The SavedModel.
        request: What to serve.

    Returns:
        What the code printed.

    Raises:
        RuntimeError: If the code failed.
    """
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if process.returncode:
        raise RuntimeError(f"The SavedModel {folder} does not work in a fresh process:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])
