"""Sinusoidal positional encoding, for sequences and image grids."""

from typing import Any

import keras
from keras import ops

from attention_zoo.ops import positions


@keras.saving.register_keras_serializable(package="attention_zoo")
class PositionalEncoding(keras.layers.Layer):
    """Tells where each element stands, by sines and cosines of its position.

        PE(p, 2i)     = sin(p / max_wavelength^(2i / D))
        PE(p, 2i + 1) = cos(p / max_wavelength^(2i / D))
        output[p]     = inputs[p] + PE(p)   or   [inputs[p]; PE(p)]

    Inputs of shape (B, L, D) are sequences. Inputs of shape (B, H, W, D) are grids: the first half of the
    channels encodes the row, the other half the column, each as above with half the width.

    Nothing is learned or stored, and no length is too long. Encoding and sum are float32 whatever the
    policy (bfloat16 cannot tell position 257 from 256); the result is rounded once, at the end.

    Axis letters: B batch, L positions, H rows, W columns, D dim.

    Args:
        mode: "add" the encoding to the inputs, or "concat" it behind their channels.
        max_wavelength: The longest wavelength, over 2 pi, which the last pair approaches.
        order: "interleaved" (sine, cosine, sine, ...) or "halves" (sines, then cosines); in a grid, of
            the rows' and of the columns' channels.
        units: Width of the encoding that is concatenated; must be None for "add", where it has the
            inputs' width. A multiple of 4 for a grid.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float (B, L, D) or (B, H, W, D); D is a multiple of 4 where a grid's encoding is added.
        start: The first element's position, an int, an int scalar tensor, or ints (B,), one per row. A
            decoder that goes step by step passes one element and its position. For sequences only.

    Returns:
        Tensor in the compute dtype, of the inputs' shape, or with `units` more channels.

    Raises:
        ValueError: If an argument is none of those above, or the inputs' shape does not fit.
        TypeError: If `start` is not an integer.

    Example:
        >>> import numpy as np
        >>> PositionalEncoding()(np.zeros((1, 2, 4))).numpy().astype(float).round(3).tolist()
        [[[0.0, 1.0, 0.0, 1.0], [0.841, 0.54, 0.01, 1.0]]]
        >>> PositionalEncoding("concat", units=8)(np.zeros((1, 5, 7, 3))).shape
        TensorShape([1, 5, 7, 11])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """

    def __init__(
        self,
        mode: str = "add",
        max_wavelength: float = 10000.0,
        order: str = "interleaved",
        units: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ("add", "concat"):
            raise ValueError(f'PositionalEncoding: expected the mode "add" or "concat", received {mode!r}.')
        if max_wavelength <= 0:
            raise ValueError(
                f"PositionalEncoding: expected a positive max_wavelength, received {max_wavelength}."
            )
        if order not in ("interleaved", "halves"):
            raise ValueError(
                f'PositionalEncoding: expected the order "interleaved" or "halves", received {order!r}.'
            )
        if mode == "add" and units is not None:
            raise ValueError(
                f'PositionalEncoding: expected units=None for mode="add", received {units}. The encoding '
                "that is added has the inputs' width."
            )
        if mode == "concat" and (units is None or units < 1):
            raise ValueError(
                f'PositionalEncoding: expected units of at least 1 for mode="concat", received {units}. '
                "Pass the width of the encoding."
            )
        self.mode = mode
        self.max_wavelength = max_wavelength
        self.order = order
        self.units = units
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Checks the shape; there are no weights."""
        self._encoding_width(input_shape)
        self.built = True

    def call(self, inputs: Any, start: Any = 0) -> Any:
        """Adds or concatenates the encoding; see the class."""
        width = self._encoding_width(inputs.shape)
        if len(inputs.shape) == 4:
            if not (isinstance(start, int) and start == 0):
                raise ValueError(
                    f"PositionalEncoding: expected no start for a grid (B, H, W, D), received {start}. "
                    "Only sequences, (B, L, D), can be given in parts."
                )
            encoding = self._encode_grid(*ops.shape(inputs)[1:3], width)  # (H, W, width)
        else:
            # ([B,] L, width)
            encoding = self._encode(positions.positions_from(start, ops.shape(inputs)[1]), width)
        if self.mode == "add":
            # Unlike `+`, ops.add brings half precision to float32 first.
            return ops.cast(ops.add(inputs, encoding), self.compute_dtype)
        encoding = ops.cast(encoding, self.compute_dtype)
        encoding = ops.broadcast_to(encoding, (*ops.shape(inputs)[:-1], width))  # (B, ..., width)
        return ops.concatenate(
            [ops.cast(inputs, self.compute_dtype), encoding], axis=-1
        )  # (B, ..., D + width)

    def _encode(self, position: Any, width: int) -> Any:
        return positions.sinusoids(position, width, self.max_wavelength, self.order)

    def _encode_grid(self, rows: Any, columns: Any, width: int) -> Any:
        """Row codes beside column codes: float32 (H, W, width)."""
        row = ops.expand_dims(self._encode(ops.arange(rows), width // 2), 1)  # (H, 1, width / 2)
        column = ops.expand_dims(self._encode(ops.arange(columns), width // 2), 0)  # (1, W, width / 2)
        shape = (rows, columns, width // 2)
        return ops.concatenate([ops.broadcast_to(row, shape), ops.broadcast_to(column, shape)], axis=-1)

    def _encoding_width(self, shape: tuple[int | None, ...]) -> int:
        """Width of the encoding for inputs of this shape; ValueError if they cannot have one."""
        if len(shape) not in (3, 4) or shape[-1] is None:
            raise ValueError(
                "PositionalEncoding: expected inputs of shape (batch, positions, width) or (batch, rows, "
                f"columns, width) with a known width, received {tuple(shape)}. Reshape them."
            )
        width = shape[-1] if self.mode == "add" else self.units
        if len(shape) == 4 and width % 4:
            raise ValueError(
                "PositionalEncoding: expected a multiple of 4 as the width of a grid's encoding (sines and "
                f"cosines for rows and columns), received {width}. "
                + ("Project the inputs." if self.mode == "add" else "Change units.")
            )
        return width

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs, with `units` more channels if they are concatenated."""
        width = self._encoding_width(input_shape)
        return tuple(input_shape) if self.mode == "add" else (*input_shape[:-1], input_shape[-1] + width)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "mode": self.mode,
            "max_wavelength": self.max_wavelength,
            "order": self.order,
            "units": self.units,
        }
