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
        callbacks: Callbacks whose progress is saved as well, such as `EarlyStopping` (its best value and
            weights, its patience) or `ModelCheckpoint`. `CheckpointAveraging` keeps its own files.

    Raises:
        ValueError: When `fit` starts, if the backup is of another model, or no backup is readable.

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
        self._fresh = [dict(vars(callback)) for callback in self.callbacks]
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
        arrays = {f"variable/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(self._variables())}
        progress = []
        for index, (callback, fresh) in enumerate(zip(self.callbacks, self._fresh, strict=True)):
            numbers, array_lists = _progress(callback, fresh)
            progress.append(numbers)
            for name, values in array_lists.items():
                arrays |= {f"callback/{index}/{name}/{i}": value for i, value in enumerate(values)}
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
        if [tuple(variable.shape) for variable in variables] != [array.shape for array in saved]:
            raise ValueError(
                f"Resume: expected a backup of this model and optimizer ({len(variables)} variables), "
                f"received {path} of another ({len(saved)} variables); use another folder, or delete this one."
            )
        if len(state["callbacks"]) != len(self.callbacks):
            raise ValueError(
                f"Resume: expected the {len(state['callbacks'])} callbacks that {path} was made with, "
                f"received {len(self.callbacks)}; pass the same ones, or delete the folder to start over."
            )
        for variable, array in zip(variables, saved, strict=True):
            # NumPy's files know no bfloat16: such an array comes back as bytes of the right width.
            variable.assign(array.view(keras.ops.convert_to_numpy(variable).dtype))
        for index, (callback, progress) in enumerate(zip(self.callbacks, state["callbacks"], strict=True)):
            vars(callback).update(progress)
            prefix = f"callback/{index}/"
            for name in {key.split("/")[2] for key in arrays if key.startswith(prefix)}:
                setattr(callback, name, _numbered(arrays, f"{prefix}{name}/"))
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


def _progress(
    callback: keras.callbacks.Callback, fresh: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """What training changed in a callback: plain values, and lists of arrays (kept weights)."""
    numbers, array_lists = {}, {}
    for name, value in vars(callback).items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool | int | float | str) and value != fresh.get(name):
            numbers[name] = value
        elif isinstance(value, list) and value and all(isinstance(item, np.ndarray) for item in value):
            array_lists[name] = value
    return numbers, array_lists


def _numbered(arrays: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """The arrays prefix0, prefix1, ... in order."""
    return [arrays[f"{prefix}{i}"] for i in range(sum(name.startswith(prefix) for name in arrays))]
