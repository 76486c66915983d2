"""Attention over the positions of an image, and the penalty that spreads it."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from attention_zoo.layers.attention import Attention
from attention_zoo.ops import scores
from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class SpatialAttention(Attention):
    """Soft attention over the grid of an image's features: "Show, Attend and Tell".

    h_t is the query (the decoder's state before token t), z_ij the features at row i and column j:

        e_tij = v' tanh(W_h h_t + W_z z_ij + b)
        a_tij = softmax over all allowed i, j of e_tij
        c_t   = beta_t (sum over i, j of a_tij z_ij)

    With the gate, beta_t = sigmoid(w_beta' h_t + b_beta), one number for a query: how much the image
    counts for this token. Without it, beta_t = 1.

    In `models.RNNDecoder` it takes the place of any other attention; `project_memory` and `attend` know the
    grid as a flat list of positions, row by row.

    Args:
        units: Width of the hidden layer.
        gate: Whether to multiply the context with beta_t.
        dropout: Part of the attention weights to drop in training.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        Those of `Attention`, where the positions may also be a grid:

        value: Float (B, H, W, Dv), or (B, S, Dv).
        key: Float with the axes of the values; the values if None.
        value_mask: Boolean (B, H, W), or (B, S), True where attention is allowed.
        key_mask: Boolean, the same for the keys.
        attention_mask: Boolean (B, T, H, W) or (B, 1, H, W), or without a grid (B, T, S) or (B, 1, S).

    Returns:
        The context (B, T, Dv) in the compute dtype; with `return_attention_scores`, a pair of the context
        and the weights, float32 (B, T, H, W) or (B, T, S), before dropout and without the gate.

    Raises:
        ValueError: If `units` is not positive, or shapes do not fit each other.

    Example:
        >>> layer = SpatialAttention(units=8)
        >>> query, grid = ops.ones((2, 3, 5)), ops.ones((2, 4, 6, 7))
        >>> context, weights = layer(query, grid, return_attention_scores=True)
        >>> context.shape, weights.shape
        (TensorShape([2, 3, 7]), TensorShape([2, 3, 4, 6]))

    Reference:
        Xu et al. 2015, "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
        sections 3.1.2 and 4.2; the gate is in section 4.2.1.
    """

    def __init__(
        self,
        units: int,
        gate: bool = True,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, **kwargs)
        if units < 1:
            raise ValueError(f"SpatialAttention: expected units of at least 1, received {units}.")
        self.units = units
        self.gate = gate

    def build(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        """Makes the weights for inputs of these shapes."""
        key_shape = value_shape if key_shape is None else key_shape
        super().build(query_shape, _flat_shape(value_shape), _flat_shape(key_shape))

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes W_h, W_z, b and v, and w_beta and b_beta for the gate."""
        self.W_h = self.add_weight((query_dim, self.units), "glorot_uniform", name="W_h")
        self.W_z = self.add_weight((key_dim, self.units), "glorot_uniform", name="W_z")
        self.b = self.add_weight((self.units,), "zeros", name="b")
        # Scores and gate are float32 under any policy, so Keras must not cast what makes them.
        self.v = self.add_weight((self.units,), "glorot_uniform", name="v", autocast=False)
        if self.gate:
            self.w_beta = self.add_weight((query_dim,), "glorot_uniform", name="w_beta", autocast=False)
            self.b_beta = self.add_weight((), "zeros", name="b_beta", autocast=False)

    def project_query(self, query: Any) -> Any:
        """W_h h: (B, T, Dq) -> (B, T, U)."""
        return linear(query, ops.cast(self.W_h, self.compute_dtype))

    def project_key(self, key: Any) -> Any:
        """W_z z + b: (B, S, Dk) -> (B, S, U)."""
        W, b = (ops.cast(weight, self.compute_dtype) for weight in (self.W_z, self.b))
        return linear(key, W, b)

    def compute_scores(self, query: Any, key: Any) -> Any:
        """(B, T, U), (B, S, U) -> float32 (B, T, S)."""
        return scores.additive_scores(query, key, ops.cast(self.v, "float32"))

    def attend(
        self, query: Any, memory: dict[str, Any], mask: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Lets queries attend to a projected memory, see `Attention.attend`, and gates the context."""
        context, weights = super().attend(query, memory, mask, training)
        if self.gate:
            context = context * ops.cast(self._beta(query), context.dtype)
        return context, weights

    def _beta(self, query: Any) -> Any:
        """How much the context counts: (B, T, Dq) -> float32 (B, T, 1)."""
        query = ops.cast(ops.cast(query, self.compute_dtype), "float32")
        # A sum: products with a matrix of one column after tanh crash TensorFlow on a CPU.
        logits = ops.sum(query * ops.cast(self.w_beta, "float32"), axis=-1, keepdims=True)
        return ops.sigmoid(logits + ops.cast(self.b_beta, "float32"))

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attends; see the class."""
        if key is not None:
            _check_axes("key", key.shape, value.shape, before=1, after=1)
        for name, mask, before in (
            ("value_mask", value_mask, 1),
            ("key_mask", key_mask, 1),
            ("attention_mask", attention_mask, 2),
        ):
            if mask is not None:
                _check_axes(name, mask.shape, value.shape, before, after=0)

        grid = ops.shape(value)[1:-1]  # (H, W), or (S,)
        context, weights = super().call(
            query,
            _flat(value, 1, len(grid)),  # (B, S, Dv)
            _flat(key, 1, len(grid)),  # (B, S, Dk)
            query_mask,
            _flat(value_mask, 1, len(grid)),  # (B, S)
            _flat(key_mask, 1, len(grid)),  # (B, S)
            _flat(attention_mask, 2, len(grid)),  # (B, T, S)
            return_attention_scores=True,
            training=training,
            use_causal_mask=use_causal_mask,
        )
        if not return_attention_scores:
            return context
        return context, ops.reshape(weights, (*ops.shape(weights)[:2], *grid))  # (B, T, H, W)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units, "gate": self.gate}


def doubly_stochastic_penalty(
    attention: Any, mask: Any = None, target_mask: Any = None, strength: float = 1.0
) -> Any:
    """How far a caption is from looking at every part of its image once.

    `strength * mean over images of sum_s (1 - sum_t attention[b, t, s])^2`, over the real positions s, the
    real tokens t, and the images that have both.

    Equation 14 of the paper adds to the negative log-likelihood of a caption, summed over its tokens,
    lambda times this sum: beside a loss that is summed over tokens and averaged over images, `strength` is
    lambda (the authors' code has 1). `MaskedCrossentropy` averages over tokens instead; beside it, the
    same balance takes lambda divided by the mean number of tokens of a caption.

    A caption of T tokens has T to share among S positions, so the sum is never below (S - T)^2 / S.

    Args:
        attention: Float (B, T, S), attention weights before dropout.
        mask: Boolean (B, S), False at the padding of an image; None if there is none.
        target_mask: Boolean (B, T), False at the padding of a caption (`labels != 0`); None if there is
            none.
        strength: Factor of the penalty.

    Returns:
        The penalty, a float32 scalar; 0 for a batch of nothing but padding.

    Raises:
        ValueError: If attention is not of rank 3, or a mask is not boolean and of rank 2.

    Example:
        >>> attention = [[[0.5, 0.5], [1.0, 0.0]]]  # the sums over two tokens are 1.5 and 0.5
        >>> float(doubly_stochastic_penalty(attention))
        0.5

    Reference:
        Xu et al. 2015, "Show, Attend and Tell", section 4.2.1, equation 14.
    """
    attention = ops.cast(attention, "float32")
    if len(attention.shape) != 3:
        raise ValueError(
            "doubly_stochastic_penalty: expected attention of shape (B, T, S), received "
            f"{tuple(attention.shape)}. Flatten the axes of a grid to one, or take the mean over heads."
        )
    mask = _real("mask", mask, attention[:, 0])  # (B, S)
    target_mask = _real("target_mask", target_mask, attention[:, :, 0])  # (B, T)
    seen = ops.sum(ops.where(ops.expand_dims(target_mask, -1), attention, 0.0), axis=1)  # (B, S)
    images = ops.logical_and(ops.any(mask, axis=-1), ops.any(target_mask, axis=-1))  # (B,)
    mask = ops.logical_and(mask, ops.expand_dims(images, -1))  # (B, S)
    total = ops.sum(ops.where(mask, ops.square(1.0 - seen), 0.0))
    return strength * total / ops.maximum(ops.sum(ops.cast(images, "float32")), 1.0)


def _real(name: str, mask: Any, like: Any) -> Any:
    """The mask if it is one; True everywhere if it is None."""
    if mask is None:
        return ops.ones_like(like, dtype="bool")
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool" or len(mask.shape) != 2:
        raise ValueError(
            f"doubly_stochastic_penalty: expected a boolean {name} of rank 2, received dtype {dtype} and "
            f"shape {tuple(mask.shape)}. If 1 means real, pass `mask != 0`."
        )
    return mask


def _flat(x: Any, before: int, axes: int) -> Any:
    """Makes one axis, S, of `axes` axes that come after the first `before`; None stays None."""
    if x is None:
        return None
    shape = ops.shape(x)
    end = before + axes
    return ops.reshape(x, (*shape[:before], math.prod(shape[before:end]), *shape[end:]))


def _flat_shape(shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """(B, H, W, D) -> (B, S, D); other shapes stay, for `Attention` to judge."""
    if len(shape) != 4:
        return tuple(shape)
    batch, height, width, dim = shape
    return batch, None if None in (height, width) else height * width, dim


def _check_axes(
    name: str, shape: Sequence[int | None], value_shape: Sequence[int | None], before: int, after: int
) -> None:
    """Raises ValueError unless, between its other axes, a tensor has the axes of the values' positions."""
    grid = tuple(value_shape[1:-1])
    own = tuple(shape[before : len(shape) - after])
    if len(own) != len(grid) or any(None not in (a, b) and a != b for a, b in zip(own, grid, strict=True)):
        raise ValueError(
            f"SpatialAttention: expected a {name} for the positions {grid} of the values, which have the "
            f"shape {tuple(value_shape)}; received the shape {tuple(shape)}. Give both the same positions, "
            "either as a grid or flat."
        )
