"""Text to token ids and back: what all tokenizers share."""

import gzip
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from attention_zoo.models import text_preparation

PAD_ID = 0
START_ID = 1
END_ID = 2
UNKNOWN_ID = 3

# How the special ids are written in vocabularies and pictures.
SPECIAL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")


class Tokenizer(keras.layers.Layer):
    """Base of the tokenizers: text to ids, ids to text, in the TensorFlow graph.

    A tokenizer runs in eager mode, in `tf.data`, in `tf.function` and in a SavedModel. It has no weights. It
    is a layer so that a model that holds one saves its vocabulary as an asset of the `.keras` file: the
    configuration leaves the vocabulary out. Ids 0 to 3 have the same meaning everywhere: padding, start,
    end and unknown.

    A subclass defines `_split` and `_join`, hands its pieces (the token strings, in the order of their ids,
    special ones first) to `_set_pieces`, and writes and reads them in `save_assets` and `load_assets`. Where
    Python can do the same as its graph, it defines `ids_of` and `_texts` too.

    Args:
        preparation: What is done to texts before they are cut into tokens: None for nothing, or
            "moses_lowercase", see `text_preparation`, so that models whose training text was lower-cased and
            tokenized by Moses read ordinary text too.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If there is no such preparation.
    """

    def __init__(self, preparation: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preparation = preparation
        self.built = True
        self._piece_strings: tf.Tensor | None = None
        self._names: np.ndarray | None = None
        self._compiled: _Compiled | None = None

    @property
    def preparation(self) -> str | None:
        """What is done to texts before they are cut into tokens; settable."""
        return self._preparation

    @preparation.setter
    def preparation(self, value: str | None) -> None:
        text_preparation.check_preparation(value)
        self._preparation = value
        self._compiled = None

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self._require_pieces().shape[0])

    def tokenize(self, texts: Any) -> tf.RaggedTensor:
        """Cuts texts into tokens. No special ids are added.

        Args:
            texts: string (B,), UTF-8. Bytes that are no UTF-8 become unknown tokens, never an error.

        Returns:
            int32 ragged (B, None); a row is empty if its text is.

        Raises:
            ValueError: If `texts` is no vector of strings.
        """
        self._require_pieces()
        try:
            texts = tf.convert_to_tensor(texts, tf.string)
        except (TypeError, ValueError):
            raise ValueError(
                f"{type(self).__name__}: expected a string tensor or a list of strings, received {texts!r}"
            ) from None
        if texts.shape.rank != 1:
            raise ValueError(
                f"{type(self).__name__}: expected strings of shape (B,), received shape {texts.shape}; "
                "put a single text into a list"
            )
        return self._split(self.prepare(texts))

    def prepare(self, texts: tf.Tensor) -> tf.Tensor:
        """Prepares texts as `preparation` says: string (B,) -> string (B,)."""
        return texts if self.preparation is None else text_preparation.moses_lowercase(texts)

    def detokenize(self, ids: Any) -> tf.Tensor:
        """Puts tokens together to text.

        Padding, start and everything from the first end on is left out. Unknown tokens stay visible.

        Args:
            ids: int (B, L).

        Returns:
            string (B,).
        """
        self._require_pieces()
        ids = tf.cast(ids, tf.int32)
        ended = tf.cumsum(tf.cast(ids == END_ID, tf.int32), axis=1) > 0  # (B, L)
        real = ~ended & (ids != PAD_ID) & (ids != START_ID)
        return self._join(tf.ragged.boolean_mask(ids, real))

    def pieces(self, ids: Any) -> tf.Tensor:
        """Names every token, for pictures.

        Args:
            ids: int (B, L).

        Returns:
            string (B, L): "" for padding, "<s>" for the start, "</s>" for the end, "<unk>" for unknown.
        """
        return tf.gather(self._require_pieces(), ids)

    def has_pieces_of(self, other: "Tokenizer") -> bool:
        """Whether the other is of the same kind and gives every id the same piece."""
        if other is self:
            return True
        if type(self) is not type(other) or self.vocabulary_size != other.vocabulary_size:
            return False
        return bool((self._require_pieces() == other._require_pieces()).numpy().all())

    # === For Python: the same, without the cost of many small operations ===

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, see `tokenize`."""
        values, splits = self._functions().tokenize(to_tensor(texts))
        values = values.numpy().tolist()
        return [values[start:end] for start, end in itertools.pairwise(splits.numpy())]

    def texts_of(self, ids: np.ndarray) -> np.ndarray:
        """The texts of ids, see `detokenize`: int (..., L) -> str (...)."""
        self._require_pieces()
        texts = self._texts(ids.reshape(-1, ids.shape[-1]))  # of (B, L)
        return np.array(texts, object).reshape(ids.shape[:-1])

    def names_of(self, ids: np.ndarray) -> np.ndarray:
        """The names of tokens, see `pieces`: int (...) -> str (...)."""
        self._require_pieces()
        return self._names[ids]

    def _texts(self, ids: np.ndarray) -> Sequence[str]:
        """The texts of ids, int (B, L) -> B of str."""
        return to_strings(self._functions().detokenize(tf.constant(ids, tf.int32)))

    def _functions(self) -> "_Compiled":
        if self._compiled is None:
            self._compiled = _Compiled(self)
        return self._compiled

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "preparation": self.preparation}

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Ids of the texts: string (B,) -> int32 ragged (B, None)."""
        raise NotImplementedError

    def _join(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Text of ids, of which unknown alone is special: int32 ragged (B, None) -> string (B,)."""
        raise NotImplementedError

    def _set_pieces(self, pieces: list[str]) -> None:
        """Takes the strings of all ids, in order."""
        with tf.init_scope():  # an eager tensor, wherever the tokenizer is made: all graphs may use it
            self._piece_strings = tf.constant(["", *pieces[1:]])  # padding has no name in a picture
        self._names = np.array(["", *pieces[1:]], object)
        self._compiled = None

    def _require_pieces(self) -> tf.Tensor:
        if self._piece_strings is None:
            raise ValueError(
                f"{type(self).__name__}: expected a vocabulary, received none yet; make the tokenizer with "
                f"{type(self).__name__}.train(...), or load the model that holds it"
            )
        return self._piece_strings


class _Compiled:
    """A tokenizer's functions as graphs, which eager operations are ten times as slow as.

    A plain object, so that a SavedModel of the tokenizer does not hold it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        def tokenize(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ids = tokenizer.tokenize(texts)
            return ids.values, ids.row_splits

        texts, ids = tf.TensorSpec((None,), tf.string), tf.TensorSpec((None, None), tf.int32)
        self.tokenize = tf.function(tokenize, autograph=False).get_concrete_function(texts)
        self.detokenize = tf.function(tokenizer.detokenize, autograph=False).get_concrete_function(ids)


def without_special(ids: np.ndarray) -> list[list[int]]:
    """What is text of ids, (B, L): no padding, no start, and nothing from the first end on."""
    rows = (row[: row.index(END_ID)] if END_ID in row else row for row in ids.tolist())
    return [[i for i in row if i not in (PAD_ID, START_ID)] for row in rows]


def to_tensor(texts: Sequence[str]) -> tf.Tensor:
    """Strings as a tensor; "?" for lone surrogates, which UTF-8 does not have."""
    return tf.constant([text.encode("utf-8", "replace") for text in texts], tf.string, [len(texts)])


def to_strings(texts: tf.Tensor) -> np.ndarray:
    """A string tensor as an array of str."""
    return np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(texts.numpy())


def read_lines(path: str | os.PathLike) -> list[str]:
    r"""Reads a text file, plain or gzipped (`.gz`), UTF-8, with or without byte order mark.

    Lines end at "\n" and nowhere else: other separators, such as U+2028, may stand inside a sentence, and
    would put the two files of a parallel corpus out of step.

    Args:
        path: The file.

    Returns:
        The lines, without white space at their ends.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, is not UTF-8, or is a damaged gzip file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a text file, found none")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: expected a gzip file, received a damaged one ({error})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: expected UTF-8 text, received byte 0x{data[error.start]:02x} in line {line}; convert "
            "the file to UTF-8"
        ) from None
    if not text:
        raise ValueError(f"{path}: expected text, received an empty file")
    return [line.rstrip() for line in text.removesuffix("\n").split("\n")]


def training_texts(texts: Iterable[str | os.PathLike]) -> Iterator[str]:
    """The texts that a vocabulary is learned from, one by one.

    Args:
        texts: Strings; each path (`pathlib.Path`) among them stands for the lines of that file.

    Yields:
        Texts that are not blank.

    Raises:
        ValueError: If `texts` is not such an iterable, or holds no text at all.
    """
    if isinstance(texts, str | bytes | os.PathLike):
        raise ValueError(
            f"train: expected an iterable of texts or paths, received {texts!r}; put it into a list"
        )
    found = False
    for item in texts:
        if not isinstance(item, str | os.PathLike):
            raise ValueError(f"train: expected texts (str) or files (pathlib.Path), received {item!r}")
        for text in read_lines(item) if isinstance(item, os.PathLike) else [item]:
            if text.strip():
                found = True
                yield text
    if not found:
        raise ValueError(
            "train: expected texts to learn a vocabulary from, received none, or only blank ones"
        )
