"""A run: everything that happens when a recipe is trained, top to bottom.

data -> tokenizers -> model -> fit -> translate held-out text -> scores, samples, picture, SavedModel

Or images are captioned: what differs between translation and captioning stands in a `Task`.
"""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import yaml
from rich.console import Console

from attention_zoo._version import __version__
from attention_zoo.losses import MaskedCrossentropy
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.saving import load
from attention_zoo.models.tokenizer import Tokenizer
from attention_zoo.schedules import CooldownSchedule, InverseSquareRootSchedule
from attention_zoo.training import strategies
from attention_zoo.training.callbacks.checkpoint_averaging import CheckpointAveraging
from attention_zoo.training.callbacks.progress import Progress
from attention_zoo.training.callbacks.resume import Resume
from attention_zoo.training.captioning_task import CaptioningTask
from attention_zoo.training.recipe import PARTS, Model, Recipe, Training, trained_model
from attention_zoo.training.task import Task, write_text
from attention_zoo.training.translation_task import MADE, TranslationTask

logger = logging.getLogger("attention_zoo")

RECORD = "trained_recipe.yaml"  # in the output folder: what was trained there

TASKS: dict[str, type[Task]] = {"translation": TranslationTask, "captioning": CaptioningTask}


def train(recipe: Recipe, fresh: bool = False, strategy: str = "auto") -> dict[str, Any] | None:
    """Trains, evaluates, draws and exports what a recipe describes.

    A run in the folder of an interrupted one goes on where that one stopped. Of several workers, all train,
    and the chief does the rest; it alone writes into the folder.

    Args:
        recipe: What to do.
        fresh: Whether to delete what an earlier run left in the folder, and start over.
        strategy: On what to train, see `strategies.strategy`.

    Returns:
        What is written to results.json: scores, seed, versions, seconds, command; None on a worker that is
        not the chief.

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
    devices = strategies.strategy(strategy)  # several workers must find each other before anything runs
    chief = strategies.is_chief(devices)
    console = Console(quiet=not chief)
    with _logging_to(console), _dtype_policy(recipe.training.precision):
        start = time.perf_counter()
        if chief:
            prepare_folder(recipe, fresh)
        logger.info("Devices: %s", strategies.describe(devices))
        keras.utils.set_random_seed(recipe.seed)
        task = TASKS[recipe.task](recipe, console)
        data = read_data(task)
        with devices.scope():
            model = build_model(task, data)
        start_weights = model.get_weights() if recipe.model.start_share else None
        history = fit(task, model, data)
        if start_weights:
            mix_with_start(model, start_weights, recipe.model)
        trained = time.perf_counter()
        if not chief:
            strategies.any_worker(devices, False)  # TensorFlow takes a worker that has left for a dead one
            return None

        outputs = task.predict(model, data)
        scores = task.score(data, outputs)
        task.print_samples(data, outputs)
        task.draw(model, data)
        reloaded = task.export(model, data, outputs)
        seconds = {"training": trained - start, "total": time.perf_counter() - start}
        results = write_results(recipe, model, history, scores, reloaded, seconds)
        strategies.any_worker(devices, False)
        return results


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
            # Nothing but what a run writes.
            for name in (RECORD, "results.json", "alignment.png", *MADE):
                (folder / name).unlink(missing_ok=True)
            for path in folder.glob("attention-[0-9].png"):
                path.unlink()
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
    write_text(record, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    logger.info("Recipe %s: %s\nOutput in %s", recipe.name, recipe.description, folder)


def read_data(task: Task) -> Any:
    """Reads or generates the data; the log says how much there is."""
    data = task.read_data()
    sizes = (f"{len(getattr(data, part)):,} {part}" for part in PARTS)
    logger.info("Data: %s", ", ".join(sizes))
    return data


def build_model(task: Task, data: Any) -> EncoderDecoder:
    """Builds the model, with the weights of an earlier one if the recipe names it."""
    settings = task.recipe.model
    model = task.build_model(data)
    logger.info("Model: %s, %s parameters", settings.preset, f"{model.count_params():,}")
    if settings.start:
        _copy_weights(load(trained_model(settings.start)), model, settings.start)
        logger.info("It begins with the weights of %s", settings.start)
    return model


def mix_with_start(model: EncoderDecoder, start_weights: list[np.ndarray], settings: Model) -> None:
    """Mixes the weights that training began with into those that it ended with.

        w = (1 - share) w_end + share w_start

    What lies between two good models on one path is often better than both (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models").
    """
    share = settings.start_share
    model.set_weights(
        [
            ((1 - share) * end + share * start).astype(end.dtype)
            if np.issubdtype(end.dtype, np.floating)
            else end
            for start, end in zip(start_weights, model.get_weights(), strict=True)
        ]
    )
    logger.info("The final weights are mixed with %g of those of %s", share, settings.start)


def _copy_weights(source: EncoderDecoder, target: EncoderDecoder, name: str) -> None:
    """Gives `target` the weights of `source`, which must be of its kind and read the same tokens."""
    shapes = [[tuple(weight.shape) for weight in model.weights] for model in (source, target)]
    if type(source) is not type(target) or shapes[0] != shapes[1]:
        raise ValueError(
            f"model.start: expected a {type(target).__name__} with {target.count_params():,} parameters in "
            f"the shapes of this recipe, received {name}, a {type(source).__name__} with "
            f"{source.count_params():,}; take its preset and sizes, or another start."
        )
    its, ours = _tokenizers(source), _tokenizers(target)
    if len(its) != len(ours) or not all(map(Tokenizer.has_pieces_of, its, ours)):
        raise ValueError(
            f"model.start: expected a model with the tokens of this recipe, received {name}, whose "
            "tokenizers learned other pieces; take its data and tokenizers, or another start."
        )
    target.set_weights(source.get_weights())


def _tokenizers(model: EncoderDecoder) -> list[Tokenizer]:
    return [layer for layer in model.layers if isinstance(layer, Tokenizer)]


def learning_rate(settings: Training, steps_per_epoch: int) -> Any:
    """The rate that a recipe asks for: a number, or a schedule."""
    rate: Any = settings.peak_learning_rate
    if settings.schedule == "inverse_square_root":
        rate = InverseSquareRootSchedule(rate, settings.warmup_steps)
    if settings.cooldown_epochs:
        cooldown_steps = settings.cooldown_epochs * steps_per_epoch
        rate = CooldownSchedule(rate, cooldown_steps, settings.epochs * steps_per_epoch)
    return rate


def fit(task: Task, model: EncoderDecoder, data: Any) -> keras.callbacks.History:
    """Compiles the model and trains it, from the last backup if there is one."""
    recipe, settings = task.recipe, task.recipe.training
    batches, validation = task.batches(model, data)
    logger.info("Batches: %s\nXLA compiles each of these shapes when it first comes.", batches.summary())
    rate = learning_rate(settings, batches.steps_per_epoch)
    with model.distribute_strategy.scope():
        model.compile(
            optimizer=keras.optimizers.Adam(rate, beta_2=0.98, global_clipnorm=settings.clip_norm),
            loss=MaskedCrossentropy(label_smoothing=settings.label_smoothing),
            micro_batches=settings.micro_batches or 1,
            r_drop=settings.r_drop or 0.0,
            product_dtype="bfloat16" if settings.precision == "bfloat16_products" else None,
            **task.objective(),
        )
    callbacks: list[keras.callbacks.Callback] = []
    if task.monitored:
        callbacks.append(task.score_callback(model, data))
    stopping = [_early_stopping(task)] if settings.keep == "best" or settings.patience else []
    callbacks += stopping
    if settings.keep == "average":
        callbacks.append(CheckpointAveraging(settings.average_last, folder=recipe.folder / "checkpoints"))
    progress = Progress(console=task.console)
    # Resume comes last: it saves what the others did.
    resume = Resume(recipe.folder / "backup", batches, callbacks=stopping, every_steps=settings.backup_steps)
    callbacks += [progress, resume]
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
        resume.close()


def _early_stopping(task: Task) -> keras.callbacks.EarlyStopping:
    settings = task.recipe.training
    return keras.callbacks.EarlyStopping(
        monitor=task.monitored or "val_loss",
        mode="max" if task.monitored else "min",
        patience=settings.patience or settings.epochs,
        restore_best_weights=settings.keep == "best",
    )


def write_results(
    recipe: Recipe,
    model: EncoderDecoder,
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
        "devices": strategies.describe(model.distribute_strategy),
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
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    logger.info("Results: %s (%.0f s training, %.0f s in all)", path, seconds["training"], seconds["total"])
    return results


def _changed_parts(recorded: Any, recipe: Recipe) -> list[str]:
    """The parts of the recipe that decide the weights, and differ from the recorded ones.

    The number of epochs is none of them: a run may go on for longer, or stop sooner, and cool down then.
    """
    parts = ("seed", "data", "tokenizers", "model", "training")
    recorded = recorded if isinstance(recorded, dict) else {}
    recorded, wanted = _without_nulls(recorded), _without_nulls(recipe.model_dump(mode="json"))
    for settings in (recorded, wanted):
        settings["training"] = {**settings.get("training", {})}
        for name in ("epochs", "backup_steps"):
            settings["training"].pop(name, None)
        # The optimizer of a constant rate has a variable for it, which the backup of another one lacks.
        if settings["training"].get("schedule") != "constant":
            settings["training"].pop("cooldown_epochs", None)
    return [part for part in parts if recorded.get(part) != wanted[part]]


def _without_nulls(settings: Any) -> Any:
    """Nested dicts without the keys that are null: an older record does not have those that are new."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_nulls(value) for key, value in settings.items() if value is not None}


class _ConsoleHandler(logging.Handler):
    """Writes log lines above the live bar, not through it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _dtype_policy(precision: str | None) -> Iterator[None]:
    """Computes in another precision for the time of a run."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "bfloat16_products" else precision or before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
