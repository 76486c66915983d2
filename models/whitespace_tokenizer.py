"""Words between spaces."""

import collections
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from attention_zoo.models.tokenizer import (
    SPECIAL_PIECES,
    UNKNOWN_ID,
    Tokenizer,
    training_texts,
    without_special,
)

logger = logging.getLogger("attention_zoo")

_FILE = "vocabulary.txt"
# ASCII white space, as tf.strings.split has it. A no-break space, say, may be part of a word.
_WORD = re.compile(r"[^ \t\n\v\f\r]+")


@keras.saving.register_keras_serializable(package="attention_zoo")
class WhitespaceTokenizer(Tokenizer):
    """Takes the words between spaces as tokens: for text that is tokenized already.

    Args:
        vocabulary: The known words, without the special ones; the first has id 4. None makes an empty
            tokenizer, which loading a saved model fills.
        **kwargs: Arguments of `Tokenizer`.

    Raises:
        ValueError: If there is no word, or one is repeated, is empty, has white space in it or is special
            ("<pad>", "<s>", "</s>", "<unk>").

    Example:
        >>> tokenizer = WhitespaceTokenizer(["good", "morning"])
        >>> tokenizer.tokenize(["good morning", "good night"]).to_list()
        [[4, 5], [4, 3]]
        >>> tokenizer.detokenize([[4, 5, 2, 0]]).numpy()
        array([b'good morning'], dtype=object)
    """

    def __init__(self, vocabulary: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary = None
        if vocabulary is not None:
            self._set_vocabulary(vocabulary)

    @classmethod
    def train(cls, texts: Iterable[str | os.PathLike], vocabulary_size: int) -> "WhitespaceTokenizer":
        """Keeps the most frequent words; of equally frequent ones, those that come first.

        Args:
            texts: Texts, or paths (`pathlib.Path`) of text files, plain or `.gz`, one text per line.
            vocabulary_size: Number of tokens at most, the four special ones included. If the texts do not
                have so many words, there are fewer, and the log says so.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If there is no text, or no room for a word.
            FileNotFoundError: If a file is missing.
        """
        words = vocabulary_size - len(SPECIAL_PIECES)
        if words < 1:
            raise ValueError(
                f"WhitespaceTokenizer: expected vocabulary_size > {len(SPECIAL_PIECES)} (the special "
                f"tokens), received {vocabulary_size}"
            )
        counts = collections.Counter(word for text in training_texts(texts) for word in _WORD.findall(text))
        for special in SPECIAL_PIECES:
            counts.pop(special, None)
        if len(counts) < words:
            logger.warning("WhitespaceTokenizer: the texts have only %d words, not %d.", len(counts), words)
        return cls([word for word, _ in counts.most_common(words)])

    def save_assets(self, folder: str) -> None:
        """Writes the vocabulary; Keras calls this when it saves a model."""
        self._require_pieces()
        pathlib.Path(folder, _FILE).write_bytes("\n".join(self.vocabulary).encode())

    def load_assets(self, folder: str) -> None:
        """Reads the vocabulary; Keras calls this when it loads a model."""
        self._set_vocabulary(pathlib.Path(folder, _FILE).read_bytes().decode().split("\n"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, but not the vocabulary: that is an asset."""
        return {**super().get_config(), "vocabulary": None}

    def _set_vocabulary(self, vocabulary: Sequence[str]) -> None:
        if isinstance(vocabulary, str):
            raise ValueError(
                f"WhitespaceTokenizer: expected a list of words, received the string {vocabulary!r}"
            )
        if not vocabulary:
            raise ValueError("WhitespaceTokenizer: expected at least one word, received none")
        # A tuple: Keras would wrap a list.
        self.vocabulary = tuple(vocabulary)
        seen = set(SPECIAL_PIECES)
        for word in self.vocabulary:
            if not isinstance(word, str) or not _WORD.fullmatch(word) or word in seen:
                raise ValueError(
                    "WhitespaceTokenizer: expected different words without white space, none of them in "
                    f"{SPECIAL_PIECES}, received {word!r}" + (" a second time" if word in seen else "")
                )
            seen.add(word)
        pieces = [*SPECIAL_PIECES, *self.vocabulary]
        self._set_pieces(pieces)
        # The special pieces are in neither table: "</s>" in a text does not end it.
        first = len(SPECIAL_PIECES)
        self._ids = {word.encode(): number for number, word in enumerate(self.vocabulary, first)}
        with tf.init_scope():  # as in _set_pieces
            keys = tf.constant(pieces[first:], tf.string)
            entries = tf.lookup.KeyValueTensorInitializer(keys, tf.range(first, len(pieces), dtype=tf.int32))
            self._table = tf.lookup.StaticHashTable(entries, default_value=UNKNOWN_ID)

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, see `tokenize`."""
        if self.preparation is not None:
            return super().ids_of(texts)
        self._require_pieces()
        # The white space at which bytes are split is that of tf.strings.split.
        words = (text.encode("utf-8", "replace").split() for text in texts)
        return [[self._ids.get(word, UNKNOWN_ID) for word in text] for text in words]

    def _texts(self, ids: np.ndarray) -> list[str]:
        return [" ".join(self._names[row]) for row in without_special(ids)]

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.ragged.map_flat_values(self._table.lookup, tf.strings.split(texts))

    def _join(self, ids: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(self.pieces(ids), axis=1, separator=" ")
