"""The last product of a decoder: what it has read out, with the vector of every token."""

from typing import Any

from keras import ops

from attention_zoo.ops.linear import linear, rounds_products

# Where a search gains by vectors that stand in columns, measured on a CPU: with a few hypotheses in all, but
# not with one.
FEW_ROWS = range(2, 17)
BLOCK_WIDTH = 64  # columns: as many as XLA computes at once


def in_blocks(kernel: Any, dtype: str) -> Any:
    """The vectors of all tokens (V, D) in columns: to be made once for all positions of a search.

    XLA multiplies a few rows by columns. Given the vectors in rows, it would turn the whole matrix round at
    every position, which takes as long as the product. And the numbers of a column of the whole matrix would
    be far apart, which the caches of a processor do not foresee; in a block they are near each other.

    Args:
        kernel: The vectors of all tokens.
        dtype: Of what they will be multiplied by.

    Returns:
        Float (N, D * W): N blocks of W columns, each (D, W) in one row. The last block may have columns of
        zeros at its end.
    """
    size, width = kernel.shape
    kernel = ops.cast(kernel, dtype)
    if size % BLOCK_WIDTH:
        kernel = ops.pad(kernel, ((0, -size % BLOCK_WIDTH), (0, 0)))
    blocks = ops.swapaxes(ops.reshape(kernel, (-1, BLOCK_WIDTH, width)), 1, 2)  # (N, D, W)
    # Each block in one row, as XLA would copy a bare transposition twice to carry it through a loop.
    return ops.reshape(blocks, (-1, width * BLOCK_WIDTH))


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
    blocks = ops.reshape(blocks, (count, width, BLOCK_WIDTH))  # (N, D, W)
    x = ops.broadcast_to(ops.reshape(x, (1, rows, width)), (count, rows, width))  # (N, B * T, D)

    # The product has the blocks first, and turning it round is cheap: XLA would leave that to each kernel
    # that reads the logits, which then takes two to three times as long. What comes out of a loop, though, is
    # written down in its order. One round is enough, but if it were a constant, XLA would drop the loop.
    rounds = 1 + ops.cast(ops.isnan(x[0, 0, 0]), "int32")

    def multiply(done: Any, _: Any) -> tuple[Any, Any]:
        logits = ops.transpose(ops.matmul(x, blocks), (1, 0, 2))  # (B * T, N, W)
        return done + 1, ops.reshape(logits, (rows, count * BLOCK_WIDTH))

    start = (0, ops.zeros((rows, count * BLOCK_WIDTH), x.dtype))
    _, logits = ops.while_loop(lambda done, _: done < rounds, multiply, start)
    logits = ops.reshape(logits, (batch, length, -1))[..., : kernel.shape[0]]  # (B, T, V)
    return ops.cast(logits, "float32")
