"""The average of the last checkpoints of a training."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from attention_zoo.training.callbacks.resume import load_arrays, save_arrays
from attention_zoo.training.strategies import broadcast, is_chief


def average_weights(checkpoints: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Averages the weights of several checkpoints of one model.

    Float weights become their mean, summed in float64; others (counters) are taken from the last one.

    Args:
        checkpoints: What `model.get_weights()` returned at several moments, oldest first.

    Returns:
        One list of weights, for `model.set_weights`.

    Raises:
        ValueError: If there are no checkpoints, or their shapes differ.

    Example:
        >>> average_weights([[np.array([1.0, 4.0])], [np.array([3.0, 0.0])]])
        [array([2., 2.])]
    """
    if not checkpoints:
        raise ValueError("average_weights: expected at least one checkpoint, received none.")
    last = checkpoints[-1]
    shapes = [weight.shape for weight in last]
    for number, checkpoint in enumerate(checkpoints):
        if [weight.shape for weight in checkpoint] != shapes:
            raise ValueError(
                f"average_weights: expected checkpoints of one model, received other shapes in "
                f"number {number} than in the last; average the checkpoints of one training only."
            )
    sums = [weight.astype("float64") for weight in checkpoints[0]]
    for checkpoint in checkpoints[1:]:
        for total, weight in zip(sums, checkpoint, strict=True):
            total += weight
    return [
        (total / len(checkpoints)).astype(weight.dtype)
        if np.issubdtype(weight.dtype, np.floating)
        else weight
        for total, weight in zip(sums, last, strict=True)
    ]


class CheckpointAveraging(keras.callbacks.Callback):
    """Gives the model, when training ends, the average of its last weights.

    The average lies nearer to the middle of the region that the last steps wander about in, and
    usually translates better than the last weights. With several workers the chief keeps the checkpoints,
    and all get the average. The checkpoints are plain .npz files, the arrays in the order of
    `model.weights`; they survive an interruption, so that `Resume` goes on exactly.

    Put it before `Resume`, and after callbacks that change the weights when training ends.

    Args:
        last: How many checkpoints are kept and averaged.
        folder: Where they are; made if it does not exist. Checkpoints in it of another training are removed.
        every_steps: Optimizer steps between checkpoints; None makes one at the end of every epoch.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     averaging = CheckpointAveraging(last=2, folder=folder)
        ...     model.fit(np.zeros([4, 2]), np.ones([4, 1]), epochs=3, verbose=0, callbacks=[averaging]).epoch
        [0, 1, 2]

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 6.1.
    """

    def __init__(
        self, last: int = 10, *, folder: str | os.PathLike[str], every_steps: int | None = None
    ) -> None:
        super().__init__()
        for name, number in (("last", last), ("every_steps", every_steps)):
            if number is not None and number < 1:
                raise ValueError(f"CheckpointAveraging: expected {name} of at least 1, received {number}.")
        self.last = last
        self.folder = pathlib.Path(folder)
        self.every_steps = every_steps
        self._step: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets the last training."""
        self._step = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Removes what is not of this training."""
        # Not in on_train_begin: `Resume` comes later in the list, and sets the step we go on from.
        if self._step is None:
            self._step = self._steps_done()
            for path in self._checkpoints() if is_chief(self.model.distribute_strategy) else ():
                if int(path.stem.removeprefix("step-")) > self._step:
                    path.unlink()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Makes a checkpoint every so many steps."""
        if self.every_steps is None:
            return
        before, self._step = self._step, self._steps_done()
        # Not `% == 0`: with steps_per_execution we see every n-th step only.
        if self._step // self.every_steps > before // self.every_steps:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Makes a checkpoint."""
        if self.every_steps is None:
            self._save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the model the average."""
        strategy, average = self.model.distribute_strategy, []
        if is_chief(strategy) and (paths := self._checkpoints()):
            average = average_weights([list(load_arrays(path).values()) for path in paths])
        average = broadcast(strategy, {str(index): weight for index, weight in enumerate(average)})
        if average:
            self.model.set_weights(list(average.values()))

    def _steps_done(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _checkpoints(self) -> list[pathlib.Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.npz"))

    def _save(self) -> None:
        if not is_chief(self.model.distribute_strategy):
            return
        arrays = {}
        for index, variable in enumerate(self.model.weights):
            value = variable.numpy()
            # NumPy's files know no bfloat16.
            arrays[str(index)] = (
                value.astype("float32") if keras.backend.is_float_dtype(variable.dtype) else value
            )
        save_arrays(self.folder / f"step-{self._steps_done():09d}.npz", arrays)
        for path in self._checkpoints()[: -self.last]:
            path.unlink()
