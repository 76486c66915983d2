"""Pure functions: masks, scores, attending, recurrence."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "padding_mask": "masks",
        "causal_mask": "masks",
        "combine_masks": "masks",
        "dot_scores": "scores",
        "scaled_dot_scores": "scores",
        "general_scores": "scores",
        "additive_scores": "scores",
        "concat_scores": "scores",
        "attend": "attention",
        "attention_weights": "attention",
        "attend_in_chunks": "chunked_attention",
        "scan": "recurrence",
        "random_bits": "random",
        "keep_mask": "random",
        "sinusoids": "positions",
        "rotate": "positions",
    },
)
