"""Bahdanau's additive attention."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.attention import Attention
from attention_zoo.ops import scores
from attention_zoo.ops.linear import linear


@keras.saving.register_keras_serializable(package="attention_zoo")
class AdditiveAttention(Attention):
    """Attention that scores with a hidden layer over query and key: Bahdanau's.

        e_ts = v' tanh(W q_t + U k_s)

    and with `normalize`, where the length of v is a weight g of its own,

        e_ts = (g v / |v|)' tanh(W q_t + U k_s + b)

    Unlike `keras.layers.AdditiveAttention` it has the projections W and U, so queries and keys may have
    different widths, and its memory does not grow with T x S x units.

    Args:
        units: Width of the hidden layer.
        normalize: Whether to normalize v, and add the bias b.
        dropout: Part of the attention weights to drop in training.
        seed: Seed of the dropout; None draws one from Keras' global generator.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        See `Attention`.

    Returns:
        See `Attention`.

    Raises:
        ValueError: If `units` is not positive, or shapes do not fit each other.

    Example:
        >>> import numpy as np
        >>> layer = AdditiveAttention(units=8)
        >>> query, value = np.ones((2, 3, 5)), np.ones((2, 4, 6))
        >>> context, weights = layer(query, value, return_attention_scores=True)
        >>> context.shape, weights.shape
        (TensorShape([2, 3, 6]), TensorShape([2, 3, 4]))

    Reference:
        Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate",
        section 3.1 and appendix A.1.2. Salimans and Kingma 2016, "Weight Normalization".
    """

    def __init__(
        self,
        units: int,
        normalize: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout=dropout, seed=seed, **kwargs)
        if units < 1:
            raise ValueError(f"AdditiveAttention: expected units of at least 1, received {units}.")
        self.units = units
        self.normalize = normalize

    def build_weights(self, query_dim: int, key_dim: int, value_dim: int) -> None:
        """Makes W, U and v, and g and b if v is normalized."""
        self.W = self.add_weight((query_dim, self.units), "glorot_uniform", name="W")
        self.U = self.add_weight((key_dim, self.units), "glorot_uniform", name="U")
        # Scores are float32 under any policy, so Keras must not cast what makes them.
        self.v = self.add_weight((self.units,), "glorot_uniform", name="v", autocast=False)
        if self.normalize:
            length = keras.initializers.Constant(self.units**-0.5)
            self.g = self.add_weight((), length, name="g", autocast=False)
            self.b = self.add_weight((self.units,), "zeros", name="b")

    def project_query(self, query: Any) -> Any:
        """W q: (B, T, Dq) -> (B, T, U)."""
        return linear(query, ops.cast(self.W, self.compute_dtype))

    def project_key(self, key: Any) -> Any:
        """U k, plus b if v is normalized: (B, S, Dk) -> (B, S, U)."""
        projected = ops.matmul(key, ops.cast(self.U, self.compute_dtype))
        return projected + ops.cast(self.b, self.compute_dtype) if self.normalize else projected

    def compute_scores(self, query: Any, key: Any) -> Any:
        """(B, T, U), (B, S, U) -> float32 (B, T, S)."""
        v = ops.cast(self.v, "float32")
        if self.normalize:
            v = ops.cast(self.g, "float32") * v / ops.norm(v)
        return scores.additive_scores(query, key, v)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units, "normalize": self.normalize}
