"""Recurrent attention written with Keras: an attention cell in `keras.layers.RNN`, compiled with XLA.

For the recurrent size, a bidirectional GRU encoder and a GRU cell; for captions, an LSTM cell over a grid.
"""

from typing import Any

import keras
import sizes
from keras import ops
from peers import common, keras_training


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return keras_training.make_and_fit(make_model, task, clock)


def make_model(size: sizes.Size) -> keras.Model:
    """A functional model from (source, target) to logits."""
    captions = size.kind == "captioner"
    target = keras.Input((None,), dtype="int32")
    if captions:
        source = keras.Input(size.grid)
        memory = keras.layers.Reshape((-1, size.grid[-1]))(source)
        summary = keras.layers.GlobalAveragePooling1D()(memory)
        mask = None
    else:
        source = keras.Input((None,), dtype="int32")
        embedded = keras.layers.Embedding(size.vocabulary, size.embedding, mask_zero=True)(source)
        gru = keras.layers.GRU(size.units, return_sequences=True, return_state=True, use_cudnn=False)
        memory, *last = keras.layers.Bidirectional(gru)(embedded)
        summary = keras.layers.Concatenate()(last)
        mask = ops.not_equal(source, sizes.PAD_ID)
    return keras.Model((source, target), Decoder(size, captions)(target, memory, summary, mask))


class Decoder(keras.layers.Layer):
    """Teacher forcing with an attention cell; logits by the matrix of the embeddings."""

    def __init__(self, size: sizes.Size, captions: bool) -> None:
        super().__init__()
        self.embedding = keras.layers.Embedding(size.vocabulary, size.embedding)
        self.dropout = keras.layers.Dropout(size.dropout)
        self.cell = AttentionCell(size.units, captions)
        self.recurrent = keras.layers.RNN(self.cell, return_sequences=True)
        self.start = [keras.layers.Dense(size.units, "tanh") for _ in self.cell.state_size]
        self.readout = keras.layers.Dense(size.embedding, "tanh")
        self.readout_dropout = keras.layers.Dropout(size.dropout)
        self.bias = self.add_weight((size.vocabulary,), "zeros")

    def call(self, target: Any, memory: Any, summary: Any, mask: Any = None) -> Any:
        """(B, T), (B, S, D), (B, D), (B, S) -> (B, T, V)."""
        y = self.dropout(self.embedding(target))  # (B, T, E)
        self.cell.attend_to(memory, mask)
        hidden = self.recurrent(y, initial_state=[start(summary) for start in self.start])
        readout = self.readout_dropout(self.readout(ops.concatenate([hidden, y], axis=-1)))
        return ops.matmul(readout, ops.transpose(self.embedding.embeddings)) + self.bias


class AttentionCell(keras.layers.Layer):
    """A GRU or LSTM cell that reads a token and what additive attention finds in a memory."""

    def __init__(self, units: int, captions: bool) -> None:
        super().__init__()
        self.cell = keras.layers.LSTMCell(units) if captions else keras.layers.GRUCell(units)
        self.state_size = [units, units] if captions else [units]
        self.query = keras.layers.Dense(units, use_bias=False)
        self.key = keras.layers.Dense(units, use_bias=captions)
        self.score = keras.layers.Dense(1, use_bias=False)
        self.gate = keras.layers.Dense(1, "sigmoid") if captions else None

    def attend_to(self, memory: Any, mask: Any) -> None:
        """Sets the memory of the next call, with its keys."""
        self.memory, self.keys, self.mask = memory, self.key(memory), mask

    def call(self, token: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        """One position: state and context (B, U + D), and the new states."""
        query = self.query(states[0])  # (B, U)
        scores = self.score(ops.tanh(query[:, None] + self.keys))[..., 0]  # (B, S)
        if self.mask is not None:
            scores = ops.where(self.mask, scores, -1e9)
        context = ops.einsum("bs,bsd->bd", ops.softmax(scores), self.memory)
        if self.gate is not None:
            context = context * self.gate(states[0])
        _, states = self.cell(ops.concatenate([token, context], axis=-1), states)
        return ops.concatenate([states[0], context], axis=-1), states


if __name__ == "__main__":
    common.main(train)
