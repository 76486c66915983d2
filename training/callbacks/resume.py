"""Going on with a training that was interrupted."""

import json
import logging
import os
import pathlib
import signal
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from attention_zoo.training.strategies import any_worker, broadcast, is_chief

logger = logging.getLogger("attention_zoo")

_KEPT = 2  # backups on disk: if the newest is damaged, there is one before it
# What EarlyStopping, ModelCheckpoint and ReduceLROnPlateau count while a model trains, beside best_weights.
_PROGRESS = ("best", "best_epoch", "wait", "stopped_epoch", "cooldown_counter")


class Resume(keras.callbacks.Callback):
    """Backs up the whole state of a training after every epoch, and restores it when `fit` starts.

    A training that was killed and started again ends with exactly the numbers of one that ran through:
    weights, optimizer, dropout generators, metrics, epoch and batch all come back. What was done since the
    last backup is done again. Each backup is one file, written under a temporary name and renamed when it is
    whole.

    SIGTERM, with which clusters announce that they need the machine, ends the training after the current
    batch: the callback makes a backup and leaves with exit code 143. A second SIGTERM does what it always
    did.

    With several workers, only the chief writes; the others receive its backup when they start, so that no
    shared disk is needed. A SIGTERM to any of them stops all of them at the same batch.

    When the training is complete its backup stays: fitting again for the same number of epochs does
    nothing, for more epochs goes on. Delete the folder to start over.

    Put it last in the list of callbacks, so that it saves what the others did.

    Args:
        folder: Where the backups are; made if it does not exist.
        batches: A `TranslationBatches` or `CaptionBatches`, whose `epoch` decides the order of its data; it
            is set at the start of every epoch. Without it, the data must not depend on how many epochs the
            process has seen.
        callbacks: Those of Keras's callbacks `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau`
            that are in use: their best value and their patience are saved as well. (`CheckpointAveraging`
            keeps its own files.)
        every_steps: Batches between backups within an epoch; None makes none.

    Raises:
        ValueError: If `every_steps` is not positive. When `fit` starts, if the model is not built, the backup
            is of another model, or no backup is readable.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.zeros([4, 2]), np.zeros([4, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = model.fit(x, y, epochs=2, verbose=0, callbacks=[Resume(folder)])
        ...     second = model.fit(x, y, epochs=5, verbose=0, callbacks=[Resume(folder)])
        >>> first.epoch, second.epoch
        ([0, 1], [2, 3, 4])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batches: Any = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        every_steps: int | None = None,
    ) -> None:
        super().__init__()
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"Resume: expected every_steps of at least 1, received {every_steps}")
        self.folder = pathlib.Path(folder)
        self.batches = batches
        self.callbacks = list(callbacks)
        self.every_steps = every_steps
        self._epoch = 0  # epochs done
        self._skip = 0  # batches of the first epoch that were done before the interruption
        self._metrics: list[np.ndarray] = []  # their state after those batches
        self._saved_steps = 0  # batches of this epoch that the last backup has
        self._told_to_stop = False
        self._handler_before: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the newest backup that is whole."""
        if not self.model.built:
            raise ValueError(
                "Resume: expected a model whose weights exist, received one that is not built; "
                "call it on a batch before fit."
            )
        self.model.optimizer.build(self.model.trainable_variables)  # does nothing the second time
        arrays = broadcast(self._strategy, self._newest() if self._is_chief else {})
        self._epoch = self._skip = 0
        # A training that was interrupted while it left out batches has not put its own step back.
        self.model.train_function = getattr(self.model.train_function, "train", self.model.train_function)
        if arrays:
            self._restore(arrays)
        self._listen()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the order of the data, and leaves out the batches that are done."""
        self.model._initial_epoch = None  # `fit` has read it; the next `fit` shall not find it
        self._epoch, self._saved_steps = epoch, self._skip
        if self.batches is not None:
            self.batches.epoch.assign(epoch)
        if self._skip:
            logs = self._restore_metrics()
            self.model.train_function = self._skipping(self.model.train_function, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Makes a backup every so many batches, and one before the process is stopped."""
        steps = batch + 1
        stop = any_worker(self._strategy, self._told_to_stop)
        if self._skip:
            if stop:  # nothing is new
                self._leave()
            return
        # Not `% == 0`: with steps_per_execution we see every n-th batch only.
        due = self.every_steps and steps // self.every_steps > self._saved_steps // self.every_steps
        if stop or due:
            self._save(self._epoch, steps)
        if stop:
            self._leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a backup."""
        self._save(epoch + 1, 0)
        if any_worker(self._strategy, self._told_to_stop):
            self._leave()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves no trace in the model."""
        self.model._initial_epoch = None
        self.close()
        if self._told_to_stop:  # after the last backup
            signal.raise_signal(signal.SIGTERM)

    def close(self) -> None:
        """Gives SIGTERM back; call it when `fit` was interrupted."""
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None

    # === Stopping ===

    def _listen(self) -> None:
        """Notes SIGTERM; Python allows that in the main thread only."""
        self._told_to_stop = False
        if self._handler_before is None and threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._on_sigterm)
            self._handler_before = before or signal.SIG_DFL  # None if it is not one of Python's

    def _on_sigterm(self, number: int, frame: Any) -> None:
        if self._told_to_stop:
            self.close()
            signal.raise_signal(number)
        self._told_to_stop = True

    def _leave(self) -> None:
        logger.warning("Resume: told to stop, with a backup in %s; the same command goes on.", self.folder)
        self.close()
        raise SystemExit(128 + signal.SIGTERM)

    def _skipping(self, train: Callable, logs: dict[str, Any]) -> Callable:
        """A training step that takes a batch and does nothing, until the first one that is not done yet."""

        def skip(iterator: Any) -> dict[str, Any]:
            for _ in range(self.model.steps_per_execution):
                next(iter(iterator))
            return logs

        def step(iterator: Any) -> Any:
            if self._skip == 0:
                self.model.train_function = train
                return train(iterator)
            self._skip -= self.model.steps_per_execution
            return skip(iterator)

        step.train = train
        return step

    def _restore_metrics(self) -> dict[str, Any]:
        """Returns what they say then."""
        variables = self._metric_variables()
        if len(variables) != len(self._metrics):  # some of Keras's make theirs in the first step
            logger.warning("Resume: the metrics of this epoch count from here on.")
            return {}
        for variable, value in zip(variables, self._metrics, strict=True):
            variable.assign(value)
        return self.model.get_metrics_result()

    # === Backups ===

    @property
    def _strategy(self) -> Any:
        return self.model.distribute_strategy

    @property
    def _is_chief(self) -> bool:
        return is_chief(self._strategy)

    def _save(self, epoch: int, steps: int) -> None:
        """Backs up the state after `epoch` epochs and `steps` batches."""
        self._saved_steps = steps
        arrays = {f"variable/{i}": v.numpy() for i, v in enumerate(self._variables())}
        arrays |= {f"metric/{i}": v.numpy() for i, v in enumerate(self._metric_variables())}
        progress = []
        for index, callback in enumerate(self.callbacks):
            progress.append({name: vars(callback)[name] for name in _PROGRESS if name in vars(callback)})
            best_weights = vars(callback).get("best_weights") or []
            arrays |= {f"best_weights/{index}/{i}": weight for i, weight in enumerate(best_weights)}
        stopped = bool(self.model.stop_training)
        state = {"epoch": epoch, "steps": steps, "stopped": stopped, "callbacks": progress}
        arrays["state"] = np.array(json.dumps(state))
        if not self._is_chief:
            return
        # The names sort as the backups were made.
        name = f"epoch-{epoch:06d}.step-{steps:09d}.npz" if steps else f"epoch-{epoch:06d}.npz"
        save_arrays(self.folder / name, arrays)
        for path in self._backups()[:-_KEPT]:
            path.unlink()

    def _backups(self) -> list[pathlib.Path]:
        """The backups, oldest first."""
        return sorted(self.folder.glob("epoch-*.npz"))

    def _newest(self) -> dict[str, np.ndarray]:
        """The newest backup that is whole; empty if there is none."""
        backups = self._backups()
        for path in reversed(backups):
            try:
                return {**load_arrays(path), "path": np.array(str(path))}
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                logger.warning("Resume: %s is damaged (%s); trying the backup before it.", path, error)
        if backups:
            raise ValueError(
                f"Resume: expected a readable backup in {self.folder}, received {len(backups)} damaged; "
                "delete the folder to start over."
            )
        return {}

    def _variables(self) -> list[keras.Variable]:
        # Unlike `weights`, `variables` has the states of the dropout generators.
        return [*self.model.variables, *self.model.optimizer.variables]

    def _metric_variables(self) -> list[keras.Variable]:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        state, path = json.loads(str(arrays["state"])), str(arrays["path"])
        variables, saved = self._variables(), _numbered(arrays, "variable/")
        current = [variable.numpy() for variable in variables]
        if [(a.shape, a.itemsize) for a in current] != [(a.shape, a.itemsize) for a in saved]:
            raise ValueError(
                f"Resume: expected a backup of this model and optimizer ({len(variables)} variables), "
                f"received {path} of another ({len(saved)} variables); take another folder, or delete it."
            )
        if len(state["callbacks"]) != len(self.callbacks):
            raise ValueError(
                f"Resume: expected the {len(state['callbacks'])} callbacks that {path} was made with, "
                f"received {len(self.callbacks)}; pass the same ones, or delete the folder to start over."
            )
        for variable, array in zip(variables, _with_types_of(current, saved), strict=True):
            variable.assign(array)
        for index, (callback, progress) in enumerate(zip(self.callbacks, state["callbacks"], strict=True)):
            vars(callback).update(progress)
            if best_weights := _numbered(arrays, f"best_weights/{index}/"):
                callback.best_weights = _with_types_of(self.model.get_weights(), best_weights)
        self._skip, self._metrics = state.get("steps", 0), _numbered(arrays, "metric/")
        if self._skip % self.model.steps_per_execution:
            raise ValueError(
                f"Resume: expected steps_per_execution that divides the {self._skip} batches that {path} has "
                f"of an epoch, received {self.model.steps_per_execution}; take 1, or that of the backup."
            )
        # A training that a callback stopped is complete, however many epochs were asked for.
        first = self.params["epochs"] if state["stopped"] else state["epoch"]
        self.model._initial_epoch = first
        if first >= self.params["epochs"]:
            logger.warning(
                "Resume: the training in %s is complete after %d epochs: nothing to do. Delete the folder to "
                "start over.", self.folder, state["epoch"],
            )  # fmt: skip
        else:
            batches = f" and {self._skip} batches" if self._skip else ""
            logger.info("Resume: going on after epoch %d%s, from %s.", state["epoch"], batches, path)


def save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file that, whatever happens, is whole or not there; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the new name with the old nothing
    partial.replace(path)


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote; reading every array checks its checksum."""
    with np.load(path) as file:
        return dict(file)


def _numbered(arrays: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """The arrays prefix0, prefix1, ... in order."""
    return [arrays[f"{prefix}{i}"] for i in range(sum(name.startswith(prefix) for name in arrays))]


def _with_types_of(examples: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """NumPy's files know no bfloat16: such an array comes back as bytes of the right width."""
    return [array.view(example.dtype) for example, array in zip(examples, arrays, strict=True)]
