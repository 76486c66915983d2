"""Sub-words cut by SentencePiece and numbered by a vocabulary of their own, as Marian has them."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from attention_zoo.models.sentencepiece_tokenizer import parse, sub_words
from attention_zoo.models.tokenizer import SPECIAL_PIECES, UNKNOWN_ID, Tokenizer

_MODEL_FILE = "sentencepiece.model"
_VOCABULARY_FILE = "vocabulary.json"
# What may say, at the start of a text, into which language to translate: ">>fra<<".
_LANGUAGE = r"^>>[^<>\s]+<<"


@keras.saving.register_keras_serializable(package="attention_zoo")
class MarianTokenizer(Tokenizer):
    """Cuts raw text by a SentencePiece model and looks the pieces up in a vocabulary.

    Marian's translation models know both apart: the model of a language cuts its text, and one vocabulary,
    often of two languages together, numbers the pieces. Pieces that the vocabulary does not have become
    unknown. A language token, ">>fra<<", at the start of a text stays whole if the vocabulary has it.

    Args:
        model: A serialized SentencePiece model; its own ids are of no use. None makes an empty tokenizer,
            which loading a saved model fills.
        vocabulary: The known pieces, without the special ones; the first has id 4. None with no model.
        **kwargs: Arguments of `Tokenizer`.

    Raises:
        ValueError: If only one of both is there, `model` is damaged, or a piece is no string, is repeated or
            is special ("<pad>", "<s>", "</s>", "<unk>").
        ImportError: If tensorflow_text is not installed.

    Example:
        >>> from attention_zoo.models import SentencePieceTokenizer
        >>> model = SentencePieceTokenizer.train(["the cat sat", "the cat ran"], 16).model
        >>> tokenizer = MarianTokenizer(model, [">>fra<<", "▁", "the", "t", "c", "a"])
        >>> ids = tokenizer.tokenize([">>fra<< t t"])
        >>> ids.to_list()
        [[4, 5, 7, 5, 7]]
        >>> tokenizer.detokenize(ids[:, 1:].to_tensor()).numpy()[0]
        b't t'

    Reference:
        Junczys-Dowmunt et al. 2018, "Marian: Fast Neural Machine Translation in C++".
    """

    def __init__(
        self, model: bytes | None = None, vocabulary: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.model = None
        self.vocabulary = None
        if (model is None) != (vocabulary is None):
            raise ValueError(
                "MarianTokenizer: expected a SentencePiece model and a vocabulary, or neither, received only "
                + ("a vocabulary" if model is None else "a model")
            )
        if model is not None:
            self._set_model(model, vocabulary)

    def save_assets(self, folder: str) -> None:
        """Writes the model and the vocabulary; Keras calls this when it saves a model."""
        self._require_pieces()
        pathlib.Path(folder, _MODEL_FILE).write_bytes(self.model)
        text = json.dumps(self.vocabulary, ensure_ascii=False, indent=0)
        pathlib.Path(folder, _VOCABULARY_FILE).write_text(text, encoding="utf-8")

    def load_assets(self, folder: str) -> None:
        """Reads both files; Keras calls this when it loads a model."""
        text = pathlib.Path(folder, _VOCABULARY_FILE).read_text(encoding="utf-8")
        self._set_model(pathlib.Path(folder, _MODEL_FILE).read_bytes(), json.loads(text))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, but neither model nor vocabulary: those are assets."""
        return {**super().get_config(), "model": None, "vocabulary": None}

    def _set_model(self, model: bytes, vocabulary: Sequence[str]) -> None:
        parse(model, "MarianTokenizer", "SentencePiece model")
        _check_vocabulary(vocabulary)
        self._sub_words = sub_words(model, tf.string, "MarianTokenizer")
        self.model = model
        # A tuple: Keras would wrap a list.
        self.vocabulary = tuple(vocabulary)
        self._set_pieces([*SPECIAL_PIECES, *self.vocabulary])
        with tf.init_scope():  # as in _set_pieces
            # The special pieces are not in the table: "</s>" in a text does not end it.
            first = len(SPECIAL_PIECES)
            ids = tf.range(first, first + len(self.vocabulary), dtype=tf.int32)
            entries = tf.lookup.KeyValueTensorInitializer(tf.constant(self.vocabulary, tf.string), ids)
            self._table = tf.lookup.StaticHashTable(entries, default_value=UNKNOWN_ID)

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        rest = tf.strings.regex_replace(texts, _LANGUAGE, "", replace_global=False)
        length = tf.strings.length(texts) - tf.strings.length(rest)  # (B,), in bytes
        language = tf.strings.substr(texts, tf.zeros_like(length), length)
        language = self._table.lookup(language)  # (B,), unknown for ""
        known = language != UNKNOWN_ID
        pieces = self._sub_words.tokenize(tf.where(known, rest, texts))
        ids = tf.ragged.map_flat_values(self._table.lookup, pieces)
        return tf.concat([tf.ragged.boolean_mask(language[:, None], known[:, None]), ids], axis=1)

    def _join(self, ids: tf.RaggedTensor) -> tf.Tensor:
        text = self._sub_words.detokenize(self.pieces(ids))
        # What SentencePiece does not know it leaves as it is, the sign for a space included.
        return tf.strings.strip(tf.strings.regex_replace(text, "▁", " "))


def _check_vocabulary(vocabulary: Sequence[str]) -> None:
    if isinstance(vocabulary, str):
        raise ValueError(f"MarianTokenizer: expected a list of pieces, received the string {vocabulary!r}")
    if not vocabulary:
        raise ValueError("MarianTokenizer: expected at least one piece, received none")
    seen = set(SPECIAL_PIECES)
    for piece in vocabulary:
        if not isinstance(piece, str) or not piece or piece in seen:
            raise ValueError(
                f"MarianTokenizer: expected different pieces, none of them in {SPECIAL_PIECES}, received "
                f"{piece!r}" + (" a second time" if piece in seen else "")
            )
        seen.add(piece)
