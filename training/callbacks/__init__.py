"""Keras callbacks for training sequence-to-sequence models."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Progress": "progress",
        "Resume": "resume",
        "CheckpointAveraging": "checkpoint_averaging",
        "TranslationScore": "translation_score",
        "CaptionScore": "caption_score",
        "SampleTranslations": "sample_translations",
    },
)
