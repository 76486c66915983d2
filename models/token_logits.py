"""The last product of a decoder: what it has read out, with the vector of every token."""

from typing import Any

from keras import ops

from attention_zoo.ops.linear import linear, rounds_products

# Where a search gains by vectors that stand in columns, measured on a CPU: with a few hypotheses in all, but
# not with one.
FEW_ROWS = range(2, 17)
LARGEST_BLOCK = 2**21  # weights: in a larger matrix the numbers of a column are too far apart
BLOCK_WIDTH = 64  # columns of a block of a larger one: as many as XLA computes at once


def in_blocks(kernel: Any, dtype: str) -> Any:
    """The vectors of all tokens (V, D) in columns: to be made once for all positions of a search.

    XLA multiplies a few rows by columns. Given the vectors in rows, it would turn the whole matrix round at
    every position, which takes as long as the product.

    Args:
        kernel: The vectors of all tokens.
        dtype: Of what they will be multiplied by.

    Returns:
        Float (N, D, W): N blocks of W columns. A small matrix is one block; the last block of others may
        have columns of zeros at its end.
    """
    size, width = kernel.shape
    kernel = ops.cast(kernel, dtype)
    if size * width <= LARGEST_BLOCK:
        return ops.expand_dims(ops.transpose(kernel), 0)  # (1, D, V)
    kernel = ops.pad(kernel, ((0, -size % BLOCK_WIDTH), (0, 0)))
    return ops.swapaxes(ops.reshape(kernel, (-1, BLOCK_WIDTH, width)), 1, 2)  # (N, D, W)


def token_logits(x: Any, kernel: Any, blocks: Any = None) -> Any:
    """How well each token fits.

    Args:
        x: Float (B, T, D).
        kernel: The vectors of all tokens, (V, D).
        blocks: The same as `in_blocks` returns them, or None.

    Returns:
        float32 (B, T, V).
    """
    batch, length, width = x.shape
    rows = batch * length if isinstance(batch, int) and isinstance(length, int) else 0
    if blocks is None or rows not in FEW_ROWS or rounds_products():
        return ops.cast(linear(x, ops.cast(kernel, x.dtype), in_rows=True), "float32")
    count = blocks.shape[0]
    x = ops.broadcast_to(ops.reshape(x, (1, rows, width)), (count, rows, width))  # (N, B * T, D)
    logits = ops.transpose(ops.matmul(x, blocks), (1, 0, 2))  # (B * T, N, W)
    logits = ops.reshape(logits, (batch, length, -1))[..., : kernel.shape[0]]  # (B, T, V)
    return ops.cast(logits, "float32")
