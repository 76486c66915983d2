"""A fully connected layer whose product is made where all others are."""

from typing import Any

import keras

from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by way of `ops.linear`, which decides how products are computed.

    Everything but that is Keras's: `output = activation(x W + b)`.

    Example:
        >>> Dense(3)(keras.ops.ones((2, 5, 4))).shape
        TensorShape([2, 5, 3])
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Applies the layer: (..., D) -> (..., units)."""
        x = linear(inputs, self.kernel, self.bias)
        return x if self.activation is None else self.activation(x)
