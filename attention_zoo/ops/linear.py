"""Products with a weight matrix."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

_scope = threading.local()


def linear(x: Any, weight: Any, bias: Any = None, in_rows: bool = False) -> Any:
    """Applies a matrix to the last axis, `x W + b`, as one product of two matrices.

    A product of a tensor of higher rank with a matrix is slower under XLA on a CPU when it is made by
    einsum, and when it is made by `keras.ops.matmul` its gradient does not compile inside a loop of
    unknown batch size.

    Args:
        x: (..., D).
        weight: (D, U); with `in_rows` (U, D), for `x W' + b`.
        bias: (U,), or None for zeros.
        in_rows: Whether what belongs to each output stands in a row of the matrix.

    Returns:
        (..., U).

    Example:
        >>> linear(ops.ones((1, 2, 3)), ops.ones((3, 4))).shape
        TensorShape([1, 2, 4])
    """
    *axes, width = ops.shape(x)
    flat = ops.reshape(x, (-1, width))  # (N, D)
    if _rounds(flat, weight):
        product = _bfloat16_product(flat, weight, bias, in_rows)
    else:
        product = _product_with_rows(flat, weight) if in_rows else ops.matmul(flat, weight)
        product = product if bias is None else product + bias
    return ops.reshape(product, (*axes, weight.shape[0 if in_rows else 1]))  # (..., U)


@contextlib.contextmanager
def bfloat16_products(active: bool = True) -> Iterator[None]:
    """A scope in which `linear` rounds to bfloat16 what it multiplies, and adds up in float32.

    The result keeps its dtype. Gradients are such products too. CPUs with instructions for it multiply twice
    as fast. For TensorFlow functions that XLA compiles only, as TensorFlow itself has no such product; what
    runs eagerly is not rounded. And XLA's fails, with "Unsupported element type", if `x` or the result is
    transposed as it is, a matrix, right before or after.

    Args:
        active: False changes nothing.

    Example:
        >>> import tensorflow as tf
        >>> @tf.function(jit_compile=True)
        ... def multiply(x, weight):
        ...     with bfloat16_products():
        ...         return linear(x, weight)
        >>> multiply(tf.constant([[1 + 2**-10, 1.0]]), tf.constant([[1.0], [2**-10]])).numpy().tolist()
        [[1.0009765625]]
    """
    before = getattr(_scope, "active", False)
    _scope.active = active or before
    try:
        yield
    finally:
        _scope.active = before


def rounds_products() -> bool:
    """Whether this is within the scope of `bfloat16_products`, and in a function, which XLA may compile."""
    if not getattr(_scope, "active", False):
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def _rounds(x: Any, weight: Any) -> bool:
    """Whether the scope covers this product; one in float16 has been rounded already."""
    return rounds_products() and all(
        keras.backend.standardize_dtype(value.dtype) in ("float32", "bfloat16") for value in (x, weight)
    )


def _product_with_rows(x: Any, weight: Any) -> Any:
    """`x W'`, (N, D) and (U, D) -> (N, U)."""
    # XLA multiplies a single row faster in this way.
    if x.shape[0] == 1 or keras.backend.backend() != "tensorflow":
        return ops.matmul(x, ops.transpose(weight))
    import tensorflow as tf

    # Its gradient for the weights comes out in rows, too. That for a transposed matrix XLA would compute in
    # columns, which takes a quarter longer, and turn round.
    return tf.matmul(x, ops.convert_to_tensor(weight), transpose_b=True)


def _bfloat16_product(x: Any, weight: Any, bias: Any, in_rows: bool) -> Any:
    """`x W + b` or `x W' + b` of rounded x and W; (N, D), (D, U) or (U, D), and (U,) -> (N, U)."""
    import tensorflow as tf

    def multiply(x: Any, weight: Any, in_rows: bool) -> Any:
        rounded, weight = tf.cast(x, tf.bfloat16), tf.cast(weight, tf.bfloat16)
        return tf.cast(tf.matmul(rounded, weight, transpose_b=in_rows, output_type=tf.float32), x.dtype)

    @tf.custom_gradient
    def differentiable(x: Any, weight: Any, *bias: Any) -> tuple[Any, Any]:
        def gradient(upstream: Any) -> tuple[Any, ...]:
            left, right = (upstream, x) if in_rows else (x, upstream)
            for_weight = tf.cast(_bfloat16_product_of_columns(left, right), weight.dtype)
            for_bias = [_column_sums(upstream)] if bias else []
            return multiply(upstream, weight, not in_rows), for_weight, *for_bias

        product = multiply(x, weight, in_rows)
        return (product + bias[0] if bias else product), gradient

    return differentiable(*(tf.convert_to_tensor(value) for value in (x, weight, bias) if value is not None))


def _column_sums(x: Any) -> Any:
    """(N, U) -> (U,), of rounded numbers: XLA is slow to add up columns of what it has just joined."""
    import tensorflow as tf

    ones = tf.ones((8, tf.shape(x)[0]), tf.bfloat16)  # as many as XLA computes at once
    return tf.cast(tf.matmul(ones, tf.cast(x, tf.bfloat16), output_type=tf.float32)[0], x.dtype)


def _bfloat16_product_of_columns(left: Any, right: Any) -> Any:
    """`left' right` of rounded numbers, (N, K) and (N, M) -> float32 (K, M).

    XLA has no fast bfloat16 product whose left operand is transposed, and takes a transposed matrix for such
    a product. But not if it is transposed as pairs of numbers, which also takes half the time.
    """
    import tensorflow as tf

    odd = tf.shape(left)[0] % 2  # a row of zeros makes it even
    left, right = (tf.pad(tf.cast(x, tf.bfloat16), [(0, odd), (0, 0)]) for x in (left, right))
    (_, k), (_, m) = left.shape, right.shape
    if k <= m or k % 2:
        return tf.matmul(_transposed_bfloat16(left), right, output_type=tf.float32)
    # The narrower matrix is the one to transpose; then the result has to be transposed, in pairs again.
    product = tf.matmul(_transposed_bfloat16(right), left, output_type=tf.float32)  # (M, K)
    pairs = tf.transpose(tf.bitcast(tf.reshape(product, (m, k // 2, 2)), tf.int64))  # (K / 2, M)
    return tf.reshape(tf.transpose(tf.bitcast(pairs, tf.float32), (0, 2, 1)), (k, m))


def _transposed_bfloat16(x: Any) -> Any:
    """(N, W) -> (W, N) for an even N, by transposing pairs of rows."""
    import tensorflow as tf

    width = x.shape[1]
    pairs = tf.transpose(tf.reshape(x, (-1, 2, width)), (0, 2, 1))  # (N / 2, W, 2)
    pairs = tf.transpose(tf.bitcast(pairs, tf.int32))  # (W, N / 2)
    return tf.reshape(tf.bitcast(pairs, tf.bfloat16), (width, -1))  # (W, N)
