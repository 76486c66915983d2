"""Positions: numbers for places in a sequence, and turning vectors by them.

Sines and cosines of `position * frequency` are float32, accurate to 2e-6 at every position up to 2^24,
see `_turns`. Axis letters: B batch, L positions, D dim.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

_DIGIT = 4096  # 12 bits: the product of two such numbers is exact in float32


def positions_from(start: Any, length: Any) -> Any:
    """Counts `length` positions from `start` on: `start, start + 1, ...`.

    Args:
        start: The first position, an int, an integer scalar tensor, or integers (B,), one per row.
        length: L, an int or an integer scalar tensor.

    Returns:
        int32 (L,), or (B, L) for a start per row.

    Raises:
        TypeError: If `start` is not an integer: halves of it would be lost in half precision.
        ValueError: If `start` has more than one axis.

    Example:
        >>> positions_from(np.array([0, 5]), 3).numpy().tolist()
        [[0, 1, 2], [5, 6, 7]]
    """
    start = ops.convert_to_tensor(start)
    dtype = keras.backend.standardize_dtype(start.dtype)
    if "int" not in dtype:
        raise TypeError(f"positions_from: expected start as an integer, received {dtype}. Cast it to int32.")
    if len(start.shape) > 1:
        raise ValueError(
            "positions_from: expected start as a scalar or of shape (batch,), received shape "
            f"{tuple(start.shape)}. Pass the position of the first element only."
        )
    return ops.expand_dims(ops.cast(start, "int32"), -1) + ops.arange(length, dtype="int32")  # ([B,] L)


def sinusoids(positions: Any, units: int, max_wavelength: float = 10000.0, order: str = "interleaved") -> Any:
    """Encodes positions as sines and cosines of wavelengths in geometric progression.

        PE(p, 2i)     = sin(p / max_wavelength^(2i / units))
        PE(p, 2i + 1) = cos(p / max_wavelength^(2i / units))

    With an odd width the last sine has no cosine. The order "halves" puts all sines first, then all
    cosines; the numbers are the same. (tensor2tensor and Marian use that order, but divide by
    `units - 2` in the exponent.)

    Args:
        positions: Int or float, of any shape. Whole numbers are exact up to 2^24; half precision holds
            them only up to 256 (bfloat16) or 2048 (float16), so pass integers.
        units: D, the width of the encoding.
        max_wavelength: The longest wavelength, over 2 pi, which the last pair approaches.
        order: "interleaved" (sine, cosine, sine, ...) or "halves" (sines, then cosines).

    Returns:
        float32, the shape of `positions` with D appended.

    Raises:
        ValueError: If `units` or `max_wavelength` is not positive, or the order has another name.

    Example:
        >>> sinusoids([0, 1], 4).numpy().astype(float).round(3).tolist()
        [[0.0, 1.0, 0.0, 1.0], [0.841, 0.54, 0.01, 1.0]]

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    if units < 1:
        raise ValueError(f"sinusoids: expected units of at least 1, received {units}.")
    if order not in ("interleaved", "halves"):
        raise ValueError(f'sinusoids: expected the order "interleaved" or "halves", received {order!r}.')
    column = np.arange(units)
    if order == "halves":
        column = np.concatenate([column[0::2], column[1::2]])
    # A cosine is a sine a quarter of a turn ahead: one formula for all columns.
    turns = _turns(positions, column // 2 * 2 / units, max_wavelength) + _constant(column % 2 / 4)
    return ops.sin(turns * (2 * math.pi))


def rotate(x: Any, positions: Any, max_wavelength: float = 10000.0) -> Any:
    """Rotary embedding: turns each pair of neighbours by an angle proportional to the position.

        angle             = p / max_wavelength^(2i / D)
        output[p, 2i]     = x[p, 2i] cos(angle) - x[p, 2i + 1] sin(angle)
        output[p, 2i + 1] = x[p, 2i] sin(angle) + x[p, 2i + 1] cos(angle)

    The dot product of a query rotated by its position and a key rotated by its own depends on the
    distance between the two only.

    Args:
        x: Float (..., L, D) with D even; heads, if any, are an axis before L.
        positions: Int or float (L,) or (..., L), broadcast to the axes of `x` but the last: (B, 1, L)
            for `x` of shape (B, H, L, D).
        max_wavelength: The longest wavelength, over 2 pi, which the last pair approaches.

    Returns:
        Tensor of the shape and dtype of `x`, computed in float32.

    Raises:
        ValueError: If D is odd or unknown, `positions` has more axes than `x` without its last, or
            `max_wavelength` is not positive.

    Example:
        >>> x = np.array([[1.0, 0.0], [1.0, 0.0]], "float32")
        >>> rotate(x, [0, 1]).numpy().astype(float).round(3).tolist()
        [[1.0, 0.0], [0.54, 0.841]]

    Reference:
        Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.4.2.
    """
    x, positions = ops.convert_to_tensor(x), ops.convert_to_tensor(positions)
    width = x.shape[-1]
    if width is None or width % 2:
        raise ValueError(
            f"rotate: expected an even width, received {width}. Pairs of neighbours are rotated."
        )
    if len(positions.shape) >= len(x.shape):
        raise ValueError(
            "rotate: expected positions of shape (L,) or (..., L) for x of shape (..., L, D), received "
            f"{tuple(positions.shape)} for {tuple(x.shape)}. Positions have no axis for D."
        )
    turns = _turns(positions, np.arange(0, width, 2) / width, max_wavelength)  # (..., L, D / 2)
    angle = turns * (2 * math.pi)
    sin, cos = ops.sin(angle), ops.cos(angle)
    even, odd = ops.cast(x[..., 0::2], "float32"), ops.cast(x[..., 1::2], "float32")  # (..., L, D / 2)
    pairs = ops.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)  # (..., L, D / 2, 2)
    return ops.cast(ops.reshape(pairs, ops.shape(x)), x.dtype)  # (..., L, D)


def _turns(positions: Any, exponents: np.ndarray, max_wavelength: float) -> Any:
    """Returns `positions / max_wavelength^exponents / (2 pi)`, less some whole number: full turns.

    The product itself, in float32, is off by 0.006 radians at position 100,000. So the position is
    written in two digits of 12 bits and a fraction, and the turns per digit, known in float64, as a
    number of 12 bits and a small rest. A digit times such a number is exact, and loses its whole turns
    exactly; what is left is less than four turns, and right to 3e-7 of one.

    Args:
        positions: Int or float, of any shape.
        exponents: float64 (F,).
        max_wavelength: Positive.

    Returns:
        float32, the shape of `positions` with F appended; its gradient is that of the product.
    """
    if max_wavelength <= 0:
        raise ValueError(f"positions: expected a positive max_wavelength, received {max_wavelength}.")
    frequency = max_wavelength**-exponents / (2 * math.pi)
    positions = ops.expand_dims(ops.cast(positions, "float32"), -1)  # (..., 1)
    whole = ops.floor(positions)
    high = ops.floor(whole / _DIGIT)
    turns = (positions - whole) * _constant(frequency)  # (..., F)
    for digit, per_digit in ((whole - high * _DIGIT, frequency % 1), (high, _DIGIT * frequency % 1)):
        coarse = np.round(per_digit * _DIGIT) / _DIGIT
        # Not `x - floor(x)`: TensorFlow's graph optimizer moves the summands of sums, and so rounds them.
        turns += ops.mod(digit * _constant(coarse), 1.0)
        turns += digit * _constant(per_digit - coarse)
    return turns - ops.round(turns)


def _constant(array: np.ndarray) -> Any:
    return ops.convert_to_tensor(array, dtype="float32")
