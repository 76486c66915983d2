"""The last product of a decoder: what it has read out, with the vector of every token."""

from typing import Any

from keras import ops

from attention_zoo.ops.linear import linear

# Where a search gains by vectors that stand in columns, measured on a CPU: with a few hypotheses in all, but
# not with one, and while the places of a column are not too far apart.
FEW_ROWS = range(2, 17)
MOST_WEIGHTS = 2**21


def in_columns(kernel: Any, dtype: str) -> Any:
    """The vectors of all tokens (V, D) in columns, (D, V): to be made once for all positions of a search.

    XLA multiplies a few rows by columns. Given the vectors in rows, it would turn the whole matrix round at
    every position, which takes as long as the product.

    Args:
        kernel: The vectors of all tokens.
        dtype: Of what they will be multiplied by.

    Returns:
        Float (D, V).
    """
    return ops.transpose(ops.cast(kernel, dtype))


def token_logits(x: Any, kernel: Any, columns: Any = None) -> Any:
    """How well each token fits.

    Args:
        x: Float (B, T, D).
        kernel: The vectors of all tokens, (V, D).
        columns: The same as `in_columns` returns them, or None.

    Returns:
        float32 (B, T, V).
    """
    batch, length, width = x.shape
    rows = batch * length if isinstance(batch, int) and isinstance(length, int) else 0
    few = rows in FEW_ROWS and kernel.shape[0] * width <= MOST_WEIGHTS
    if columns is None or not few:
        return ops.cast(linear(x, ops.cast(kernel, x.dtype), in_rows=True), "float32")
    return ops.cast(ops.matmul(x, columns), "float32")
