"""A finished run to a preset folder: the model, its scores and its card, ready to be given to others."""

import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

import numpy as np
import yaml

from attention_zoo.models import preset_folder
from attention_zoo.models.captioner import Captioner
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.saving import load
from attention_zoo.models.tokenizer import Tokenizer
from attention_zoo.models.trained_preset import RESULTS
from attention_zoo.training.model_card import Card, model_card, without_paths
from attention_zoo.training.run import RECORD

CALLS = 20  # whose median is the speed


def publish(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    dtype: str = "float16",
    card: str | os.PathLike | None = None,
) -> None:
    """Writes the model of a finished run as a preset that `from_preset` reads, with scores, speed and a card.

    A translator whose text was tokenized beforehand, and is all in lower case, gets tokenizers that bring
    ordinary text into that form; see `Tokenizer`.

    Args:
        run: The output folder of a training, see `run.train`.
        folder: Where to write; must not exist. Its name is that of the preset.
        dtype: Of the stored weights, "float16" or "float32".
        card: A YAML file with the texts of the card, see `model_card.Card`; None takes those that there are
            for the data of the built-in recipes.

    Raises:
        FileExistsError: If `folder` exists.
        FileNotFoundError: If `run` is no folder of a finished run.
        ValueError: If there is no card for its recipe.
    """
    run, folder = pathlib.Path(run), pathlib.Path(folder)
    for name in (RECORD, RESULTS, "model"):
        if not (run / name).exists():
            raise FileNotFoundError(
                f"publish: expected the output folder of a finished training, with {name} in it, received "
                f"{run}"
            )
    record = without_paths(yaml.safe_load((run / RECORD).read_text(encoding="utf-8")))
    results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    results.pop("command", None)  # names places on the machine that trained it
    texts = Card.load(None if card is None else pathlib.Path(card), record["name"])
    model = load(run / "model")
    tokenizers = _tokenizers(model)
    if record["evaluation"].get("tokenized"):
        for tokenizer in tokenizers.values():
            if _is_lower_case(tokenizer):
                tokenizer.preparation = "moses_lowercase"
    results["speed"] = speed(model, texts.example, record["search"])
    sentences = [_describe(part, tokenizer) for part, tokenizer in tokenizers.items()]
    files = {
        preset_folder.CARD: model_card(folder.name, record, results, texts, dtype, sentences),
        RESULTS: json.dumps(results, indent=2, ensure_ascii=False) + "\n",
        RECORD: yaml.safe_dump(record, sort_keys=False, allow_unicode=True),
    }
    preset_folder.save(model, folder, dtype, record["description"], files)


def speed(model: EncoderDecoder, example: str | None, search: dict[str, Any]) -> dict[str, Any]:
    """How long one input takes on this machine, once the search is compiled.

    Args:
        model: The model.
        example: A sentence for a translator.
        search: The arguments "beams" and "length_penalty".

    Returns:
        A dict of "input", what was translated or captioned; "milliseconds", the median of `CALLS` calls; and
        "processors", how many of what kind.
    """
    if isinstance(model, Captioner):
        height, width = model.encoder.image_size
        image = np.zeros((height, width, 3), "uint8")
        shown, run = f"a picture of {width} x {height} pixels", lambda: model.caption(image, **search)
    else:
        sentence = example or "A sentence."
        shown, run = f"{sentence!r}", lambda: model.translate(sentence, **search)
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    processors = f"{os.cpu_count()} x {platform.machine()}"
    return {"input": shown, "milliseconds": round(statistics.median(times[1:]), 1), "processors": processors}


def _tokenizers(model: EncoderDecoder) -> dict[str, Tokenizer]:
    """The tokenizers of a model by what they read."""
    if isinstance(model, Captioner):
        return {"captions": model.tokenizer}
    if model.source_tokenizer is model.target_tokenizer:
        return {"both languages": model.source_tokenizer}
    return {"the source": model.source_tokenizer, "the target": model.target_tokenizer}


def _is_lower_case(tokenizer: Tokenizer) -> bool:
    """Whether no token has a capital letter."""
    pieces = tokenizer.pieces(range(tokenizer.vocabulary_size)).numpy()
    return all(piece.decode() == piece.decode().lower() for piece in pieces)


def _describe(part: str, tokenizer: Tokenizer) -> str:
    sentence = f"`{type(tokenizer).__name__}` of {tokenizer.vocabulary_size:,} tokens for {part}"
    if tokenizer.preparation is None:
        return sentence
    return f"{sentence}, which brings text into lower case and sets signs apart from words, as Moses does"
