"""Masks: boolean tensors, True where a query may attend to a position.

They are made from ids once, where data enters a model, and passed on explicitly.
Axis letters: B batch, T target (queries), S source (keys and values).
"""

from typing import Any

import keras
from keras import ops


def padding_mask(ids: Any) -> Any:
    """Marks the real tokens of a padded batch.

    `mask[b, s] = ids[b, s] != 0`; id 0 is padding everywhere in this library.

    Args:
        ids: Token ids, integer (B, S).

    Returns:
        Boolean (B, S), True at real tokens.

    Example:
        >>> padding_mask([[5, 7, 0]]).numpy().tolist()
        [[True, True, False]]
    """
    return ops.not_equal(ids, 0)


def causal_mask(target_length: Any, source_length: Any = None) -> Any:
    """Lets every position see itself and what came before it.

    `mask[0, t, s] = s <= t`.

    Args:
        target_length: Number of queries T, an integer or an integer scalar tensor.
        source_length: Number of keys S; defaults to T.

    Returns:
        Boolean (1, T, S), to be broadcast over the batch.

    Example:
        >>> causal_mask(3).numpy().astype(int).tolist()
        [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    """
    source_length = target_length if source_length is None else source_length
    target = ops.expand_dims(ops.arange(target_length), 1)  # (T, 1)
    source = ops.expand_dims(ops.arange(source_length), 0)  # (1, S)
    return ops.expand_dims(ops.less_equal(source, target), 0)  # (1, T, S)


def combine_masks(*masks: Any) -> Any:
    """Allows what every given mask allows.

    A mask of rank 2 is a padding mask of the source and holds for all queries; it is never read as
    (T, S), which would go wrong without a word whenever B equals T.

    Args:
        *masks: Boolean masks (B, S) or (B|1, T|1, S|1), or None, which allows everything.

    Returns:
        Boolean mask of rank 3 that broadcasts to (B, T, S), or None if every mask is None.

    Raises:
        ValueError: If a mask is not boolean (a mask of 0 and -inf, or of 1 for "hide", would
            otherwise be read the wrong way round), or has another rank.

    Example:
        >>> both = combine_masks(padding_mask([[5, 7, 0]]), None, causal_mask(3))
        >>> both.numpy().astype(int).tolist()
        [[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]
    """
    combined = None
    for mask in masks:
        if mask is None:
            continue
        mask = _checked(mask)
        combined = mask if combined is None else ops.logical_and(combined, mask)
    return combined


def _checked(mask: Any) -> Any:
    """Returns the mask with rank 3, or says what is wrong with it."""
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise ValueError(
            "combine_masks: expected boolean masks, True where attention is allowed; received dtype "
            f"{dtype}. Make it boolean, for instance with `mask != 0` if 1 means attend."
        )
    if len(mask.shape) == 2:
        return ops.expand_dims(mask, 1)  # (B, 1, S)
    if len(mask.shape) == 3:
        return mask
    raise ValueError(
        "combine_masks: expected masks of shape (B, S) or (B, T, S); received shape "
        f"{tuple(mask.shape)}. Add or remove axes so that it has one of these."
    )
