"""Attending: from scores to weights, and from weights to a weighted sum of values.

Axis letters: B batch, T target (queries), S source (keys and values), D dim.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

_LOWEST = float(np.finfo("float32").min)


def attention_weights(scores: Any, mask: Any = None) -> Any:
    """Softmax over the allowed positions.

    `weights[b, t] = softmax(scores[b, t])` over the positions that the mask allows, 0 elsewhere. A row
    that may attend to nothing is 0 everywhere, and its gradient is 0.

    Args:
        scores: Float (B, T, S).
        mask: Boolean, broadcastable to (B, T, S), True where attention is allowed; None allows all.

    Returns:
        float32 (B, T, S); every row sums to 1, or to 0 if its mask allows nothing.

    Example:
        >>> attention_weights([[[1.0, 1.0, 5.0]]], [[[True, True, False]]]).numpy().tolist()
        [[[0.5, 0.5, 0.0]]]
    """
    scores = ops.cast(scores, "float32")
    if mask is None:
        return _softmax(scores)
    # The lowest finite number, not -inf: a row of -inf has no softmax, and NaN for a gradient. Such a
    # row comes out of the softmax as 1/S everywhere; the second `where` makes it 0.
    weights = _softmax(ops.where(mask, scores, _LOWEST))
    return ops.where(mask, weights, 0.0)


def _softmax(scores: Any) -> Any:
    # Keras warns about a single position, which is nothing unusual here: one token, one place to look at.
    return ops.ones_like(scores) if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)


def attend(
    scores: Any, value: Any, mask: Any = None, dropout: Callable[[Any], Any] | None = None
) -> tuple[Any, Any]:
    """Averages the values with the softmax of the scores as weights.

    `context[b, t] = sum_s weights[b, t, s] value[b, s]`.

    Args:
        scores: Float (B, T, S).
        value: Float (B, S, D).
        mask: Boolean, broadcastable to (B, T, S), True where attention is allowed; None allows all.
        dropout: Function applied to the weights before the sum. The weights that are returned are
            those before it.

    Returns:
        The context (B, T, D) in the dtype of the value, and the weights, float32 (B, T, S).

    Example:
        >>> context, weights = attend([[[0.0, 0.0]]], [[[2.0], [4.0]]])
        >>> context.numpy().tolist(), weights.numpy().tolist()
        ([[[3.0]]], [[[0.5, 0.5]]])
    """
    value = ops.convert_to_tensor(value)
    weights = attention_weights(scores, mask)
    applied = weights if dropout is None else dropout(weights)
    return ops.matmul(ops.cast(applied, value.dtype), value), weights
