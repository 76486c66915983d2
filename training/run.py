"""A run: everything that happens when a recipe is trained, top to bottom.

data -> tokenizers -> model -> fit -> translate held-out text -> scores, samples, picture, SavedModel
"""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import yaml
from rich.console import Console

from attention_zoo._version import __version__
from attention_zoo.losses import MaskedCrossentropy
from attention_zoo.models.sentencepiece_tokenizer import SentencePieceTokenizer
from attention_zoo.models.tokenizer import Tokenizer
from attention_zoo.models.translation import Translation
from attention_zoo.models.translator import Translator
from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer
from attention_zoo.schedules import InverseSquareRootSchedule
from attention_zoo.training.batching import TranslationBatches
from attention_zoo.training.callbacks.checkpoint_averaging import CheckpointAveraging
from attention_zoo.training.callbacks.progress import Progress
from attention_zoo.training.callbacks.resume import Resume
from attention_zoo.training.callbacks.translation_score import TranslationScore
from attention_zoo.training.evaluation import bleu_by_length, evaluate_translations, exact_match
from attention_zoo.training.generated_dates import training_and_held_out
from attention_zoo.training.recipe import GeneratedDates, Recipe, SentencePiece, TokenizerSettings
from attention_zoo.training.text_data import ParallelText

logger = logging.getLogger("attention_zoo")

RECORD = "trained_recipe.yaml"  # in the output folder: what was trained there
SAMPLES = 8  # held-out sentences that are printed, and translated once more by the SavedModel

# Runs in a process of its own, to prove that serving needs nothing but these two imports.
FRESH_PROCESS = """
import json, sys
import tensorflow as tf
import tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = serve(texts=tf.constant(json.load(sys.stdin)))["text"].numpy()
assert "attention_zoo" not in sys.modules
print(json.dumps([text.decode() for text in texts]))
"""


class Data(NamedTuple):
    """The three parts of a corpus."""

    training: ParallelText
    validation: ParallelText
    test: ParallelText


def train(recipe: Recipe, fresh: bool = False) -> dict[str, Any]:
    """Trains, evaluates, draws and exports what a recipe describes.

    A run in the folder of an interrupted one goes on where that one stopped.

    Args:
        recipe: What to do.
        fresh: Whether to delete what an earlier run left in the folder, and start over.

    Returns:
        What is written to results.json: scores, seed, versions, seconds, command.

    Raises:
        FileNotFoundError: A data file is missing.
        ImportError: Something that the evaluation needs is not installed.
        ValueError: The folder holds a run of another recipe.

    Example:
        ```python
        from attention_zoo.training import Recipe, run

        results = run.train(Recipe.load("dates", ["training.epochs=3"]))
        print(results["scores"])
        ```
    """
    recipe.check_requirements()
    console = Console()
    with _logging_to(console):
        start = time.perf_counter()
        prepare_folder(recipe, fresh)
        keras.utils.set_random_seed(recipe.seed)
        data = read_data(recipe)
        model = build_model(recipe, *train_tokenizers(recipe, data.training))
        history = fit(recipe, model, data, console)
        trained = time.perf_counter()

        translations = translate(recipe, model, data.test)
        scores = score(recipe, data.test, translations)
        print_samples(data.test, translations)
        draw(recipe, model, data.test)
        reloaded = export(recipe, model, data.test, translations)
        seconds = {"training": trained - start, "total": time.perf_counter() - start}
        return write_results(recipe, model, history, scores, reloaded, seconds)


def prepare_folder(recipe: Recipe, fresh: bool) -> None:
    """Makes the output folder, or checks that the one that is there belongs to this recipe."""
    folder, record = recipe.folder, recipe.folder / RECORD
    if folder.exists() and any(folder.iterdir()):
        if not record.is_file():
            raise ValueError(
                f"output: expected a new folder or one of an earlier run, received {folder}, which holds "
                "other things; choose another with output=FOLDER."
            )
        if fresh:
            for name in (RECORD, "results.json", "alignment.png"):  # nothing but what a run writes
                (folder / name).unlink(missing_ok=True)
            for name in ("backup", "checkpoints", "heads", "model"):
                shutil.rmtree(folder / name, ignore_errors=True)
        else:
            changed = _changed_parts(yaml.safe_load(record.read_text(encoding="utf-8")), recipe)
            if changed:
                raise ValueError(
                    f"output: expected the recipe that was trained in {folder}, received one with other "
                    f"{', '.join(changed)}; start over with --fresh, or choose another output."
                )
    folder.mkdir(parents=True, exist_ok=True)
    _write(record, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    logger.info("Recipe %s: %s\nOutput in %s", recipe.name, recipe.description, folder)


def read_data(recipe: Recipe) -> Data:
    """Reads or generates training, validation and test text."""
    if isinstance(recipe.data, GeneratedDates):
        count = recipe.data.held_out_count
        training, held_out = training_and_held_out(recipe.data.training_count, 2 * count, seed=recipe.seed)
        data = Data(training, validation=held_out[:count], test=held_out[count:])
    else:
        parts = (ParallelText.from_files(*recipe.data.paths(part)) for part in Data._fields)
        data = Data(*parts)
    logger.info("Data: %s", ", ".join(f"{len(part):,} {name}" for name, part in data._asdict().items()))
    return data


def train_tokenizers(recipe: Recipe, text: ParallelText) -> tuple[Tokenizer, Tokenizer]:
    """Learns the source and the target tokenizer; with `joint` they are one object."""
    settings = recipe.tokenizers
    if settings.joint:
        tokenizer = _train_tokenizer(settings.source, [*text.sources, *text.targets])
        return tokenizer, tokenizer
    return (
        _train_tokenizer(settings.source, text.sources),
        _train_tokenizer(settings.target or settings.source, text.targets),
    )


def _train_tokenizer(settings: TokenizerSettings, texts: list[str]) -> Tokenizer:
    kind = SentencePieceTokenizer if isinstance(settings, SentencePiece) else WhitespaceTokenizer
    tokenizer = kind.train(texts, **settings.model_dump(exclude={"kind"}))
    logger.info("Tokenizer: %s, %d pieces", settings.kind, tokenizer.vocabulary_size)
    return tokenizer


def build_model(recipe: Recipe, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> Translator:
    """Builds and compiles the model; the log says what is compiled with XLA."""
    model = Translator.from_preset(
        recipe.model.preset,
        source_tokenizer=source_tokenizer,
        target_tokenizer=target_tokenizer,
        encoder=recipe.model.encoder.model_dump(exclude_unset=True),
        decoder=recipe.model.decoder.model_dump(exclude_unset=True),
        share_embeddings=recipe.model.share_embeddings,
    )
    logger.info("Model: %s, %s parameters", recipe.model.preset, f"{model.count_params():,}")
    settings = recipe.training
    rate: Any = settings.peak_learning_rate
    if settings.schedule == "inverse_square_root":
        rate = InverseSquareRootSchedule(rate, settings.warmup_steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate, beta_2=0.98, global_clipnorm=settings.clip_norm),
        loss=MaskedCrossentropy(label_smoothing=settings.label_smoothing),
    )
    return model


def fit(recipe: Recipe, model: Translator, data: Data, console: Console) -> keras.callbacks.History:
    """Trains the model, from the last backup if there is one."""
    settings = recipe.training
    tokenizers = model.source_tokenizer, model.target_tokenizer
    batches = TranslationBatches(
        data.training,
        *tokenizers,
        batch_tokens=settings.batch_tokens,
        max_buckets=settings.max_buckets,
        seed=recipe.seed,
    )
    validation = TranslationBatches(
        data.validation, *tokenizers, batch_tokens=settings.batch_tokens, shuffle=False
    )
    logger.info("Batches: %s\nXLA compiles each of these shapes when it first comes.", batches.summary())
    callbacks: list[keras.callbacks.Callback] = []
    if recipe.evaluation.metric == "bleu":
        settings_of_score = {
            "every": recipe.evaluation.every_epochs,
            "tokenized": recipe.evaluation.tokenized,
        }
        callbacks.append(TranslationScore(data.validation, **settings_of_score))
    stopping = [_early_stopping(recipe)] if settings.keep == "best" or settings.patience else []
    callbacks += stopping
    if settings.keep == "average":
        callbacks.append(CheckpointAveraging(settings.average_last, folder=recipe.folder / "checkpoints"))
    progress = Progress(console=console)
    # Resume comes last: it saves what the others did.
    callbacks += [progress, Resume(recipe.folder / "backup", batches, callbacks=stopping)]
    try:
        return model.fit(
            batches.dataset(),
            validation_data=validation.dataset(),
            epochs=settings.epochs,
            callbacks=callbacks,
            shuffle=False,  # the batches shuffle themselves
            verbose=0,
        )
    except KeyboardInterrupt:
        logger.info("Interrupted: the same command goes on after the last complete epoch.")
        raise
    finally:
        progress.close()


def _early_stopping(recipe: Recipe) -> keras.callbacks.EarlyStopping:
    bleu = recipe.evaluation.metric == "bleu"
    return keras.callbacks.EarlyStopping(
        monitor="val_bleu" if bleu else "val_loss",
        mode="max" if bleu else "min",
        patience=recipe.training.patience or recipe.training.epochs,
        restore_best_weights=recipe.training.keep == "best",
    )


def translate(recipe: Recipe, model: Translator, text: ParallelText) -> list[Translation]:
    """Translates held-out text as the recipe's `search` says."""
    logger.info("Translating %d held-out sentences, beams=%d ...", len(text), recipe.search.beams)
    return model.translate(
        text.sources, beams=recipe.search.beams, length_penalty=recipe.search.length_penalty
    )


def score(recipe: Recipe, text: ParallelText, translations: list[Translation]) -> dict[str, Any]:
    """Computes and logs the scores that the recipe's `evaluation` asks for."""
    hypotheses = [translation.text for translation in translations]
    if recipe.evaluation.metric == "exact_match":
        share = exact_match(hypotheses, text.targets)
        logger.info("Exact match: %.2f%% of %d", 100 * share, len(text))
        return {"exact_match": share}
    scores: dict[str, Any] = {}
    for kind in ["detokenized", "tokenized"] if recipe.evaluation.tokenized else ["detokenized"]:
        result = evaluate_translations(hypotheses, text.targets, tokenized=kind == "tokenized")
        logger.info("%s\n%s", kind.capitalize(), result)
        scores[kind] = vars(result)
    if recipe.evaluation.by_length:
        rows = bleu_by_length(hypotheses, text.targets, text.sources, tokenized=recipe.evaluation.tokenized)
        logger.info("BLEU by source length\n    words   count    BLEU\n%s", "\n".join(map(str, rows)))
        scores["bleu_by_length"] = [vars(row) for row in rows]
    return scores


def print_samples(text: ParallelText, translations: list[Translation]) -> None:
    """Logs some held-out sentences with their translation and reference."""
    for source, translation, reference in list(zip(text.sources, translations, text.targets, strict=True))[
        :SAMPLES
    ]:
        verdict = "" if translation.text == reference else f"    (reference: {reference})"
        logger.info("  %s  ->  %s%s", source, translation.text, verdict)


def draw(recipe: Recipe, model: Translator, text: ParallelText) -> None:
    """Draws where the model looked in one held-out sentence."""
    if not model.decoder.has_attention:
        logger.info("No picture: preset %s has no attention.", recipe.model.preset)
        return
    source = max(text.sources[:SAMPLES], key=len)  # the longest sample shows most
    translation = model.translate(source, beams=recipe.search.beams, return_attention=True)
    path = recipe.folder / "alignment.png"
    translation.plot(path)
    logger.info("Alignment of %r: %s", source, path)
    if model.encoder.has_attention:  # many heads: a picture of each layer
        folder = recipe.folder / "heads"
        for part, layers in translation.heads.items():
            for layer in range(len(layers)):
                translation.plot_heads(folder / f"{part}-{layer + 1}.png", part, layer)
        logger.info("Its heads, layer by layer: %s", folder)


def export(
    recipe: Recipe, model: Translator, text: ParallelText, translations: list[Translation]
) -> dict[str, int]:
    """Writes the SavedModel, loads it in a fresh process, and compares translations."""
    folder = recipe.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier, finished run of the same recipe
    model.export(folder, beams=recipe.search.beams, length_penalty=recipe.search.length_penalty)
    served = translate_in_fresh_process(folder, text.sources[:SAMPLES])
    equal = sum(one == other.text for one, other in zip(served, translations, strict=False))
    log = logger.info if equal == len(served) else logger.warning
    log(
        "SavedModel: %s; in a fresh process that imports only tensorflow and tensorflow_text, %d of %d "
        "translations are the same.", folder, equal, len(served)
    )  # fmt: skip
    return {"sentences": len(served), "equal": equal}


def translate_in_fresh_process(folder: pathlib.Path, texts: list[str]) -> list[str]:
    """Serves a SavedModel in a new Python process, without this library."""
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if process.returncode:
        raise RuntimeError(f"The SavedModel {folder} does not work in a fresh process:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def write_results(
    recipe: Recipe,
    model: Translator,
    history: keras.callbacks.History,
    scores: dict[str, Any],
    reloaded: dict[str, int],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes results.json, the record of the run."""
    results = {
        "recipe": recipe.name,
        "scores": scores,
        "seed": recipe.seed,
        "epochs": recipe.training.epochs,
        "epochs_in_this_process": len(history.epoch),  # fewer after an interruption: so are the seconds
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parameters": model.count_params(),
        "compilation": model.compilation,
        "same_in_fresh_process": reloaded,
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "versions": {
            "attention-zoo": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("tensorflow", "tensorflow-text", "keras")},
        },
    }
    path = recipe.folder / "results.json"
    _write(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    logger.info("Results: %s (%.0f s training, %.0f s in all)", path, seconds["training"], seconds["total"])
    return results


def _changed_parts(recorded: Any, recipe: Recipe) -> list[str]:
    """The parts of the recipe that decide the weights, and differ from the recorded ones.

    The number of epochs is none of them: a run may go on for longer, or stop sooner.
    """
    parts = ("seed", "data", "tokenizers", "model", "training")
    recorded = recorded if isinstance(recorded, dict) else {}
    wanted = recipe.model_dump(mode="json")
    for settings in (recorded, wanted):
        settings["training"] = {**settings.get("training", {}), "epochs": None}
    return [part for part in parts if recorded.get(part) != wanted[part]]


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class _ConsoleHandler(logging.Handler):
    """Writes log lines above the live bar, not through it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Shows the library's log on the console for the time of a run."""
    handler, level, propagate = _ConsoleHandler(console), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # exporting gives the root logger a handler, which would say it all twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
