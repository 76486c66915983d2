"""What the blocks of Transformer encoders and decoders share."""

from collections.abc import Callable
from typing import Any

import keras

from attention_zoo.layers.dropout import Dropout
from attention_zoo.layers.feed_forward import FeedForward
from attention_zoo.layers.multi_head_attention import MultiHeadAttention


class TransformerBlock(keras.layers.Layer):
    """Base of both blocks: self-attention, feed-forward, and how they are normalized and added.

    Args:
        num_heads: See `TransformerEncoderBlock`, as for all others.
        feed_forward_units: Width of the hidden layer.
        activation: Of the hidden layer.
        normalize_first: Whether to normalize before a sublayer, not after.
        dropout: Rate on what a sublayer adds.
        attention_dropout: Rate on the attention weights.
        activation_dropout: Rate on the hidden layer.
        num_key_value_heads: See `MultiHeadAttention`.
        rotary: See `MultiHeadAttention`.
        equal_start: See `MultiHeadAttention`.
        epsilon: Of the normalizations.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Raises:
        ValueError: If a size is not positive, or numbers of heads do not fit.
    """

    def __init__(
        self,
        num_heads: int,
        feed_forward_units: int,
        activation: Any = "relu",
        normalize_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        equal_start: bool = False,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"{type(self).__name__}: expected num_heads of at least 1, received {num_heads}")
        if num_key_value_heads is not None and (num_key_value_heads < 1 or num_heads % num_key_value_heads):
            raise ValueError(
                f"{type(self).__name__}: expected num_key_value_heads to divide num_heads, received "
                f"{num_key_value_heads} and {num_heads}"
            )
        self.num_heads = num_heads
        self.feed_forward_units = feed_forward_units
        self.activation = keras.activations.get(activation)
        self.normalize_first = normalize_first
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.num_key_value_heads = num_key_value_heads
        self.rotary = rotary
        self.equal_start = equal_start
        self.epsilon = epsilon
        self.supports_masking = True
        self.feed_forward = FeedForward(
            feed_forward_units,
            self.activation,
            activation_dropout,
            name="feed_forward",
            dtype=self.dtype_policy,
        )
        self.self_attention_norm = self.make_norm("self_attention_norm")
        self.feed_forward_norm = self.make_norm("feed_forward_norm")
        self.residual_dropout = Dropout(dropout, name="residual_dropout", dtype=self.dtype_policy)

    def make_norm(self, name: str) -> keras.layers.Layer:
        """A layer normalization."""
        return keras.layers.LayerNormalization(epsilon=self.epsilon, name=name, dtype=self.dtype_policy)

    def make_attention(self, name: str, width: int, rotary: bool) -> MultiHeadAttention:
        """An attention whose heads share the width of the inputs."""
        if width % self.num_heads:
            raise ValueError(
                f"{type(self).__name__}: expected a width that num_heads={self.num_heads} divides, received "
                f"inputs of width {width}"
            )
        return MultiHeadAttention(
            self.num_heads,
            width // self.num_heads,
            dropout=self.attention_dropout,
            num_key_value_heads=self.num_key_value_heads,
            rotary=rotary,
            equal_start=self.equal_start,
            name=name,
            dtype=self.dtype_policy,
        )

    def build_sublayers(self, x_shape: tuple[int | None, ...]) -> None:
        """Makes the weights of what both blocks have."""
        self.self_attention = self.make_attention("self_attention", x_shape[-1], self.rotary)
        self.self_attention.build(x_shape, x_shape)
        for layer in (self.feed_forward, self.self_attention_norm, self.feed_forward_norm):
            layer.build(x_shape)

    def residual(
        self, x: Any, sublayer: Callable[[Any], tuple[Any, Any]], norm: keras.layers.Layer, training: Any
    ) -> tuple[Any, Any]:
        """Adds to `x` what the sublayer makes of it, normalized before or after.

        Args:
            x: Float (B, T, D).
            sublayer: Function from the (normalized) input to a pair: what is added, and anything else.
            norm: The normalization.
            training: Whether dropout is active.

        Returns:
            The sum (B, T, D), and the other thing that the sublayer returned.
        """
        added, other = sublayer(norm(x) if self.normalize_first else x)
        x = x + self.residual_dropout(added, training=training)
        return (x if self.normalize_first else norm(x)), other

    def attend(
        self, attention: MultiHeadAttention, x: Any, memory: Any, return_attention: bool, **kwargs: Any
    ) -> tuple[Any, Any]:
        """The output of an attention, and its weights or None: where nobody asks, it need not keep them."""
        result = attention(x, memory, return_attention_scores=return_attention, **kwargs)
        return result if return_attention else (result, None)

    def transform(self, x: Any, training: bool | None) -> Any:
        """The feed-forward half: (B, T, D) -> (B, T, D)."""
        x, _ = self.residual(
            x, lambda x: (self.feed_forward(x, training=training), None), self.feed_forward_norm, training
        )
        return x

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The output keeps a mask of its positions, (B, T); one of pairs of positions ends here."""
        return previous_mask if previous_mask is None or len(previous_mask.shape) == 2 else None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "feed_forward_units": self.feed_forward_units,
            "activation": keras.activations.serialize(self.activation),
            "normalize_first": self.normalize_first,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "num_key_value_heads": self.num_key_value_heads,
            "rotary": self.rotary,
            "equal_start": self.equal_start,
            "epsilon": self.epsilon,
        }
