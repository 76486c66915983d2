"""Gated recurrent unit, one position."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_zoo")
class GRUCell(keras.layers.Layer):
    """Gated recurrent unit over inputs that are already projected.

    With x = W y + b, the three input parts x_z, x_r, x_n made outside for every position in one
    product, and the reset gate applied after the recurrent product (the form cuDNN and Keras use):

        z = sigmoid(x_z + U_z h)
        r = sigmoid(x_r + U_r h)
        n = tanh(x_n + r * (U_n h + b_n))
        h' = z * h + (1 - z) * n

    Args:
        units: Width of the state.

    Call arguments:
        inputs: (..., 3 * units), the projected inputs in the order z, r, n.
        state: tuple of one tensor (..., units).

    Returns:
        The new state, a tuple of one tensor (..., units).

    Raises:
        ValueError: If `units` is not positive.

    Example:
        >>> cell = GRUCell(4)
        >>> (hidden,) = cell(ops.zeros((2, 12)), cell.zero_state((2,)))
        >>> hidden.shape
        TensorShape([2, 4])

    Reference:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", section 2.3.
    """

    state_parts = 1

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"GRUCell: expected units of at least 1, received {units}")
        self.units = units
        self.input_units = 3 * units

    def build(self, inputs_shape: Any = None, state_shape: Any = None) -> None:
        """Creates the recurrent kernel (units, 3 * units) and the candidate's bias (units,)."""
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, 3 * self.units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.candidate_bias = self.add_weight(shape=(self.units,), initializer="zeros", name="candidate_bias")
        self.built = True

    def call(self, inputs: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Advances one position."""
        (hidden,) = state
        recurrent = ops.matmul(hidden, self.recurrent_kernel)  # (..., 3 * units)
        input_gates, input_candidate = ops.split(inputs, [2 * self.units], axis=-1)
        hidden_gates, hidden_candidate = ops.split(recurrent, [2 * self.units], axis=-1)
        update, reset = ops.split(ops.sigmoid(input_gates + hidden_gates), 2, axis=-1)
        candidate = ops.tanh(input_candidate + reset * (hidden_candidate + self.candidate_bias))
        return (candidate + update * (hidden - candidate),)

    def zero_state(self, leading_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """A state of zeros (*leading_shape, units)."""
        return (ops.zeros((*leading_shape, self.units), self.compute_dtype),)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units}
