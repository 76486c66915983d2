"""One recurrent layer, forward or in both directions."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dense import Dense
from attention_zoo.layers.recurrent_cell import recurrent_cell
from attention_zoo.ops.recurrence import scan


@keras.saving.register_keras_serializable(package="attention_zoo")
class Recurrent(keras.layers.Layer):
    """Runs a GRU or LSTM over a sequence, both directions in the same loop.

    The input projection of every position is one product before the loop. At masked positions the
    state is carried over unchanged and the output is zero, so padding never reaches a state: the
    backward direction starts at the last real position.

    Args:
        units: Width of each direction's state.
        cell: "gru" or "lstm".
        bidirectional: Whether the sequence is also read backwards.

    Call arguments:
        inputs: (B, S, D).
        mask: bool (B, S), True at real positions, or None.

    Returns:
        The outputs (B, S, units), forward then backward concatenated (B, S, 2 * units) if
        bidirectional, and the last hidden state of each direction, concatenated alike (B, ...).

    Raises:
        ValueError: If `cell` is unknown, or `units` is not positive.

    Example:
        >>> outputs, last = Recurrent(8)(ops.ones((2, 5, 3)))
        >>> outputs.shape, last.shape
        (TensorShape([2, 5, 16]), TensorShape([2, 16]))

    Reference:
        Schuster and Paliwal 1997, "Bidirectional Recurrent Neural Networks".
    """

    def __init__(self, units: int, cell: str = "gru", bidirectional: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.cell = cell
        self.bidirectional = bidirectional
        self.supports_masking = True
        self.directions = ["forward", "backward"] if bidirectional else ["forward"]
        self.cells = [
            recurrent_cell(cell, units, name=f"{direction}_cell", dtype=self.dtype_policy)
            for direction in self.directions
        ]
        self.projections = [
            Dense(cell.input_units, name=f"{direction}_input", dtype=self.dtype_policy)
            for direction, cell in zip(self.directions, self.cells, strict=True)
        ]

    def build(self, inputs_shape: Any) -> None:
        """Creates the weights of every direction."""
        for projection, cell in zip(self.projections, self.cells, strict=True):
            projection.build(inputs_shape)
            cell.build()
        self.built = True

    def call(self, inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """Reads the sequence."""
        if mask is None:
            mask = ops.ones(ops.shape(inputs)[:2], "bool")
        # As integers, because oneDNN complains in the log about transposing booleans.
        live = ops.cast(ops.transpose(ops.cast(mask, "int32")), "bool")  # (S, B)
        live = ops.expand_dims(live, -1)  # (S, B, 1)
        gates = [
            (ops.transpose(projection(inputs), (1, 0, 2)), live)  # (S, B, gates), (S, B, 1)
            for projection in self.projections
        ]
        if self.bidirectional:
            gates[1] = tuple(ops.flip(x, axis=0) for x in gates[1])

        batch = ops.shape(inputs)[0]
        states = [cell.zero_state((batch,)) for cell in self.cells]
        weights = [weight for cell in self.cells for weight in cell.weights]
        last_states, outputs = scan(self._step, gates, states, weights)
        if self.bidirectional:
            outputs[1] = ops.flip(outputs[1], axis=0)
        outputs = ops.transpose(ops.concatenate(outputs, axis=-1), (1, 0, 2))  # (B, S, D)
        # A masked position repeats its neighbour's state; zero it, so that nothing can read it.
        outputs *= ops.cast(ops.expand_dims(mask, -1), outputs.dtype)
        return outputs, ops.concatenate([state[0] for state in last_states], axis=-1)  # (B, D)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> tuple[Any, None]:
        """The outputs keep the mask of the inputs; the last states have none."""
        return previous_mask, None

    def _step(self, states: list, inputs: list) -> tuple[list, list]:
        new_states = []
        for cell, state, (gates, is_real) in zip(self.cells, states, inputs, strict=True):
            advanced = cell(gates, state)
            new_states.append(
                tuple(ops.where(is_real, new, old) for new, old in zip(advanced, state, strict=True))
            )
        return new_states, [state[0] for state in new_states]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "units": self.units,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
        }
