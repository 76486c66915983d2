"""The position-wise part of a Transformer block."""

from typing import Any

import keras

from attention_zoo.layers.dense import Dense
from attention_zoo.layers.dropout import Dropout


@keras.saving.register_keras_serializable(package="attention_zoo")
class FeedForward(keras.layers.Layer):
    """Two products with an activation between them, at every position alike.

        output = dropout(activation(x W_1 + b_1)) W_2 + b_2

    Args:
        units: Width of the hidden layer, of W_1.
        activation: "relu", "gelu", "swish" or another of Keras.
        dropout: Part of the hidden layer to drop in training.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        x: Float (B, T, D).
        training: Whether dropout is active.

    Returns:
        Float (B, T, D).

    Raises:
        ValueError: If `units` is not positive, or the activation unknown.

    Example:
        >>> FeedForward(units=32)(keras.ops.ones((2, 3, 8))).shape
        TensorShape([2, 3, 8])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.3.
    """

    def __init__(self, units: int, activation: Any = "relu", dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"FeedForward: expected units of at least 1, received {units}")
        self.units = units
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.supports_masking = True
        self.hidden = Dense(units, activation=self.activation, name="hidden", dtype=self.dtype_policy)
        self.hidden_dropout = Dropout(dropout, name="hidden_dropout", dtype=self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for inputs of this width."""
        self.output_layer = Dense(input_shape[-1], name="output_layer", dtype=self.dtype_policy)
        self.hidden.build(input_shape)
        self.output_layer.build((*input_shape[:-1], self.units))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Applies both products; see the class."""
        return self.output_layer(self.hidden_dropout(self.hidden(x), training=training))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
        }
