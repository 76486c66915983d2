"""A Transformer of `keras.layers.MultiHeadAttention`, as tutorials write it, compiled with XLA."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import sizes
from keras import ops
from peers import common, epochs, keras_training


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return keras_training.make_and_fit(make_model, task, clock)


def epoch(task: common.Task, clock: epochs.EpochClock) -> tuple[int, Iterable]:
    """See `common`."""
    return keras_training.compile_and_fit_epoch(make_model(task.size), task, clock)


def make_model(size: sizes.Size) -> keras.Model:
    """A functional model from (source, target) to logits."""
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    embedding = PositionalEmbedding(size)
    dropout = lambda x: keras.layers.Dropout(size.dropout)(x)  # noqa: E731
    memory = dropout(embedding(source))
    for _ in range(size.layers):
        memory = _attend(size, memory, memory)
        memory = _transform(size, memory)
    x = dropout(embedding(target))
    for _ in range(size.layers):
        x = _attend(size, x, x, use_causal_mask=True)
        x = _attend(size, x, memory)
        x = _transform(size, x)
    return keras.Model((source, target), TiedOutput(embedding)(x))


def _attend(size: sizes.Size, x: Any, memory: Any, **options: Any) -> Any:
    attention = keras.layers.MultiHeadAttention(size.num_heads, size.units // size.num_heads)
    return _add(size, x, attention(x, memory, **options))


def _transform(size: sizes.Size, x: Any) -> Any:
    hidden = keras.layers.Dense(size.feed_forward_units, "relu")(x)
    return _add(size, x, keras.layers.Dense(size.units)(hidden))


def _add(size: sizes.Size, x: Any, added: Any) -> Any:
    added = keras.layers.Dropout(size.dropout)(added)
    return keras.layers.LayerNormalization(epsilon=1e-5)(keras.layers.Add()([x, added]))


class PositionalEmbedding(keras.layers.Layer):
    """Looks up tokens, scales them and adds sinusoids; the mask of padding goes on with them."""

    def __init__(self, size: sizes.Size) -> None:
        super().__init__()
        self.units = size.units
        self.embedding = keras.layers.Embedding(size.vocabulary, size.units, mask_zero=True)
        angles = np.arange(2048)[:, None] / 10000 ** (np.arange(0, size.units, 2) / size.units)
        self.positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype("float32")

    def call(self, ids: Any) -> Any:
        """(B, T) -> (B, T, D)."""
        positions = ops.convert_to_tensor(self.positions, self.compute_dtype)[: ops.shape(ids)[1]]
        return self.embedding(ids) * self.units**0.5 + positions

    def compute_mask(self, ids: Any, previous_mask: Any = None) -> Any:
        """True at real tokens."""
        return self.embedding.compute_mask(ids)


class TiedOutput(keras.layers.Layer):
    """Logits by the matrix of the embeddings."""

    def __init__(self, embedding: PositionalEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.supports_masking = True

    def call(self, x: Any) -> Any:
        """(B, T, D) -> (B, T, V)."""
        return ops.matmul(x, ops.transpose(self.embedding.embedding.embeddings))


if __name__ == "__main__":
    common.main(train, epoch=epoch)
