"""Encoders, decoders, search and the prebuilt models they compose into."""

from attention_zoo._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Tokenizer": "tokenizer",
        "SentencePieceTokenizer": "sentencepiece_tokenizer",
        "WhitespaceTokenizer": "whitespace_tokenizer",
        "MarianTokenizer": "marian_tokenizer",
        "RNNEncoder": "rnn_encoder",
        "TransformerEncoder": "transformer_encoder",
        "ImageEncoder": "image_encoder",
        "RNNDecoder": "rnn_decoder",
        "TransformerDecoder": "transformer_decoder",
        "EncoderDecoder": "encoder_decoder",
        "Translator": "translator",
        "Captioner": "captioner",
        "Ensemble": "ensemble",
        "Translation": "translation",
        "Caption": "caption",
        "search": "search",
        "presets": "presets",
        "load": "saving",
        "load_marian": "marian_import",
        "export_ctranslate2": "ctranslate2_export",
        "plot_attention": "plotting",
        "plot_heads": "plotting",
        "plot_attention_on_image": "image_plotting",
    },
)
