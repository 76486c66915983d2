"""Long short-term memory, one position."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_zoo")
class LSTMCell(keras.layers.Layer):
    """Long short-term memory over inputs that are already projected.

    With the four input parts made outside for every position in one product:

        i, f, o = sigmoid(x_i + U_i h), sigmoid(x_f + U_f h + 1), sigmoid(x_o + U_o h)
        c' = f * c + i * tanh(x_g + U_g h)
        h' = o * tanh(c')

    The 1 keeps the forget gate open at the start of training (Jozefowicz et al. 2015).

    Args:
        units: Width of the state and of the cell.

    Call arguments:
        inputs: (..., 4 * units), the projected inputs in the order i, f, o, g.
        state: tuple (hidden, cell), each (..., units).

    Returns:
        The new state, a tuple (hidden, cell).

    Raises:
        ValueError: If `units` is not positive.

    Example:
        >>> layer = LSTMCell(4)
        >>> hidden, cell = layer(ops.zeros((2, 16)), layer.zero_state((2,)))
        >>> hidden.shape
        TensorShape([2, 4])

    Reference:
        Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; forget gate of Gers et al. 2000.
    """

    state_parts = 2

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"LSTMCell: expected units of at least 1, received {units}")
        self.units = units
        self.input_units = 4 * units

    def build(self, inputs_shape: Any = None, state_shape: Any = None) -> None:
        """Creates the recurrent kernel (units, 4 * units)."""
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, 4 * self.units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.built = True

    def call(self, inputs: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Advances one position."""
        hidden, cell = state
        gates = inputs + ops.matmul(hidden, self.recurrent_kernel)  # (..., 4 * units)
        input_gate, forget_gate, output_gate, candidate = ops.split(gates, 4, axis=-1)
        cell = ops.sigmoid(forget_gate + 1) * cell + ops.sigmoid(input_gate) * ops.tanh(candidate)
        return ops.sigmoid(output_gate) * ops.tanh(cell), cell

    def zero_state(self, leading_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """A state of zeros, (hidden, cell), each (*leading_shape, units)."""
        zeros = ops.zeros((*leading_shape, self.units), self.compute_dtype)
        return zeros, zeros

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units}
