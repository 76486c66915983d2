"""Random numbers that are a pure function of a seed and an index: no state, and next to no cost.

Whoever hashes the same index with the same seed gets the same number, whatever the order or the pieces
in which the indices are asked for, compiled or not.
"""

from typing import Any

import numpy as np
from keras import ops


def random_bits(seed: Any, index: Any) -> Any:
    """Hashes indices: uniform bits, a pure function of the seed and of each index.

    The words of a seed are a layer's seed and the number of the call, so both are small numbers that
    differ in few bits: they are hashed first, each together with the other. The index is then hashed with
    one key before the first round and the other one between rounds. (With one key only, two calls whose
    keys are close would use the same numbers shifted.)

    Args:
        seed: Integer (2,), as `keras.random.SeedGenerator.next()` returns it.
        index: uint32 of any shape.

    Returns:
        uint32 of the shape of `index`.

    Example:
        >>> index = np.arange(4, dtype="uint32")
        >>> bool(np.all(random_bits([1, 2], index)[2:] == random_bits([1, 2], index[2:])))
        True
    """
    layer, call = ops.unstack(ops.cast(seed, "uint32"), 2)
    first = _hash(_hash(layer) + call)
    # Not `_hash(first + layer)`: the index equal to `layer` would meet its own hash and give 0 in every call.
    second = _hash(ops.bitwise_xor(first + layer, np.uint32(0x9E3779B9)))
    return _hash(ops.bitwise_xor(_hash(index + first), second))


def keep_mask(rate: float, seed: Any, index: Any) -> Any:
    """Draws which entries a dropout keeps: each with probability `1 - rate`.

    Args:
        rate: Part to drop, between 0 and 1.
        seed: Integer (2,), see `random_bits`.
        index: uint32 of any shape, the position of each entry in the flat tensor that is dropped from.

    Returns:
        Boolean of the shape of `index`, True where the entry is kept.
    """
    threshold = min(round(rate * 2**32), 2**32 - 1)
    return ops.greater_equal(random_bits(seed, index), np.uint32(threshold))


def _hash(x: Any) -> Any:
    """Scatters the bits of uint32 numbers: the finalizer `lowbias32`, a bijection.

    Reference:
        Wellons 2018, "Prospecting for Hash Functions", nullprogram.com/blog/2018/07/31.
    """
    x = _xor_shift(x, 16) * np.uint32(0x7FEB352D)
    x = _xor_shift(x, 15) * np.uint32(0x846CA68B)
    return _xor_shift(x, 16)


def _xor_shift(x: Any, bits: int) -> Any:
    return ops.bitwise_xor(x, ops.right_shift(x, np.uint32(bits)))
