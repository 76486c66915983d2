"""Transformer encoder: token ids to one annotation per source position."""

from typing import Any

import keras
from keras import ops

from attention_zoo.layers.transformer_encoder_block import TransformerEncoderBlock
from attention_zoo.models.transformer_stack import TransformerStack
from attention_zoo.ops.masks import padding_mask


@keras.saving.register_keras_serializable(package="attention_zoo")
class TransformerEncoder(TransformerStack):
    """Reads a sentence with self-attention: every position sees every other one.

        x_0 = dropout(sqrt(D) E[id] + position)
        x_n = block_n(x_{n-1})

    Args:
        vocabulary_size: Number of token ids.
        layers: N, the number of blocks.
        units: D, the width of embeddings and blocks.
        feed_forward_units: Width of the hidden layers.
        num_heads: H, the number of attention heads.
        positions: "sinusoidal", "learned" (a table of `max_positions`) or "rotary" (in the attention).
        max_positions: Most tokens of a sentence with learned positions; of no use otherwise.
        activation: Of the hidden layers: "relu", "gelu", "swish" or another of Keras.
        normalize_first: Whether blocks normalize before attention and feed-forward; the outputs are
            normalized at the end then.
        dropout: Rate on embeddings and on what attention and feed-forward add.
        attention_dropout: Rate on the attention weights.
        activation_dropout: Rate on the hidden layers.
        num_key_value_heads: See `MultiHeadAttention`.
        scale_embeddings: Whether embeddings are multiplied by sqrt(D), see `TokenEmbedding`.
        equal_start: See `MultiHeadAttention`.
        position_order: Of sinusoidal positions: "interleaved" or "halves", see `PositionalEncoding`.
        max_wavelength: Of sinusoidal positions, see `PositionalEncoding`.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        ids: int (B, S), padded with 0.
        training: Whether dropout is active.
        return_attention: Whether the memory has the attention as well.

    Returns:
        The memory, a dict of "values": (B, S, D), "mask": bool (B, S), True at real tokens, "summary":
        (B, D), the mean over the real tokens, and if asked, "attention": float32 (B, N, H, S, S), 0 at
        padding.

    Raises:
        ValueError: If an option is unknown, a size is not positive, or the heads do not divide the width.

    Example:
        >>> encoder = TransformerEncoder(100, layers=2, units=16, feed_forward_units=32, num_heads=2)
        >>> encoder(ops.array([[5, 6, 2, 0]]))["values"].shape
        TensorShape([1, 4, 16])

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.
    """

    has_attention = True
    block_class = TransformerEncoderBlock

    def build(self, ids_shape: Any = None) -> None:
        """Creates every weight; the shape of the ids does not matter."""
        self.build_stack()
        self.built = True

    def call(self, ids: Any, training: bool | None = None, return_attention: bool = False) -> dict[str, Any]:
        """Encodes a batch of sentences."""
        mask = padding_mask(ids)  # (B, S)
        x = self.embedding_dropout(self.embed(ids), training=training)  # (B, S, D)
        attention = []
        for block in self.blocks:
            x = block(x, mask=mask, training=training, return_attention=return_attention)
            if return_attention:
                x, weights = x
                attention.append(weights)
        if self.output_norm is not None:
            x = self.output_norm(x)
        real = ops.expand_dims(ops.cast(mask, "float32"), -1)  # (B, S, 1)
        total = ops.sum(ops.cast(x, "float32") * real, axis=1)  # (B, D), float32 as it may be of many
        summary = total / ops.maximum(ops.sum(real, axis=1), 1)
        memory = {"values": x, "mask": mask, "summary": ops.cast(summary, x.dtype)}
        if return_attention:
            memory["attention"] = ops.stack(attention, axis=1)  # (B, N, H, S, S)
        return memory
