"""Recurrent encoder: token ids to one annotation per source position."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dropout import Dropout
from attention_zoo.layers.recurrent import Recurrent
from attention_zoo.layers.token_embedding import TokenEmbedding
from attention_zoo.ops.masks import padding_mask


@keras.saving.register_keras_serializable(package="attention_zoo")
class RNNEncoder(keras.layers.Layer):
    """Reads a sentence with GRUs or LSTMs, in one or both directions.

    Position j of the memory is the annotation h_j = [forward h_j; backward h_j] of the last layer.
    Padding never reaches a state: at padded positions the state is carried over unchanged, so the
    backward direction starts at the last real token.

    Args:
        vocabulary_size: Number of token ids.
        embedding_dim: Width of the token embeddings.
        units: Width of each direction's state.
        layers: Number of recurrent layers.
        cell: "gru" or "lstm".
        bidirectional: Whether every layer also reads backwards.
        dropout: Rate on the embeddings, between layers and on the annotations.

    Call arguments:
        ids: int (B, S), padded with 0.
        training: Whether dropout is active.

    Returns:
        The memory, a dict of "values": (B, S, D), "mask": bool (B, S), True at real tokens, and
        "summary": (B, D), the last state of each direction; D is units, doubled if bidirectional.

    Raises:
        ValueError: If `cell` is unknown, or a size is not positive.

    Example:
        >>> encoder = RNNEncoder(vocabulary_size=100, embedding_dim=8, units=16)
        >>> memory = encoder(keras.ops.array([[5, 6, 2, 0]]))
        >>> memory["values"].shape
        TensorShape([1, 4, 32])

    Reference:
        Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align and
        Translate", section 3.2; Cho et al. 2014 for the plain recurrent encoder.
    """

    has_attention = False
    max_positions = None  # a sentence may be of any length

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 256,
        units: int = 256,
        layers: int = 1,
        cell: str = "gru",
        bidirectional: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {
            "vocabulary_size": vocabulary_size,
            "embedding_dim": embedding_dim,
            "units": units,
            "layers": layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"RNNEncoder: expected {name} of at least 1, received {size}")
        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        self.units = units
        self.layers = layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout
        # === Layers ===
        self.embedding = None  # made by `build`, unless another layer's is shared
        self.recurrent = [
            Recurrent(units, cell, bidirectional, name=f"recurrent_{index}", dtype=self.dtype_policy)
            for index in range(layers)
        ]
        self.dropouts = [
            Dropout(dropout, name=f"dropout_{index}", dtype=self.dtype_policy) for index in range(layers)
        ]
        self.output_dropout = Dropout(dropout, name="output_dropout", dtype=self.dtype_policy)

    @property
    def output_dim(self) -> int:
        """Width of the memory's values and of its summary."""
        return self.units * (2 if self.bidirectional else 1)

    def make_embedding(self) -> TokenEmbedding:
        """The layer that looks up tokens."""
        return TokenEmbedding(
            self.vocabulary_size, self.embedding_dim, name="embedding", dtype=self.dtype_policy
        )

    def build(self, ids_shape: Any = None) -> None:
        """Creates every weight; the shape of the ids does not matter."""
        if self.embedding is None:
            self.embedding = self.make_embedding()
        if not self.embedding.built:
            self.embedding.build(ids_shape)
        width = self.embedding_dim
        for recurrent in self.recurrent:
            recurrent.build((None, None, width))
            width = self.output_dim
        self.built = True

    def call(self, ids: Any, training: bool | None = None) -> dict[str, Any]:
        """Encodes a batch of sentences."""
        mask = padding_mask(ids)  # (B, S)
        # A shared embedding may have another policy.
        values = ops.cast(self.embedding(ids), self.compute_dtype)  # (B, S, E)
        for recurrent, dropout in zip(self.recurrent, self.dropouts, strict=True):
            values = dropout(values, training=training)
            values, summary = recurrent(values, mask=mask)  # (B, S, D), (B, D)
        values = self.output_dropout(values, training=training)
        return {"values": values, "mask": mask, "summary": summary}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "units": self.units,
            "layers": self.layers,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
        }
