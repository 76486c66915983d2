"""Dropout whose random numbers cost next to nothing."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from attention_zoo.ops import random, seeds


@keras.saving.register_keras_serializable(package="attention_zoo")
class Dropout(keras.layers.Layer):
    """Sets a random part of the inputs to zero in training, like `keras.layers.Dropout`.

    `output = where(keep, inputs, 0) / (1 - rate)`, where each entry of `keep` is True with
    probability `1 - rate`. XLA's random generators take a large part of a training step on a CPU; here
    element i is kept if a hash of i and of the call's seed exceeds `rate`: a few integer operations
    that fuse with the product. Equal seeds give equal masks, compiled or not.

    Args:
        rate: Part of the inputs to drop, between 0 and 1.
        noise_shape: Shape of the mask, broadcast to the inputs: 1 on an axis drops along all of it at
            once, None stands for the size of the inputs.
        seed: Integer; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor of any shape.
        training: Whether to drop; otherwise the inputs are returned as they are.

    Returns:
        Tensor of the inputs' shape and dtype.

    Raises:
        ValueError: If `rate` is not between 0 and 1.

    Example:
        >>> layer = Dropout(0.5, seed=1)
        >>> sorted(set(layer(np.ones((4, 100)), training=True).numpy().ravel().tolist()))
        [0.0, 2.0]

    Reference:
        Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"Dropout: expected a rate between 0 and 1, received {rate}.")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed = seed
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.built = True  # there is nothing to build

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Drops a part of the inputs; see the class."""
        if not training or self.rate == 0:
            return inputs
        shape = ops.shape(inputs)
        if self.noise_shape is not None:
            sizes = zip(self.noise_shape, shape, strict=True)
            shape = [size if noise is None else noise for noise, size in sizes]
        # Scaled after the choice, so that the gradient ends with the choice. XLA on a CPU leaves the sum that
        # a bias before the dropout has for a gradient to a fast library, but not a sum of products.
        return ops.where(self._keep(shape), inputs, ops.zeros_like(inputs)) * self._scale

    def mask(self, shape: Sequence[Any], dtype: str | None = None) -> Any:
        """Draws a mask to multiply by: for a loop whose every step drops the same entries.

        Args:
            shape: Shape of the mask.
            dtype: Its dtype; defaults to the layer's compute dtype.

        Returns:
            Tensor of 0 and `1 / (1 - rate)`; ones if the rate is 0.
        """
        dtype = dtype or self.compute_dtype
        if self.rate == 0:
            return ops.ones(shape, dtype)
        return ops.cast(self._keep(shape), dtype) * self._scale

    def draw_seed(self) -> Any:
        """The seed of one mask, integer (2,): another one each time, and on each replica."""
        return seeds.replica_seed(seeds.next_seed(self.seed_generator))

    @property
    def _scale(self) -> float:
        return 1.0 / (1.0 - self.rate) if self.rate < 1 else 0.0

    def _keep(self, shape: Sequence[Any]) -> Any:
        """Draws which entries to keep: boolean, of the given shape."""
        size = functools.reduce(operator.mul, shape, 1)
        index = ops.cast(ops.arange(size, dtype="int32"), "uint32")
        if self.noise_shape is None or self.noise_shape[:1] != (1,):  # else all rows share theirs
            index = index + seeds.entries_before(size)
        return ops.reshape(random.keep_mask(self.rate, self.draw_seed(), index), shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}
