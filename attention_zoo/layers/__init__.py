"""Attention layers, usable in any Keras model."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Attention": "attention",
        "AdditiveAttention": "additive_attention",
        "LuongAttention": "luong_attention",
        "MultiHeadAttention": "multi_head_attention",
        "SpatialAttention": "spatial_attention",
        "doubly_stochastic_penalty": "spatial_attention",
        "ConvSelfAttention": "conv_self_attention",
        "Dropout": "dropout",
        "TokenEmbedding": "token_embedding",
        "PositionalEncoding": "positional_encoding",
        "LearnedPositionEmbedding": "learned_position_embedding",
        "FeedForward": "feed_forward",
        "TransformerEncoderBlock": "transformer_encoder_block",
        "TransformerDecoderBlock": "transformer_decoder_block",
    },
)
