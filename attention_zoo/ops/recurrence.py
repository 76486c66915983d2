"""Recurrence over time: one loop for every recurrent encoder and decoder."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any,
    initial_state: Any,
    weights: Sequence[keras.Variable] = (),
) -> tuple[Any, Any]:
    """Applies `step` along the first axis, carrying a state.

    `state_t, output_t = step(state_{t-1}, inputs_t)` for t = 0 ... T-1.

    The step must draw no random numbers: make dropout masks before the loop and close over them.
    The loop is differentiable and compiles under XLA; T may be unknown when it is traced.

    Args:
        step: Function of (state, inputs of one position) that returns (state, outputs); the state
            keeps its structure, shapes and dtypes.
        inputs: Nest of tensors of shape (T, ...), T at least 1.
        initial_state: Nest of tensors.
        weights: Variables that the step reads. They are read once, before the loop; TensorFlow would keep
            a copy of the others for every position until the backward pass.

    Returns:
        The last state and the nest of outputs, stacked to (T, ...).

    Example:
        >>> last, sums = scan(lambda total, x: (total + x, total + x), ops.arange(4), ops.array(0))
        >>> ops.convert_to_numpy(sums)
        array([0, 1, 3, 6], dtype=int32)
    """
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_scan(step, inputs, initial_state, weights)
    return ops.scan(step, initial_state, inputs)


def _tensorflow_scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any,
    initial_state: Any,
    weights: Sequence[keras.Variable],
) -> tuple[Any, Any]:
    """The same with TensorArrays: `keras.ops.scan` does not compile under XLA when differentiated."""
    import tensorflow as tf

    flat_inputs = [ops.convert_to_tensor(x) for x in tf.nest.flatten(inputs)]
    length = ops.shape(flat_inputs[0])[0]
    sources = [
        tf.TensorArray(x.dtype, size=length, element_shape=x.shape[1:]).unstack(x) for x in flat_inputs
    ]

    def inputs_at(position: Any) -> Any:
        return tf.nest.pack_sequence_as(inputs, [source.read(position) for source in sources])

    # Tensors of TensorFlow: what Keras converts a variable to may be the variable.
    values = [(weight, tf.convert_to_tensor(weight)) for weight in weights]

    # Traced for the outputs' structure and shapes only; nothing depends on its values, so the graph
    # drops it again.
    _, first_outputs = step(initial_state, tf.nest.pack_sequence_as(inputs, [x[0] for x in flat_inputs]))
    sinks = [
        tf.TensorArray(x.dtype, size=length, element_shape=x.shape) for x in tf.nest.flatten(first_outputs)
    ]

    def body(position: Any, state: Any, sinks: list[Any]) -> tuple[Any, Any, list[Any]]:
        with keras.StatelessScope(state_mapping=values):
            state, outputs = step(state, inputs_at(position))
        written = [sink.write(position, x) for sink, x in zip(sinks, tf.nest.flatten(outputs), strict=True)]
        return position + 1, state, written

    _, state, sinks = tf.while_loop(
        lambda position, *_: position < length,
        body,
        (tf.constant(0), initial_state, sinks),
        maximum_iterations=length,
    )
    return state, tf.nest.pack_sequence_as(first_outputs, [sink.stack() for sink in sinks])
