"""Scores: how well a query fits a key, before any mask or softmax.

Every function takes queries (B, T, Dq) and keys (B, S, Dk) of any float dtype, and returns float32
(B, T, S): half precision runs out of range and digits just where the softmax is sensitive.
Axis letters: B batch, T target (queries), S source (keys), D dim, U units.
"""

import math
from typing import Any

from keras import ops

# `additive_scores` compares this many queries at a time with all keys. Up to 8 queries (one step of
# a decoder, the beams of a search) need no loop; measured on a CPU, larger chunks gain nothing.
_CHUNK = 8


def dot_scores(query: Any, key: Any) -> Any:
    """Dot product: `scores[b, t, s] = query[b, t] . key[b, s]`.

    Args:
        query: Float (B, T, D).
        key: Float (B, S, D).

    Returns:
        float32 (B, T, S).

    Reference:
        Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation",
        section 3.1, "dot".
    """
    query, key = ops.cast(query, "float32"), ops.cast(key, "float32")
    return ops.matmul(query, ops.swapaxes(key, -2, -1))


def scaled_dot_scores(query: Any, key: Any) -> Any:
    """Dot product over the root of the width: `query . key / sqrt(D)`.

    Args:
        query: Float (B, T, D).
        key: Float (B, S, D).

    Returns:
        float32 (B, T, S).

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
    """
    return dot_scores(query, key) / math.sqrt(query.shape[-1])


def general_scores(query: Any, key: Any, weight: Any) -> Any:
    """Bilinear form: `query' W key`.

    Args:
        query: Float (B, T, Dq).
        key: Float (B, S, Dk).
        weight: Float (Dq, Dk), the matrix W.

    Returns:
        float32 (B, T, S).

    Reference:
        Luong et al. 2015, section 3.1, "general".
    """
    query, weight = ops.cast(query, "float32"), ops.cast(weight, "float32")
    return dot_scores(ops.matmul(query, weight), key)


def concat_scores(query: Any, key: Any, weight: Any, v: Any) -> Any:
    """One hidden layer over query and key: `v' tanh([query; key] W)`.

    The rows of W that meet the query and those that meet the key are applied apart, so the
    concatenation, (B, T, S, Dq + Dk), is never built.

    Args:
        query: Float (B, T, Dq).
        key: Float (B, S, Dk).
        weight: Float (Dq + Dk, U), the matrix W.
        v: Float (U,).

    Returns:
        float32 (B, T, S).

    Reference:
        Luong et al. 2015, section 3.1, "concat".
    """
    query, key, weight = (ops.cast(x, "float32") for x in (query, key, weight))
    width = query.shape[-1]
    return additive_scores(ops.matmul(query, weight[:width]), ops.matmul(key, weight[width:]), v)


def additive_scores(query: Any, key: Any, v: Any) -> Any:
    """One hidden layer over a projected query and a projected key: `v' tanh(query + key)`.

    The hidden layer has B x T x S x U values, far more than anything around it. It exists for a few
    queries at a time only, and training keeps none of it: the backward pass computes it again.

    Args:
        query: Float (B, T, U), the query already projected (`W s` in the paper).
        key: Float (B, S, U), the key already projected (`U h`).
        v: Float (U,).

    Returns:
        float32 (B, T, S).

    Reference:
        Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and
        Translate", appendix A.1.2.

    Example:
        >>> import numpy as np
        >>> query, key = np.zeros((1, 1, 2), "float32"), np.array([[[0.0, 0.0], [9.0, -9.0]]], "float32")
        >>> additive_scores(query, key, np.array([2.0, 1.0], "float32")).numpy().round(3).tolist()
        [[[0.0, 1.0]]]
    """
    # What goes in is what the backward pass keeps, so the cast to float32 comes after, not here.
    return _additive_scores(*(ops.convert_to_tensor(x) for x in (query, key, v)))


@ops.custom_gradient
def _additive_scores(query: Any, key: Any, v: Any) -> tuple[Any, Any]:
    def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any, Any]:
        # TensorFlow and JAX pass the gradient by position, PyTorch by name.
        upstream = args[0] if upstream is None else upstream
        gradients = _additive_backward(query, key, v, upstream)
        return tuple(ops.cast(g, x.dtype) for g, x in zip(gradients, (query, key, v), strict=True))

    # A tape would otherwise keep every chunk when run eagerly, in spite of the custom gradient.
    inputs = (ops.stop_gradient(x) for x in (query, key, v))
    return _additive_forward(*inputs), gradient


def _additive_forward(query: Any, key: Any, v: Any) -> Any:
    """The scores, chunk by chunk of queries."""
    if _fits_one_chunk(query):
        return _chunk_forward(query, key, v)
    # (N, B, C, U) -> (N, B, C, S)
    scores = ops.map(lambda chunk: _chunk_forward(chunk, key, v), _split(query))
    return _join(scores, ops.shape(query)[1])


def _additive_backward(query: Any, key: Any, v: Any, upstream: Any) -> tuple[Any, Any, Any]:
    """The gradients for query, key and v, chunk by chunk of queries."""
    if _fits_one_chunk(query):
        return _chunk_backward(query, key, v, upstream)
    queries, upstreams = _split(query), _split(upstream)  # (N, B, C, U), (N, B, C, S)
    chunks = ops.shape(queries)[0]

    def step(i: Any, d_queries: Any, d_key: Any, d_v: Any) -> tuple[Any, ...]:
        d_query, d_key_i, d_v_i = _chunk_backward(queries[i], key, v, upstreams[i])
        d_queries = ops.slice_update(d_queries, (i, 0, 0, 0), ops.expand_dims(d_query, 0))
        return i + 1, d_queries, d_key + d_key_i, d_v + d_v_i

    zeros = [ops.zeros_like(x, dtype="float32") for x in (queries, key, v)]
    _, d_queries, d_key, d_v = ops.while_loop(lambda i, *_: i < chunks, step, (0, *zeros))
    return _join(d_queries, ops.shape(query)[1]), d_key, d_v


def _hidden(query: Any, key: Any) -> Any:
    query, key = ops.cast(query, "float32"), ops.cast(key, "float32")
    return ops.tanh(ops.expand_dims(query, 2) + ops.expand_dims(key, 1))  # (B, T, S, U)


def _chunk_forward(query: Any, key: Any, v: Any) -> Any:
    return ops.dot(_hidden(query, key), ops.cast(v, "float32"))  # (B, T, S)


def _chunk_backward(query: Any, key: Any, v: Any, upstream: Any) -> tuple[Any, Any, Any]:
    hidden = _hidden(query, key)  # (B, T, S, U)
    v = ops.cast(v, "float32")
    # A product per row, then their sum: three times as fast under XLA as one product over B x T x S.
    d_v = ops.sum(ops.matmul(ops.expand_dims(upstream, 2), hidden), axis=(0, 1, 2))  # (U,)
    d_sum = ops.expand_dims(upstream, -1) * (1.0 - hidden * hidden)  # over v: (B, T, S, U)
    return v * ops.sum(d_sum, axis=2), v * ops.sum(d_sum, axis=1), d_v  # (B, T, U), (B, S, U), (U,)


def _fits_one_chunk(query: Any) -> bool:
    return query.shape[1] is not None and query.shape[1] <= _CHUNK


def _split(x: Any) -> Any:
    """Cuts the target axis in N chunks of C, the last filled up with zeros."""
    batch, length, width = ops.shape(x)
    x = ops.pad(x, [[0, 0], [0, -length % _CHUNK], [0, 0]])
    x = ops.reshape(x, (batch, -1, _CHUNK, width))  # (B, N, C, width)
    return ops.swapaxes(x, 0, 1)  # (N, B, C, width)


def _join(x: Any, length: Any) -> Any:
    """Undoes `_split`."""
    _, batch, _, width = ops.shape(x)
    x = ops.reshape(ops.swapaxes(x, 0, 1), (batch, -1, width))  # (B, N * C, width)
    return x[:, :length]  # (B, T, width)
