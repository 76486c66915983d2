"""Sub-words learned by SentencePiece."""

import hashlib
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Literal

import keras
import numpy as np
import sentencepiece
import tensorflow as tf

from attention_zoo.models.tokenizer import (
    END_ID,
    PAD_ID,
    SPECIAL_PIECES,
    START_ID,
    UNKNOWN_ID,
    Tokenizer,
    to_strings,
    to_tensor,
    training_texts,
    without_special,
)

logger = logging.getLogger("attention_zoo")

_FILE = "sentencepiece.model"
_IDS = {"pad_id": PAD_ID, "bos_id": START_ID, "eos_id": END_ID, "unk_id": UNKNOWN_ID}


@keras.saving.register_keras_serializable(package="attention_zoo")
class SentencePieceTokenizer(Tokenizer):
    """Cuts raw text into sub-words that were learned from text; any language, no pre-tokenization.

    Text is normalized, each space becomes the character "▁", and the most probable (unigram) or the merged
    (BPE) pieces are found. Putting the pieces together gives back the normalized text. Learned with the
    sentencepiece package, applied in the graph by tensorflow_text.

    Args:
        model: A serialized SentencePiece model whose special ids are 0 to 3 (padding, start, end,
            unknown), as `train` makes it. None makes an empty tokenizer, which loading a saved model fills.
        **kwargs: Arguments of `Tokenizer`.

    Raises:
        ValueError: If `model` is damaged, or numbers its special ids otherwise.
        ImportError: If tensorflow_text is not installed.

    Example:
        >>> texts = ["the cat sat", "the dog sat", "the cat ran"]
        >>> tokenizer = SentencePieceTokenizer.train(texts, vocabulary_size=16)
        >>> ids = tokenizer.tokenize(["the cat ran"])
        >>> tokenizer.detokenize(ids.to_tensor()).numpy()[0]
        b'the cat ran'

    Reference:
        Kudo and Richardson 2018, "SentencePiece: A simple and language independent subword tokenizer and
        detokenizer for Neural Text Processing".
    """

    def __init__(self, model: bytes | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = None
        if model is not None:
            self._set_model(model)

    @classmethod
    def train(
        cls,
        texts: Iterable[str | os.PathLike],
        vocabulary_size: int,
        *,
        model_type: Literal["unigram", "bpe", "char"] = "unigram",
        normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc",
        character_coverage: float = 1.0,
        split_digits: bool = False,
    ) -> "SentencePieceTokenizer":
        """Learns sub-words. The same texts give the same tokenizer.

        Args:
            texts: Texts, or paths (`pathlib.Path`) of text files, plain or `.gz`, one text per line.
            vocabulary_size: Number of pieces to learn, the four special ones included. If the texts do not
                support so many, there are fewer, and the log says so.
            model_type: "unigram" (a language model over pieces), "bpe" (merges of frequent pairs) or "char"
                (the most frequent characters).
            normalization: Unicode normalization: "nfkc", with more white space unified ("nmt_nfkc"), with
                case folded ("..._cf"), or "identity" for text that is normalized already.
            character_coverage: Share of the characters in the texts that the pieces must cover; rarer ones
                become unknown. 0.9995 suits languages with thousands of characters.
            split_digits: Whether each digit is a piece of its own.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If there is no text, or the vocabulary is smaller than the number of characters.
            FileNotFoundError: If a file is missing.
        """
        if vocabulary_size <= len(SPECIAL_PIECES):
            raise ValueError(
                f"SentencePieceTokenizer: expected vocabulary_size > {len(SPECIAL_PIECES)} (the special "
                f"pieces), received {vocabulary_size}"
            )
        # A list, because errors that an iterator raises inside the trainer come back mangled.
        texts = list(training_texts(texts))
        trained = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=trained,
                vocab_size=vocabulary_size,
                model_type=model_type,
                normalization_rule_name=normalization,
                character_coverage=character_coverage,
                split_digits=split_digits,
                hard_vocab_limit=False,
                max_sentence_length=1_000_000,  # bytes; longer texts would be left out in silence
                unk_surface="⁇",  # the default has spaces around it
                minloglevel=2,  # errors only: each of them is raised anyway
                pad_piece=SPECIAL_PIECES[PAD_ID],
                bos_piece=SPECIAL_PIECES[START_ID],
                eos_piece=SPECIAL_PIECES[END_ID],
                unk_piece=SPECIAL_PIECES[UNKNOWN_ID],
                **_IDS,
            )
        except RuntimeError as error:
            raise ValueError(_explain(error, vocabulary_size)) from None
        tokenizer = cls(trained.getvalue())
        if tokenizer.vocabulary_size < vocabulary_size:
            logger.warning(
                "SentencePieceTokenizer: the texts support only %d pieces, not %d.",
                tokenizer.vocabulary_size,
                vocabulary_size,
            )
        return tokenizer

    def tokenize_with_dropout(self, texts: Iterable[str], rate: float, seed: int) -> tf.RaggedTensor:
        """Cuts texts into tokens at random: each merge of two pieces is left out with the probability `rate`.

        A word then appears as other, smaller pieces now and then, and the model learns what those mean
        (BPE-dropout). For training only; the same seed gives the same tokens.

        Args:
            texts: Texts.
            rate: Between 0, as `tokenize`, and 1, single characters.
            seed: Of the draws, from 0 to 2^32 - 1.

        Returns:
            int32 ragged (B, None), without special ids.

        Raises:
            ValueError: If the model has no merges, as it was not trained with model_type="bpe", or `rate` or
                `seed` is out of range.

        Example:
            >>> tokenizer = SentencePieceTokenizer.train(["low lower lowest"], 12, model_type="bpe")
            >>> tokenizer.tokenize_with_dropout(["lower"], rate=1.0, seed=1).row_lengths().numpy()
            array([6])

        Reference:
            Provilkov, Emelianenko and Voita 2020, "BPE-Dropout: Simple and Effective Subword Regularization".
        """
        self._require_pieces()
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"SentencePieceTokenizer: expected a rate from 0 to 1, received {rate}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"SentencePieceTokenizer: expected a seed from 0 to 2^32 - 1, received {seed}")
        if not _has_merges(self.model):
            raise ValueError(
                "SentencePieceTokenizer: expected a model of merges to drop, received one that is not BPE; "
                'train it with model_type="bpe", or take no dropout'
            )
        sentencepiece.set_random_generator_seed(seed)
        prepared = to_strings(self.prepare(to_tensor(list(texts)))).tolist()
        # One thread: with several, who draws which number would be a matter of time.
        ids = self._processor.encode(prepared, enable_sampling=True, alpha=rate, nbest_size=-1, num_threads=1)
        return tf.ragged.constant(ids, tf.int32, ragged_rank=1)

    def save_assets(self, folder: str) -> None:
        """Writes the model file; Keras calls this when it saves a model."""
        self._require_pieces()
        pathlib.Path(folder, _FILE).write_bytes(self.model)

    def load_assets(self, folder: str) -> None:
        """Reads the model file; Keras calls this when it loads a model."""
        self._set_model(pathlib.Path(folder, _FILE).read_bytes())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, but not the model: that is an asset."""
        return {**super().get_config(), "model": None}

    def _set_model(self, model: bytes) -> None:
        self._processor = processor = _load(model)
        self._sub_words = sub_words(model, tf.int32, "SentencePieceTokenizer")
        self.model = model
        self._set_pieces([processor.id_to_piece(i) for i in range(processor.vocab_size())])

    # `ids_of` asks the graph: two releases of SentencePiece may cut "000" in different places, of which the
    # package is one and TensorFlow Text has another. Putting together is the same in all.
    def _texts(self, ids: np.ndarray) -> list[str]:
        return self._processor.decode(without_special(ids), num_threads=1)

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._sub_words.tokenize(texts)

    def _join(self, ids: tf.RaggedTensor) -> tf.Tensor:
        return self._sub_words.detokenize(ids)


def sub_words(model: bytes, out_type: tf.DType, caller: str) -> Any:
    """What cuts texts by a model in the graph, into ids (tf.int32) or pieces (tf.string).

    Raises:
        ImportError: If tensorflow_text is not installed.
    """
    try:
        import tensorflow_text
    except ImportError as error:
        raise ImportError(
            f"{caller}: expected tensorflow_text to be installed; pip install tensorflow-text (it has no "
            f"wheels for Windows and some other platforms): {error}"
        ) from error
    with tf.init_scope():  # eager, wherever the tokenizer is made: all graphs may use it
        tokenizer = tensorflow_text.SentencepieceTokenizer(model, out_type=out_type)
        tokenizer._model_resource = _named_resource(model)
    return tokenizer


def _named_resource(model: bytes) -> Any:
    """The model as a resource of the graph, under a name of its own.

    TensorFlow Text leaves the name to the kernel that makes the resource. It then dies with that kernel,
    for example in `keras.utils.set_random_seed`, and in a reloaded SavedModel two tokenizers can take each
    other's model.
    """
    from tensorflow_text.python.ops import sentencepiece_tokenizer as internals

    class NamedResource(internals._SentencepieceModelResource):
        def _create_resource(self) -> Any:
            name = hashlib.sha256(model).hexdigest()
            return internals.gen_sentencepiece_tokenizer.sentencepiece_op(model=model, shared_name=name)

    return NamedResource(model, None)


def parse(model: bytes, caller: str, kind: str = "model") -> sentencepiece.SentencePieceProcessor:
    """Parses a model, whatever its special ids are; `kind` is what the error calls it.

    Raises:
        ValueError: If it is none, or is damaged.
    """
    if not isinstance(model, bytes):
        raise ValueError(
            f"{caller}: expected the bytes of a {kind}, received {type(model).__name__}; read the file with "
            "pathlib.Path(...).read_bytes()"
        )
    if not model:  # the package would accept it
        raise ValueError(f"{caller}: expected a SentencePiece model, received 0 bytes")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(
            f"{caller}: expected a SentencePiece model, received {len(model)} bytes that are none, or are "
            "damaged"
        ) from None


def _load(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Parses a model and checks its special ids."""
    processor = parse(model, "SentencePieceTokenizer")
    received = {name: getattr(processor, name)() for name in _IDS}
    if received != _IDS:
        raise ValueError(
            f"SentencePieceTokenizer: expected a model with {_IDS}, received one with {received}; train it "
            "with SentencePieceTokenizer.train"
        )
    return processor


def _has_merges(model: bytes) -> bool:
    """Whether a model cuts by merges (BPE); the file says so."""
    from sentencepiece import sentencepiece_model_pb2

    specification = sentencepiece_model_pb2.ModelProto.FromString(model).trainer_spec
    return specification.model_type == specification.BPE


def _explain(error: RuntimeError, vocabulary_size: int) -> str:
    """Says in our terms what the trainer did not like."""
    characters = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if characters:
        return (
            f"SentencePieceTokenizer: expected vocabulary_size >= {characters[1]} (the characters of the "
            f"texts and four special pieces), received {vocabulary_size}; raise it, or lower "
            "character_coverage"
        )
    return f"SentencePieceTokenizer: training failed with vocabulary_size={vocabulary_size}: {error}"
