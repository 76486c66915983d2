"""Products with a weight matrix."""

from typing import Any

from keras import ops


def linear(x: Any, weight: Any) -> Any:
    """Applies a matrix to the last axis: `x W`, as one product of two matrices.

    A product of a tensor of higher rank with a matrix is slower under XLA on a CPU when it is made by
    einsum, and when it is made by `keras.ops.matmul` its gradient does not compile inside a loop of
    unknown batch size.

    Args:
        x: (B, T, D).
        weight: (D, U).

    Returns:
        (B, T, U).

    Example:
        >>> linear(ops.ones((1, 2, 3)), ops.ones((3, 4))).shape
        TensorShape([1, 2, 4])
    """
    batch, length, width = ops.shape(x)
    flat = ops.reshape(x, (-1, width))  # (B * T, D)
    return ops.reshape(ops.matmul(flat, weight), (batch, length, weight.shape[-1]))  # (B, T, U)
