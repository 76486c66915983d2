"""Going on with a training that was interrupted."""

import json
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

logger = logging.getLogger("attention_zoo")

_KEPT = 2  # backups on disk: if the newest is damaged, there is one before it
# What EarlyStopping, ModelCheckpoint and ReduceLROnPlateau count while a model trains, beside best_weights.
_PROGRESS = ("best", "best_epoch", "wait", "stopped_epoch", "cooldown_counter")


class Resume(keras.callbacks.Callback):
    """Backs up the whole state of a training after every epoch, and restores it when `fit` starts.

    A training that was killed and started again ends with exactly the numbers of one that ran through:
    weights, optimizer, dropout generators and epoch number all come back. What was done of the epoch in
    which it died is done again. Each backup is one file, written under a temporary name and renamed when
    it is whole.

    When the training is complete its backup stays: fitting again for the same number of epochs does
    nothing, for more epochs goes on. Delete the folder to start over.

    Put it last in the list of callbacks, so that it saves what the others did.

    Args:
        folder: Where the backups are; made if it does not exist.
        batches: A `TranslationBatches`, whose `epoch` decides the order of its data; it is set at the start
            of every epoch. Without it, the data must not depend on how many epochs the process has seen.
        callbacks: Those of Keras's callbacks `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau`
            that are in use: their best value and their patience are saved as well. (`CheckpointAveraging`
            keeps its own files.)

    Raises:
        ValueError: When `fit` starts, if the model is not built, the backup is of another model, or no
            backup is readable.

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
    ) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.batches = batches
        self.callbacks = list(callbacks)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the newest backup that is whole."""
        if not self.model.built:
            raise ValueError(
                "Resume: expected a model whose weights exist, received one that is not built; "
                "call it on a batch before fit."
            )
        self.model.optimizer.build(self.model.trainable_variables)  # does nothing the second time
        backups = self._backups()
        for path in reversed(backups):
            try:
                arrays = load_arrays(path)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                logger.warning("Resume: %s is damaged (%s); trying the backup before it.", path, error)
                continue
            self._restore(path, arrays)
            return
        if backups:
            raise ValueError(
                f"Resume: expected a readable backup in {self.folder}, received {len(backups)} damaged; "
                "delete the folder to start over."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the order of the data."""
        self.model._initial_epoch = None  # `fit` has read it; the next `fit` shall not find it
        if self.batches is not None:
            self.batches.epoch.assign(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a backup."""
        arrays = {f"variable/{i}": v.numpy() for i, v in enumerate(self._variables())}
        progress = []
        for index, callback in enumerate(self.callbacks):
            progress.append({name: vars(callback)[name] for name in _PROGRESS if name in vars(callback)})
            best_weights = vars(callback).get("best_weights") or []
            arrays |= {f"best_weights/{index}/{i}": weight for i, weight in enumerate(best_weights)}
        state = {"epoch": epoch + 1, "stopped": bool(self.model.stop_training), "callbacks": progress}
        arrays["state"] = np.array(json.dumps(state))
        save_arrays(self.folder / f"epoch-{epoch + 1:06d}.npz", arrays)
        for path in self._backups()[:-_KEPT]:
            path.unlink()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves no trace in the model."""
        self.model._initial_epoch = None

    def _backups(self) -> list[pathlib.Path]:
        """The backups, oldest first."""
        return sorted(self.folder.glob("epoch-*.npz"))

    def _variables(self) -> list[keras.Variable]:
        # Unlike `weights`, `variables` has the states of the dropout generators.
        return [*self.model.variables, *self.model.optimizer.variables]

    def _restore(self, path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
        state = json.loads(str(arrays["state"]))
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
        # A training that a callback stopped is complete, however many epochs were asked for.
        first = self.params["epochs"] if state["stopped"] else state["epoch"]
        self.model._initial_epoch = first
        if first >= self.params["epochs"]:
            logger.warning(
                "Resume: the training in %s is complete after %d epochs: nothing to do. Delete the folder to "
                "start over.", self.folder, state["epoch"],
            )  # fmt: skip
        else:
            logger.info("Resume: going on after epoch %d, from %s.", state["epoch"], path)


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
