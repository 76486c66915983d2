"""Attention layers, usable in any Keras model."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Attention": "attention",
        "AdditiveAttention": "additive_attention",
        "LuongAttention": "luong_attention",
        "Dropout": "dropout",
        "TokenEmbedding": "token_embedding",
    },
)
