"""Luong's global attention."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.attention import Attention
from attention_zoo.ops import scores
from attention_zoo.ops.linear import linear

_SCORES = ("dot", "general", "concat")


@keras.saving.register_keras_serializable(package="attention_zoo")
class LuongAttention(Attention):
    """Attention with one of Luong's three scores.

        dot:      e_ts = q_t' k_s                     (no weights; equal widths)
        general:  e_ts = q_t' W k_s
        concat:   e_ts = v' tanh(W [q_t; k_s])

    Args:
        score: "dot", "general" or "concat".
        units: Width of the hidden layer of "concat"; None for the other two.
        scale: Whether to multiply the scores by a learned number, 1 at first.
        dropout: Part of the attention weights to drop in training.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        See `Attention`.

    Returns:
        See `Attention`.

    Raises:
        ValueError: If the score is unknown, `units` is missing or of no use, or, with "dot", queries and
            keys differ in width.

    Example:
        >>> import numpy as np
        >>> layer = LuongAttention("general")
        >>> layer(np.ones((2, 3, 5)), np.ones((2, 4, 6))).shape
        TensorShape([2, 3, 6])

    Reference:
        Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation",
        section 3.1.
    """

    def __init__(
        self,
        score: str = "dot",
        units: int | None = None,
        scale: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, **kwargs)
        if score not in _SCORES:
            raise ValueError(f"LuongAttention: expected a score among {_SCORES}, received {score!r}.")
        if score == "concat" and (units is None or units < 1):
            raise ValueError(
                f'LuongAttention: expected units of at least 1 for the score "concat", received {units}.'
            )
        if score != "concat" and units is not None:
            raise ValueError(
                f"LuongAttention: expected no units for the score {score!r}, received {units}. "
                'Leave units out, or choose score="concat".'
            )
        self.score = score
        self.units = units
        self.scale = scale

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes W for "general" and "concat", v for "concat", and the learned scale."""
        # Scores are float32 under any policy, so Keras must not cast v and g, which make them.
        if self.score == "dot":
            super().build_weights(query_dim, key_dim, value_dim)  # checks that the widths are equal
        elif self.score == "general":
            self.W = self.add_weight((query_dim, key_dim), "glorot_uniform", name="W")
        else:
            self.W = self.add_weight((query_dim + key_dim, self.units), "glorot_uniform", name="W")
            self.v = self.add_weight((self.units,), "glorot_uniform", name="v", autocast=False)
        if self.scale:
            self.g = self.add_weight((), "ones", name="g", autocast=False)

    def project_query(self, query: Any) -> Any:
        """(B, T, Dq) -> (B, T, Dq), or (B, T, units) for "concat"."""
        if self.score != "concat":
            return query
        W = ops.cast(self.W, self.compute_dtype)
        return linear(query, W[: query.shape[-1]])

    def project_key(self, key: Any) -> Any:
        """(B, S, Dk) -> (B, S, Dq), or (B, S, units) for "concat"."""
        if self.score == "dot":
            return key
        W = ops.cast(self.W, self.compute_dtype)
        if self.score == "general":
            return ops.matmul(key, ops.transpose(W))  # k' W': the memory is projected once, not each query
        return ops.matmul(key, W[-key.shape[-1] :])

    def compute_scores(self, query: Any, key: Any) -> Any:
        """Projected queries and keys -> float32 (B, T, S)."""
        if self.score == "concat":
            result = scores.additive_scores(query, key, ops.cast(self.v, "float32"))
        else:
            result = scores.dot_scores(query, key)
        return ops.cast(self.g, "float32") * result if self.scale else result

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "score": self.score, "units": self.units, "scale": self.scale}
