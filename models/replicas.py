"""What training needs to know of tf.distribute: replicas, the sums over them, and their share of a batch.

Raw TensorFlow throughout, as tf.distribute needs it.
"""

from typing import Any

import keras
import tensorflow as tf


def sum_over_replicas(values: Any) -> Any:
    """Sums over all replicas; every replica must call it, and each gets the sums.

    Args:
        values: A nest of tensors of one replica.

    Returns:
        The nest of sums; the values themselves where there is one replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    flat = keras.tree.flatten(values)
    sums = [None] * len(flat)
    # One sum of one long vector: among processes, each sum costs as much as a small model's step.
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):
        numbers = [number for number, tensor in enumerate(flat) if tensor.dtype == dtype]
        vector = tf.concat([tf.reshape(flat[number], [-1]) for number in numbers], axis=0)
        vector = context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
        parts = tf.split(vector, [tf.size(flat[number]) for number in numbers], num=len(numbers))
        for number, part in zip(numbers, parts, strict=True):
            sums[number] = tf.reshape(part, tf.shape(flat[number]))
            sums[number].set_shape(flat[number].shape)
    return keras.tree.pack_sequence_as(values, sums)


def split_rows(values: Any, parts: int) -> list[Any]:
    """Splits a batch into equal parts; rows of zeros, which are padding, fill up the last ones.

    Args:
        values: A nest of tensors (B, ...) with None where there is nothing.
        parts: Number of parts.

    Returns:
        `parts` nests of tensors (ceil(B / parts), ...).
    """
    if parts == 1:
        return [values]
    stacked = stack_rows(values, parts)

    def part(index: int) -> Any:
        return keras.tree.map_structure(lambda x: None if x is None else x[index], stacked)

    return [part(index) for index in range(parts)]


def stack_rows(values: Any, parts: int) -> Any:
    """Like `split_rows`, with the parts along a new first axis: (B, ...) -> (parts, ceil(B / parts), ...)."""

    def stack(x: Any) -> Any:
        if x is None:
            return None
        x = tf.convert_to_tensor(x)  # `train_on_batch` passes arrays
        missing = -tf.shape(x)[0] % parts
        x = tf.pad(x, [(0, missing)] + [(0, 0)] * (x.shape.rank - 1))
        shape = tf.concat([[parts, tf.shape(x)[0] // parts], tf.shape(x)[1:]], axis=0)
        return tf.reshape(x, shape)  # (parts, B / parts, ...)

    return keras.tree.map_structure(stack, values)


def prepare_optimizer(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Makes an optimizer take gradients that are summed over the replicas already.

    Keras's own clips each replica's gradients and sums them then: that is another update than that of one
    device. `sum_over_replicas` first, then `optimizer.apply`, is the same.

    Raises:
        ValueError: If the optimizer was made outside the scope of the strategy, or does what Keras cannot do
            on several replicas.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    if not strategy.extended.variable_created_in_scope(inner.variables[0].value):
        raise ValueError(
            "compile: expected an optimizer made in the scope of the model's strategy, received one made "
            "outside; make it under `with strategy.scope():`"
        )
    for name, instead in (
        ("gradient_accumulation_steps", "compile(micro_batches=...)"),
        ("ema_overwrite_frequency", "None, with which `fit` ends with the averages"),
    ):
        if getattr(inner, name):
            raise ValueError(
                f"compile: expected an optimizer without {name} under a strategy with several replicas, "
                f"received {name}={getattr(inner, name)}; take {instead}"
            )
    inner._all_reduce_sum_gradients = list


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes take part in a training."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and (
        strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
    )
