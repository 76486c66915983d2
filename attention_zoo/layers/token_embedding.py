"""Embeddings of tokens, as large at the start as what follows expects."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_zoo")
class TokenEmbedding(keras.layers.Layer):
    """Looks up one row per token and scales it: `output = sqrt(D) E[id]`, with E drawn from N(0, 1 / D).

    Without the scale it is `E[id]` with E drawn from N(0, 1). Either way the outputs start with variance 1,
    so that the layer above is not fed next to nothing until training has made the rows longer, which takes
    rare tokens long; with the scale, the same matrix can serve as the output projection, where rows of
    length 1 are right.

    Args:
        vocabulary_size: V, the number of token ids.
        units: D, the width of an embedding.
        scale: Whether to multiply by sqrt(D).

    Call arguments:
        ids: int, of any shape, from 0 to V - 1.

    Returns:
        Tensor of the ids' shape with D appended.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> TokenEmbedding(10, 4)(ops.array([[1, 2, 3]])).shape
        TensorShape([1, 3, 4])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.4.
    """

    def __init__(self, vocabulary_size: int, units: int, scale: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, size in (("vocabulary_size", vocabulary_size), ("units", units)):
            if size < 1:
                raise ValueError(f"TokenEmbedding: expected {name} of at least 1, received {size}")
        self.vocabulary_size = vocabulary_size
        self.units = units
        self.scale = scale

    def build(self, ids_shape: Any = None) -> None:
        """Creates the matrix E, (V, D)."""
        self.embeddings = self.add_weight(
            shape=(self.vocabulary_size, self.units),
            initializer=keras.initializers.RandomNormal(stddev=self.units**-0.5 if self.scale else 1.0),
            name="embeddings",
        )
        self.built = True

    def call(self, ids: Any) -> Any:
        """Looks up and scales."""
        rows = ops.take(self.embeddings, ids, axis=0)  # (..., D)
        rows = ops.cast(rows, self.compute_dtype)
        return rows * self.units**0.5 if self.scale else rows

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "units": self.units,
            "scale": self.scale,
        }
