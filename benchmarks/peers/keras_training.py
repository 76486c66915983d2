"""What the peers on Keras share: `fit` with a clock, an epoch's pipeline, and a loss over real tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import epoch_data
import keras
import numpy as np
import sizes
import tensorflow as tf
from peers import common, device, epochs

MULTIPLE = 8  # of which the length is that all texts of an epoch are padded to


def fit(model: keras.Model, batch: Any, task: common.Task, clock: common.Clock) -> None:
    """Trains a compiled model on one batch, and tells the clock of every step."""
    fit_dataset(model, tf.data.Dataset.from_tensors(batch).repeat(task.all_steps), clock)


def fit_dataset(model: keras.Model, data: tf.data.Dataset, clock: common.Clock | epochs.EpochClock) -> None:
    """Trains a compiled model on batches, once, and tells the clock of every step."""
    device.require_tensorflow_gpu()

    def end_step(step: int, logs: dict[str, Any]) -> None:
        float(logs["loss"])  # waits for it: a GPU runs behind the program
        clock.tick()

    ticks = keras.callbacks.LambdaCallback(on_train_batch_end=end_step)
    model.fit(data, verbose=0, callbacks=[ticks])


def make_and_fit(
    make_model: Callable[[sizes.Size], keras.Model], task: common.Task, clock: common.Clock
) -> int:
    """Makes and compiles a functional model of (source, target), trains it, and counts its parameters."""
    if device.BFLOAT16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model(task.size)
    _compile(model)
    source, target, labels = (np.array(rows, "int32") for rows in task.training_batch())
    if task.size.kind == "captioner":
        source = random_features(task)
    fit(model, ((source, target), labels), task, clock)
    return model.count_params()


def compile_and_fit_epoch(
    model: keras.Model, task: common.Task, clock: epochs.EpochClock
) -> tuple[int, Iterator]:
    """Compiles a functional model of (source, target), and trains it for an epoch as Keras's tutorials do.

    All texts are padded to one length, the longest one rounded up. An incomplete last batch is left out: it
    would be a second shape, and compiled for itself.

    Returns the number of parameters and the batches.
    """
    sources, targets = epoch_data.read_ids(task.data)
    longest = max(max(map(len, sources)), max(map(len, targets)) - 1)  # a target has START besides
    length = -(-longest // MULTIPLE) * MULTIPLE
    source = keras.utils.pad_sequences(sources, length, padding="post")  # (pairs, S)
    target = keras.utils.pad_sequences(targets, length + 1, padding="post")  # (pairs, T + 1)
    data = tf.data.Dataset.from_tensor_slices(((source, target[:, :-1]), target[:, 1:]))
    data = data.shuffle(len(source)).batch(task.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    _compile(model)
    clock.ready()
    fit_dataset(model, data, clock)
    return model.count_params(), ((inputs[0], labels) for inputs, labels in data.as_numpy_iterator())


def _compile(model: keras.Model) -> None:
    # Keras turns XLA off by itself where there is no GPU.
    model.compile(keras.optimizers.Adam(1e-3), masked_crossentropy, jit_compile=True)


def masked_crossentropy(labels: Any, logits: Any) -> Any:
    """The mean over the real tokens."""
    losses = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)  # (B, T)
    real = keras.ops.cast(labels != sizes.PAD_ID, losses.dtype)
    return keras.ops.sum(losses * real) / keras.ops.sum(real)


def random_features(task: common.Task) -> np.ndarray:
    """What a network makes of a batch of images, (B, H, W, C)."""
    return np.random.default_rng(1).normal(size=(task.batch, *task.size.grid)).astype("float32")
