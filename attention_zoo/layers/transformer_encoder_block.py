"""One layer of a Transformer encoder."""

from typing import Any

import keras

from attention_zoo.layers.transformer_block import TransformerBlock
from attention_zoo.ops import masks


@keras.saving.register_keras_serializable(package="attention_zoo")
class TransformerEncoderBlock(TransformerBlock):
    """Self-attention and a feed-forward layer, each with a residual connection and normalization.

        x = norm(x + attention(x, x, x))
        x = norm(x + feed_forward(x))

    or, with `normalize_first`, x + attention(norm(x), ...) and x + feed_forward(norm(x)).

    Args:
        num_heads: H, the number of attention heads; must divide the width of the inputs.
        feed_forward_units: Width of the hidden layer.
        activation: "relu", "gelu", "swish" or another of Keras.
        normalize_first: Whether layers are normalized before attention and feed-forward ("pre-norm").
        dropout: Part of what attention and feed-forward add to drop in training.
        attention_dropout: Part of the attention weights to drop.
        activation_dropout: Part of the feed-forward hidden layer to drop.
        num_key_value_heads: See `MultiHeadAttention`.
        rotary: See `MultiHeadAttention`.
        equal_start: See `MultiHeadAttention`.
        epsilon: Added to the variance by the normalizations.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        x: Float (B, S, D).
        mask: Boolean (B, S), True at real positions, or (B, S, S), True where attention is allowed. Padded
            positions attend to nothing. Keras fills it in by itself from the mask of `x`.
        training: Whether dropout is active.
        return_attention: Whether the attention weights are returned as well.

    Returns:
        Float (B, S, D); if asked, a pair of it and the weights, float32 (B, H, S, S).

    Raises:
        ValueError: If a size is not positive, or the heads do not divide the width.

    Example:
        >>> block = TransformerEncoderBlock(num_heads=2, feed_forward_units=32)
        >>> block(keras.ops.ones((1, 5, 16))).shape
        TensorShape([1, 5, 16])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.1; Xiong et al. 2020, "On Layer
        Normalization in the Transformer Architecture", for `normalize_first`.
    """

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for inputs of this width."""
        self.build_sublayers(x_shape)

    def call(
        self, x: Any, mask: Any = None, training: bool | None = None, return_attention: bool = False
    ) -> Any:
        """Attends and transforms; see the class."""
        # Keras hands a mask that `x` carries on to the queries: an explicit one must mean the same.
        own_mask = mask if mask is not None and len(mask.shape) == 2 else None  # (B, S)
        mask = masks.combine_masks(mask)  # (B, 1, S) or (B, S, S)

        def attend(x: Any) -> tuple[Any, Any]:
            return self.attend(
                self.self_attention,
                x,
                x,
                return_attention,
                query_mask=own_mask,
                attention_mask=mask,
                training=training,
            )

        x, weights = self.residual(x, attend, self.self_attention_norm, training)
        x = self.transform(x, training)
        return (x, weights) if return_attention else x
