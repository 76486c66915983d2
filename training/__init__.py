"""Data pipelines, callbacks, evaluation, recipes and the command line."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ParallelText": "text_data",
        "TranslationBatches": "batching",
        "RiskBatches": "risk_batching",
        "CaptionedImages": "image_data",
        "CaptionBatches": "caption_batching",
        "cached_features": "feature_cache",
        "generated_dates": "generated_dates",
        "generated_scenes": "generated_scenes",
        "callbacks": "callbacks",
        "evaluate_translations": "evaluation",
        "bleu_by_length": "evaluation",
        "sentence_costs": "evaluation",
        "evaluate_captions": "caption_metrics",
        "strategy": "strategies",
        "Recipe": "recipe",
        "run": "run",
        "publish": "publishing",
    },
)
