"""A learned vector for each position."""

from typing import Any

import keras
from keras import ops

from attention_zoo.ops import positions


@keras.saving.register_keras_serializable(package="attention_zoo")
class LearnedPositionEmbedding(keras.layers.Layer):
    """Adds a learned row per position: `output[p] = inputs[p] + E[p]`, with E of shape (N, D).

    There are N rows and no more. A sequence that goes past them is refused where its length is known:
    at once if length and start are plain numbers, else, on TensorFlow, by an assertion when the graph
    runs. XLA drops assertions and other backends have none: there, positions outside the table give NaN
    rather than a repetition of its last row. `PositionalEncoding` has no such limit.

    Axis letters: B batch, L positions of the inputs, N positions of the table, D dim.

    Args:
        max_positions: N, the number of positions that have a row.
        initializer: Of the table. None draws from N(0, 1/2), the mean square of sines and cosines:
            embeddings of unit variance (`TokenEmbedding`) drown the deviation of 0.02 that is customary
            where they are as small themselves (a small Transformer had not learned to reverse 12 tokens
            in 800 steps, against 200 with this one).
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float (B, L, D).
        start: The first element's position, an int, an int scalar tensor, or ints (B,), one per row. A
            decoder that goes step by step passes one element and its position.

    Returns:
        Tensor of the inputs' shape, in the compute dtype.

    Raises:
        ValueError: If `max_positions` is not positive, the inputs' shape does not fit, or they go past
            the table.
        TypeError: If `start` is not an integer.
        tf.errors.InvalidArgumentError: If they go past the table and that shows only when the graph runs.

    Example:
        >>> import numpy as np
        >>> layer = LearnedPositionEmbedding(10, initializer="ones")
        >>> layer(np.zeros((1, 2, 3)), start=8).numpy().tolist()
        [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]

    Reference:
        Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", section 3.1.
    """

    def __init__(self, max_positions: int, initializer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_positions < 1:
            raise ValueError(
                f"LearnedPositionEmbedding: expected max_positions of at least 1, received {max_positions}."
            )
        if initializer is None:
            initializer = keras.initializers.RandomNormal(stddev=0.5**0.5)
        self.max_positions = max_positions
        self.initializer = keras.initializers.get(initializer)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the table E, (N, D)."""
        self._check(input_shape, 0)
        self.embeddings = self.add_weight(
            shape=(self.max_positions, input_shape[-1]), initializer=self.initializer, name="embeddings"
        )
        self.built = True

    def call(self, inputs: Any, start: Any = 0) -> Any:
        """Adds the rows; see the class."""
        self._check(inputs.shape, start)
        length = ops.shape(inputs)[1]
        if isinstance(length, int) and isinstance(start, int):
            rows = self.embeddings[start : start + length]  # (L, D)
        else:
            rows = self._look_up(positions.positions_from(start, length))  # ([B,] L, D)
        return ops.cast(inputs, self.compute_dtype) + ops.cast(rows, self.compute_dtype)

    def _look_up(self, position: Any) -> Any:
        """Rows of positions that are known at run time only, NaN outside the table."""
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            message = (
                f"LearnedPositionEmbedding: expected at most {self.max_positions} positions, from 0 to "
                f"{self.max_positions - 1}; shorten the inputs, or enlarge max_positions."
            )
            tf.debugging.assert_less(position, self.max_positions, message)
            tf.debugging.assert_greater_equal(position, 0, message)
        inside = ops.logical_and(position >= 0, position < self.max_positions)
        rows = ops.take(self.embeddings, ops.clip(position, 0, self.max_positions - 1), axis=0)
        return ops.where(ops.expand_dims(inside, -1), rows, float("nan"))

    def _check(self, shape: tuple[int | None, ...], start: Any) -> None:
        """Raises what is known to be wrong before the graph runs."""
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(
                "LearnedPositionEmbedding: expected inputs of shape (batch, positions, width) with a known "
                f"width, received {tuple(shape)}. Reshape them."
            )
        if not isinstance(start, int):
            return
        if start < 0:
            raise ValueError(f"LearnedPositionEmbedding: expected a start of at least 0, received {start}.")
        if shape[1] is not None and start + shape[1] > self.max_positions:
            raise ValueError(
                f"LearnedPositionEmbedding: expected at most {self.max_positions} positions, received "
                f"{start + shape[1]}; shorten the inputs, or enlarge max_positions."
            )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "max_positions": self.max_positions, "initializer": initializer}
