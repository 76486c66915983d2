"""What the peers on Keras share: `fit` with a clock, and a loss over real tokens."""

from typing import Any

import keras
import numpy as np
import sizes
import tensorflow as tf
from peers import common


def fit(model: keras.Model, batch: Any, task: common.Task, clock: common.Clock) -> None:
    """Trains a compiled model on one batch, and tells the clock of every step."""
    data = tf.data.Dataset.from_tensors(batch).repeat(task.all_steps)
    ticks = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: clock.tick())
    model.fit(data, verbose=0, callbacks=[ticks])


def compile_and_fit(model: keras.Model, task: common.Task, clock: common.Clock) -> int:
    """Compiles a functional model of (source, target), trains it, and counts its parameters."""
    # Keras turns XLA off by itself where there is no GPU.
    model.compile(keras.optimizers.Adam(1e-3), masked_crossentropy, jit_compile=True)
    source, target, labels = (np.array(rows, "int32") for rows in task.training_batch())
    if task.size.kind == "captioner":
        source = random_features(task)
    fit(model, ((source, target), labels), task, clock)
    return model.count_params()


def masked_crossentropy(labels: Any, logits: Any) -> Any:
    """The mean over the real tokens."""
    losses = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)  # (B, T)
    real = keras.ops.cast(labels != sizes.PAD_ID, losses.dtype)
    return keras.ops.sum(losses * real) / keras.ops.sum(real)


def random_features(task: common.Task) -> np.ndarray:
    """What a network makes of a batch of images, (B, H, W, C)."""
    return np.random.default_rng(1).normal(size=(task.batch, *task.size.grid)).astype("float32")
