"""Trainings that must come out the same on one device, on replicas and on workers.

Imported by test_distribution.py and test_workers.py, which runs it as a script in every worker.
"""

import functools
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import small_models
import tensorflow as tf

from attention_zoo.layers import AdditiveAttention
from attention_zoo.models import (
    Captioner,
    EncoderDecoder,
    ImageEncoder,
    RNNDecoder,
    RNNEncoder,
    TransformerDecoder,
    TransformerEncoder,
    WhitespaceTokenizer,
)
from attention_zoo.training import callbacks, strategies

V, T, STEPS = 11, 5, 20
WORDS = [f"w{number}" for number in range(V - 4)]


def make_recurrent(dropout=0.0):
    return EncoderDecoder(
        RNNEncoder(V, 5, 4, dropout=dropout), RNNDecoder(V, 5, 6, AdditiveAttention(4), dropout=dropout)
    )


def make_transformer():
    sizes = {"layers": 1, "units": 8, "num_heads": 2, "feed_forward_units": 12, "dropout": 0.0}
    return EncoderDecoder(
        TransformerEncoder(V, **sizes), TransformerDecoder(V, **sizes), share_embeddings=True
    )


def make_captioner():
    """With the penalty, which is a sum over images in a mean over tokens."""
    encoder = ImageEncoder("self_attention_cnn", image_size=8, widths=[4], attention_stages=1, units=5)
    decoder = RNNDecoder(V, 5, 6, AdditiveAttention(4))
    return Captioner(encoder, decoder, WhitespaceTokenizer(WORDS), doubly_stochastic=1.0)


MODELS = {"recurrent": make_recurrent, "transformer": make_transformer, "captioner": make_captioner}
WITH_XLA = ("transformer",)
# On workers, where all takes several times as long:
ON_WORKERS = ("recurrent", "transformer")
WITH_SHORT_BATCHES = ("recurrent",)


def make_batch(step, images=False, rows=7):
    """Rows of uneven length; in every third batch, the second half has none."""
    empty = rows - rows // 2 if step % 3 == 0 else 0
    inputs, labels = small_models.make_batch(rows, step, empty, length=T, vocabulary_size=V)
    if images:
        inputs["source"] = np.random.default_rng(step).integers(0, 256, (rows, 8, 8, 3)).astype("float32")
    return inputs, labels


def dataset(images=False, last=7):
    """20 batches, the last one of its own size."""
    rows = [*[7] * (STEPS - 1), last]
    ids = tf.TensorSpec((None, None), tf.int32)
    source = tf.TensorSpec((None, 8, 8, 3), tf.float32) if images else ids
    batches = tf.data.Dataset.from_generator(
        lambda: (make_batch(step, images, count) for step, count in enumerate(rows)),
        output_signature=({"source": source, "target": ids}, ids),
    )
    return batches.apply(tf.data.experimental.assert_cardinality(STEPS))


def train(
    name,
    strategy=None,
    *,
    epochs=1,
    callbacks=(),
    optimizer=None,
    model=None,
    xla=False,
    short=True,
    **arguments,
):
    """Returns the weights and the history; with `short` also of short batches, which XLA would compile."""
    strategy = strategy or strategies.strategy("one_device")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = (model or MODELS[name])()
        # A norm that every step exceeds: clipping a part of a sum is not clipping the sum. And an epsilon
        # that keeps Adam from blowing up the rounding errors of gradients that are 0, as of keys' biases.
        make = optimizer or (lambda: keras.optimizers.Adam(0.02, epsilon=1e-4, global_clipnorm=0.1))
        model.compile(make(), jit_compile=xla, **arguments)
    images = name == "captioner"
    history = model.fit(
        dataset(images, last=3 if short else 7),
        validation_data=dataset(images, last=4) if short else None,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
        shuffle=False,
    )
    return [np.array(weight) for weight in model.get_weights()], history.history


@functools.cache
def on_one_device(name, short=False):
    """The weights and the history that training on one device gives."""

    def make():
        model = MODELS[name]()
        model.build()  # else the first step is traced twice
        return model

    return train(name, short=short, model=make)


def assert_same(result, expected, tolerance=1e-5):
    for weight, other in zip(result[0], expected[0], strict=True):
        np.testing.assert_allclose(weight, other, atol=tolerance)
    assert set(result[1]) == set(expected[1])
    for name, values in result[1].items():
        np.testing.assert_allclose(values, expected[1][name], rtol=10 * tolerance)


class SignalItself(keras.callbacks.Callback):
    """Sends this process a signal after a number of optimizer steps, once: a file says that it is done."""

    def __init__(self, number, step, marker):
        super().__init__()
        self.number, self.step, self.marker = number, step, marker

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.number)


def train_with_backups(folder, strategy, sent=()):
    """Three epochs with dropout; worker 0 is the chief. What is in the folder is gone on with."""
    averaging = callbacks.CheckpointAveraging(last=2, folder=folder / "checkpoints")
    resume = callbacks.Resume(folder / "backup", every_steps=6)
    weights, history = train(
        "recurrent", strategy, epochs=3, callbacks=[*sent, averaging, resume], short=False,
        model=lambda: make_recurrent(dropout=0.3),
    )  # fmt: skip
    worker = int(not strategies.is_chief(strategy))
    np.savez(folder / f"end-{worker}.npz", *weights, np.array(history["loss"][-1]))


def work(folder, again):
    """What each of two workers does: all trainings, the last of which SIGTERM ends; and, again, that one."""
    strategy = strategies.strategy("auto")
    chief = strategies.is_chief(strategy)
    if not again:
        for name in ON_WORKERS:
            short = name in WITH_SHORT_BATCHES
            weights, history = train(name, strategy, xla=name in WITH_XLA, short=short)
            if chief:
                np.savez(folder / f"{name}.npz", *weights, np.array(history["loss"]))
        (folder / "uninterrupted").mkdir(exist_ok=True)
        train_with_backups(folder / "uninterrupted", strategy)
    # Each callback at its own step of three epochs, on the worker that is not the chief.
    signals = [] if chief else [(signal.SIGTERM, 7), (signal.SIGKILL, STEPS + 9)]
    sent = [SignalItself(number, step, folder / f"sent-{number}") for number, step in signals]
    (folder / "interrupted").mkdir(exist_ok=True)
    train_with_backups(folder / "interrupted", strategy, sent)


if __name__ == "__main__":
    work(pathlib.Path(sys.argv[1]), again=sys.argv[2] == "again")
