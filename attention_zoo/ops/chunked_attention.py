"""Exact attention whose memory grows linearly with the lengths.

Axis letters: B batch, H heads, G heads of the keys, R = H / G query heads for each of them, T target
(queries), S source (keys and values), D and Dv dims, N chunks of C positions; b, h, t, s a mask's own axes,
each of which may be 1. A tile is one chunk of queries against one chunk of keys.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from attention_zoo.ops import random, seeds

# From this many keys on a layer that may choose should choose this function. Peak memory and seconds of a
# forward and backward pass, materialised -> in chunks, 8 heads x 64, batch 1, two cores without XLA
# (benchmarks/attention_memory.py):
#   512: 0.05 -> 0.05 GB, twice the time;   2048: 0.61 -> 0.12 GB, 0.21 -> 0.23 s;
#   4096: 2.32 -> 0.19 GB, 0.81 -> 0.92 s;   8192: 8.98 -> 0.31 GB, 3.24 -> 4.02 s.
AUTOMATIC_LENGTH = 2048

# A tile of 8 heads takes 8 MB. Chunks of 256 and 1024 gained no time.
_CHUNK = 512
_LOWEST = float(np.finfo("float32").min)


def attend_in_chunks(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    causal: bool = False,
    dropout: float = 0.0,
    seed: Any = None,
    scale: float | None = None,
    chunk_size: int = _CHUNK,
) -> Any:
    """Scaled dot-product attention without the matrix of its weights.

    `output[b, h, t] = sum_s a[s] value[b, g, s]` with `a = softmax over the allowed s of
    (scale * query[b, h, t] . key[b, g, s])` and `g = h G // H`.

    Scores exist for one tile at a time; a running maximum and a running sum per query make the softmax
    exact all the same. Training keeps the output and the logarithm of that sum, and the backward pass
    computes the scores again: seven products instead of six, for memory that grows with T + S instead of
    T x S.

    Args:
        query: Float (B, H, T, D).
        key: Float (B, G, S, D), where G divides H: G = H is ordinary attention, G = 1 multi-query
            attention. Keys and values are not repeated in memory.
        value: Float (B, G, S, Dv).
        mask: Boolean, True where attention is allowed: (B, S), or of rank 4 and broadcastable to
            (B, H, T, S). None allows all.
        causal: Whether query t may see the keys s <= t only. Tiles that this hides are not computed.
        dropout: Part of the weights to drop. With the same seed they are those that `layers.Dropout`
            drops from the weights (B, H, T, S).
        seed: Integer (2,), as `keras.random.SeedGenerator.next()` returns it; dropout needs it.
        scale: Factor of the scores; 1 / sqrt(D) if None.
        chunk_size: Size C of a chunk, of queries and of keys.

    Returns:
        (B, H, T, Dv) in the dtype of the value, computed in float32. A query that may attend to nothing
        gets zeros, and zeros for its gradient.

    Raises:
        ValueError: If shapes do not fit each other, the mask is not boolean, the chunk size is below 1,
            or dropout is not between 0 and 1 or has no seed.

    Example:
        >>> x = np.ones((1, 2, 1000, 8), "float32")
        >>> tuple(attend_in_chunks(x, x, x, causal=True).shape)
        (1, 2, 1000, 8)

    Reference:
        Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory", section 2; Dao et al. 2022,
        "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", section 3.1.
    """
    query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
    mask = None if mask is None else ops.convert_to_tensor(mask)
    _check(query, key, value, mask, dropout, seed, chunk_size)
    batch, heads, target, width = ops.shape(query)
    groups = key.shape[1]
    tiles = _Tiles(
        heads=(batch, groups, heads // groups),
        target=_Chunks(target, chunk_size),
        source=_Chunks(ops.shape(key)[2], chunk_size),
        mask=None if mask is None else _split_heads(mask, groups),
        causal=causal,
        dropout=dropout,
        seed=seed,
        first_row=seeds.entries_before(batch * heads),
        scale=width**-0.5 if scale is None else scale,
    )

    @ops.custom_gradient
    def attend(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
        # Without the stop an eager GradientTape would keep every tile, for a gradient nobody asks for.
        inputs = tuple(ops.stop_gradient(x) for x in (query, key, value))
        output, log_sum = _forward(*inputs, tiles)

        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, ...]:
            # TensorFlow and JAX pass the gradient by position, PyTorch by name.
            upstream = args[0] if upstream is None else upstream
            gradients = _backward(*inputs, output, log_sum, upstream, tiles)
            return tuple(ops.cast(g, x.dtype) for g, x in zip(gradients, inputs, strict=True))

        return ops.cast(output, value.dtype), gradient

    query = ops.reshape(query, (*tiles.heads, target, width))  # (B, G, R, T, D)
    output = attend(query, key, value)
    return ops.reshape(output, (batch, heads, target, value.shape[-1]))  # (B, H, T, Dv)


def _forward(query: Any, key: Any, value: Any, tiles: "_Tiles") -> tuple[Any, Any]:
    """The output, float32 (B, G, R, T, Dv), and the logarithm of each row's sum, (B, G, R, T, 1)."""
    target, source = tiles.target, tiles.source

    def block(i: Any, outputs: Any, log_sums: Any) -> tuple[Any, ...]:
        query_i = target.take(query, i) * tiles.scale  # (B, G, R, C, D)

        def step(j: Any, top: Any, total: Any, output: Any) -> tuple[Any, ...]:
            scores = tiles.scores(query_i, source.take(key, j), i, j)  # (B, G, R, C, C)
            new_top = ops.maximum(top, ops.max(scores, axis=-1, keepdims=True))
            weights = ops.exp(scores - new_top)
            decay = ops.exp(top - new_top)
            total = total * decay + ops.sum(weights, axis=-1, keepdims=True)
            added = _average(tiles.dropper(i, j)(weights), source.take(value, j))  # (B, G, R, C, Dv)
            return j + 1, new_top, total, output * decay + added

        # The maximum starts halfway to the score of a hidden key, so that a row which sees only hidden
        # keys gets weights of exp(-huge) = 0, not of exp(0).
        zeros = ops.zeros((*tiles.heads, target.size, 1), "float32")
        output = ops.zeros((*tiles.heads, target.size, value.shape[-1]), "float32")
        _, top, total, output = _loop(
            lambda j, *_: j < tiles.keys_seen(i), step, (0, zeros + _LOWEST / 2, zeros, output)
        )
        total = ops.where(total > 0, total, 1.0)
        return i + 1, target.add(outputs, i, output / total), target.add(log_sums, i, top + ops.log(total))

    zeros = [target.zeros((*tiles.heads, width)) for width in (value.shape[-1], 1)]
    _, outputs, log_sums = _loop(lambda i, *_: i < target.count, block, (0, *zeros))
    return target.join(outputs), target.join(log_sums)


def _backward(
    query: Any, key: Any, value: Any, output: Any, log_sum: Any, upstream: Any, tiles: "_Tiles"
) -> tuple[Any, Any, Any]:
    """The gradients for query, key and value, float32."""
    target, source = tiles.target, tiles.source

    def block(j: Any, d_query: Any, d_keys: Any, d_values: Any) -> tuple[Any, ...]:
        key_j, value_j = source.take(key, j), source.take(value, j)  # (B, G, C, D), (B, G, C, Dv)

        def step(i: Any, d_query: Any, d_key: Any, d_value: Any) -> tuple[Any, ...]:
            query_i = target.take(query, i) * tiles.scale  # (B, G, R, C, D)
            upstream_i = target.take_fresh(upstream, i)  # (B, G, R, C, Dv)
            drop = tiles.dropper(i, j)
            weights = ops.exp(tiles.scores(query_i, key_j, i, j) - target.take(log_sum, i))  # (B, G, R, C, C)
            d_value = d_value + _collect(drop(weights), upstream_i)
            d_weights = drop(_compare(upstream_i, value_j))  # (B, G, R, C, C)
            # The softmax takes from each row the average of its gradient, which is the output's share.
            average = ops.sum(upstream_i * target.take(output, i), axis=-1, keepdims=True)
            d_scores = weights * (d_weights - average)
            d_key = d_key + _collect(d_scores, query_i)
            d_query = target.add(d_query, i, _average(d_scores, key_j * tiles.scale))
            return i + 1, d_query, d_key, d_value

        _, d_query, d_key, d_value = _loop(
            lambda i, *_: i < target.count,
            step,
            (tiles.first_query(j), d_query, ops.zeros_like(key_j), ops.zeros_like(value_j)),
        )
        return j + 1, d_query, source.add(d_keys, j, d_key), source.add(d_values, j, d_value)

    d_query = target.zeros((*tiles.heads, query.shape[-1]))
    d_keys, d_values = (source.zeros((*tiles.heads[:2], x.shape[-1])) for x in (key, value))
    _, d_query, d_keys, d_values = _loop(
        lambda j, *_: j < tiles.keys_seen(target.count - 1), block, (0, d_query, d_keys, d_values)
    )
    return target.join(d_query), source.join(d_keys), source.join(d_values)


# The three products. `einsum` becomes one product of matrices with nothing transposed or repeated: the R
# query heads of a key head are further rows of the same matrix.


def _compare(query: Any, key: Any) -> Any:
    return ops.einsum("bgrtd,bgsd->bgrts", query, key)


def _average(weights: Any, value: Any) -> Any:
    return ops.einsum("bgrts,bgsd->bgrtd", weights, value)


def _collect(weights: Any, query: Any) -> Any:
    return ops.einsum("bgrts,bgrtd->bgsd", weights, query)


def _loop(condition: Callable[..., Any], body: Callable[..., Any], state: tuple[Any, ...]) -> Any:
    """`ops.while_loop`, one iteration at a time."""
    if keras.backend.backend() != "tensorflow":
        return ops.while_loop(condition, body, state)
    import tensorflow as tf

    # Keras lets TensorFlow run ten iterations ahead: five times the memory (1.0 instead of 0.2 GB for 8
    # heads of 4096 x 64) and no time gained.
    return tf.while_loop(condition, body, state, parallel_iterations=1)


class _Chunks:
    """An axis of any length cut in N chunks of one size C.

    The last chunk starts early enough to be whole, so it holds again some positions of the one before.
    (Padding would copy keys, values and masks.) Those that it alone holds are fresh.
    """

    def __init__(self, length: Any, chunk_size: int) -> None:
        self.length = length
        self.size = _minimum(chunk_size, length)
        self.count = -(-length // self.size)
        self.overlaps = not isinstance(length, int) or length % self.size != 0  # unless known better

    def start(self, i: Any) -> Any:
        return ops.minimum(i * self.size, self.length - self.size)

    def positions(self, i: Any) -> Any:
        return self.start(i) + ops.arange(self.size)  # (C,)

    def fresh(self, i: Any) -> Any:
        return self.positions(i) >= i * self.size  # (C,)

    def take(self, x: Any, i: Any) -> Any:
        """Chunk i of (..., T, width), as float32 (..., C, width)."""
        *leading, _, width = ops.shape(x)
        start = (*[0] * len(leading), self.start(i), 0)
        return ops.cast(ops.slice(x, start, (*leading, self.size, width)), "float32")

    def take_fresh(self, x: Any, i: Any) -> Any:
        """The same with zeros where the chunk before has held the position."""
        x = self.take(x, i)
        return ops.where(ops.expand_dims(self.fresh(i), -1), x, 0.0) if self.overlaps else x

    def zeros(self, shape: Sequence[Any]) -> Any:
        """A place for every chunk: (..., width) -> (N, ..., C, width)."""
        return ops.zeros((self.count, *shape[:-1], self.size, shape[-1]), "float32")

    def add(self, chunks: Any, i: Any, x: Any) -> Any:
        """Adds to chunk i."""
        return ops.scatter_update(chunks, ops.reshape(i, (1, 1)), ops.expand_dims(x, 0), reduction="add")

    def join(self, chunks: Any) -> Any:
        """(N, ..., C, width) -> (..., T, width), each position from the chunk where it is fresh."""
        count, *leading, size, width = ops.shape(chunks)
        x = ops.reshape(ops.moveaxis(chunks, 0, -3), (*leading, count * size, width))  # (..., N * C, width)
        if not self.overlaps:
            return x
        last = (self.count - 1) * self.size
        skipped = self.count * self.size - self.length
        return ops.concatenate([x[..., :last, :], x[..., last + skipped :, :]], axis=-2)


@dataclasses.dataclass
class _Tiles:
    """What the tiles of queries i and keys j have in common: what is hidden and what is dropped."""

    heads: tuple[Any, int, int]  # B, G, R
    target: _Chunks
    source: _Chunks
    mask: Any  # None or (b, g, r, t, s)
    causal: bool
    dropout: float
    seed: Any
    first_row: Any  # of the B * H rows of weights, among those of the whole batch
    scale: float

    def keys_seen(self, i: Any) -> Any:
        """The number of chunks of keys that some query of chunk i, or of one before, may see."""
        if not self.causal:
            return self.source.count
        last_query = self.target.start(i) + self.target.size - 1
        return ops.minimum(self.source.count, last_query // self.source.size + 1)

    def first_query(self, j: Any) -> Any:
        """The first chunk of queries of which one may see a key of chunk j."""
        return j * self.source.size // self.target.size if self.causal else 0

    def scores(self, query: Any, key: Any, i: Any, j: Any) -> Any:
        """Scaled queries (B, G, R, C, D), keys (B, G, C, D) -> (B, G, R, C, C), hidden ones lowest."""
        scores = _compare(query, key)
        allowed = []
        if self.source.overlaps:
            allowed.append(self.source.fresh(j))
        if self.causal:
            target = ops.expand_dims(self.target.positions(i), 1)  # (C, 1)
            allowed.append(self.source.positions(j) <= target)  # (C, C)
        if self.mask is not None:
            allowed.append(self._mask_of(i, j))
        if not allowed:
            return scores
        hidden = ops.where(functools.reduce(ops.logical_and, allowed), scores, _LOWEST)
        # Loops want the shape to be as well known as it was, also where that of the mask is not.
        return ops.reshape(hidden, ops.shape(scores))

    def _mask_of(self, i: Any, j: Any) -> Any:
        """The mask's part for a tile; an axis of size 1 stays so."""
        *leading, target, source = ops.shape(self.mask)
        sizes = _minimum(self.target.size, target), _minimum(self.source.size, source)
        starts = (
            ops.minimum(self.target.start(i), target - sizes[0]),
            ops.minimum(self.source.start(j), source - sizes[1]),
        )
        return ops.slice(self.mask, (0, 0, 0, *starts), (*leading, *sizes))  # (b, g, r, C, C)

    def dropper(self, i: Any, j: Any) -> Callable[[Any], Any]:
        """A function that applies a tile's dropout to (B, G, R, C, C), the same every time."""
        if self.dropout == 0:
            return lambda x: x
        batch, groups, repeats = self.heads
        row = ops.reshape(ops.arange(batch * groups * repeats), (*self.heads, 1, 1))
        target = ops.expand_dims(self.target.positions(i), 1)  # (C, 1)
        # The place of each weight in the flat (B, H, T, S), modulo 2**32.
        row, target, source, length, width = (
            ops.cast(x, "uint32")
            for x in (row, target, self.source.positions(j), self.target.length, self.source.length)
        )
        row = row + self.first_row
        keep = random.keep_mask(self.dropout, self.seed, (row * length + target) * width + source)
        factor = 1.0 / (1.0 - self.dropout) if self.dropout < 1 else 0.0
        return lambda x: ops.where(keep, x * factor, 0.0)


def _minimum(a: Any, b: Any) -> Any:
    """Two integers' minimum, an integer again if both are: sizes must stay known where they are."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else ops.minimum(a, b)


def _split_heads(mask: Any, groups: int) -> Any:
    """(B, S) or (b, h, t, s) -> (b, g, r, t, s)."""
    if len(mask.shape) == 2:
        return ops.expand_dims(mask, (1, 2, 3))  # (B, 1, 1, 1, S)
    batch, heads, target, source = ops.shape(mask)
    heads = (1, 1) if heads == 1 else (groups, heads // groups)
    return ops.reshape(mask, (batch, *heads, target, source))


def _check(query: Any, key: Any, value: Any, mask: Any, dropout: float, seed: Any, chunk_size: int) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if len(x.shape) != 4 or x.shape[1] is None or x.shape[3] is None or 0 in x.shape:
            raise ValueError(
                f"attend_in_chunks: expected a {name} of shape (batch, heads, positions, width), not empty "
                f"and with heads and width known, received {tuple(x.shape)}. Reshape it."
            )
    if not (
        _agree(query.shape[0], key.shape[0], value.shape[0])
        and _agree(key.shape[1], value.shape[1])
        and _agree(key.shape[2], value.shape[2])
        and query.shape[3] == key.shape[3]
        and query.shape[1] % key.shape[1] == 0
    ):
        raise ValueError(
            "attend_in_chunks: expected query (B, H, T, D), key (B, G, S, D) and value (B, G, S, Dv), where "
            f"G divides H; received {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}. Make "
            "them fit each other."
        )
    if mask is not None:
        _check_mask(mask, (query.shape[0], query.shape[1], query.shape[2], key.shape[2]))
    if chunk_size < 1:
        raise ValueError(
            f"attend_in_chunks: expected a chunk_size of at least 1, received {chunk_size}. "
            f"The default is {_CHUNK}."
        )
    if not 0 <= dropout <= 1:
        raise ValueError(f"attend_in_chunks: expected a dropout between 0 and 1, received {dropout}.")
    if dropout > 0 and seed is None:
        raise ValueError(
            f"attend_in_chunks: expected a seed with dropout {dropout}, received None. Pass what "
            "`keras.random.SeedGenerator.next()` returns, or no dropout."
        )


def _check_mask(mask: Any, full: tuple[int | None, ...]) -> None:
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise ValueError(
            "attend_in_chunks: expected a boolean mask, True where attention is allowed; received dtype "
            f"{dtype}. Make it boolean, for instance with `mask != 0` if 1 means attend."
        )
    shape = tuple(mask.shape)
    if len(shape) == 2:
        fits = _agree(shape[0], full[0]) and _agree(shape[1], full[3])
    else:
        fits = len(shape) == 4 and shape[1] in (1, full[1])
        fits = fits and all(size == 1 or _agree(size, whole) for size, whole in zip(shape, full, strict=True))
    if not fits:
        raise ValueError(
            "attend_in_chunks: expected a mask of shape (B, S), or one that broadcasts to (B, H, T, S), "
            f"here {full}; received shape {shape}. Add or remove axes so that it has one of these."
        )


def _agree(*sizes: int | None) -> bool:
    """Whether sizes are equal as far as they are known."""
    return len(set(sizes) - {None}) <= 1
