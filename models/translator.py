"""Text to text: tokenizers around an encoder and a decoder."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from attention_zoo import layers
from attention_zoo.models import presets
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.rnn_decoder import RNNDecoder
from attention_zoo.models.rnn_encoder import RNNEncoder
from attention_zoo.models.tokenizer import END_ID, PAD_ID, Tokenizer
from attention_zoo.models.translation import Translation

ENCODERS = {"RNNEncoder": RNNEncoder}
DECODERS = {"RNNDecoder": RNNDecoder}

# Every new input shape costs an XLA compile, so sentences are padded to a few lengths, and batches to
# 1, 8 or the full batch size.
SMALLEST_LENGTH = 16
BATCH_SIZES = (1, 8, 32)


@keras.saving.register_keras_serializable(package="attention_zoo")
class Translator(EncoderDecoder):
    """A model that translates text.

    Args:
        encoder: Layer from source ids to a memory, e.g. `RNNEncoder`.
        decoder: Layer that predicts target ids, e.g. `RNNDecoder`.
        source_tokenizer: Tokenizer of the source language.
        target_tokenizer: Tokenizer of the target language; may be the same one.
        max_source_length: Most source tokens, the end token included, of a text to translate.

    Call arguments:
        inputs: dict of "source": int (B, S), ending with the end token, and "target": int (B, T),
            starting with the start token; both padded with 0.
        training: Whether dropout is active.

    Returns:
        Logits, float32 (B, T, V).

    Example:
        >>> from attention_zoo.models import Translator, WhitespaceTokenizer
        >>> words = WhitespaceTokenizer(["good", "morning"])
        >>> model = Translator.from_preset("bahdanau", source_tokenizer=words, target_tokenizer=words)
        >>> isinstance(model.translate("good morning").text, str)
        True
    """

    def __init__(
        self,
        encoder: keras.layers.Layer,
        decoder: keras.layers.Layer,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        max_source_length: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, decoder, **kwargs)
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.max_source_length = max_source_length

    @classmethod
    def from_preset(
        cls,
        name: str,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Translator":
        """Builds a model by the name of its composition; `presets.PRESETS` lists them.

        Args:
            name: E.g. "bahdanau".
            source_tokenizer: Tokenizer of the source language.
            target_tokenizer: Tokenizer of the target language.
            encoder: Arguments of the encoder to change, e.g. {"units": 512}.
            decoder: Arguments of the decoder to change; {"attention": {...}} changes its attention's.
            **kwargs: Arguments of the model, e.g. max_source_length or dtype.

        Raises:
            ValueError: If the name or an argument is unknown; the message names the allowed ones.
        """
        preset = presets.get_preset(name)
        encoder = presets.override(preset.encoder, encoder)
        decoder = presets.override(preset.decoder, decoder)
        if decoder.get("attention"):
            attention = dict(decoder["attention"])
            decoder["attention"] = getattr(layers, attention.pop("class"))(
                **attention, dtype=kwargs.get("dtype")
            )
        model = cls(
            _make(ENCODERS, encoder, source_tokenizer, kwargs.get("dtype")),
            _make(DECODERS, decoder, target_tokenizer, kwargs.get("dtype")),
            source_tokenizer,
            target_tokenizer,
            **kwargs,
        )
        model.build()
        return model

    # === Translating ===

    def translate(
        self,
        texts: str | Sequence[str],
        beams: int = 4,
        n_best: int = 1,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
        min_length: int = 0,
        max_length: int | None = None,
        prefix: str | Sequence[str] | None = None,
        return_attention: bool = False,
        batch_size: int = 32,
    ) -> Translation | list[Translation]:
        """Translates one text or several.

        Args:
            texts: A string, or a sequence of strings. A blank text translates to the empty text.
            beams: Hypotheses kept by beam search; 1 is greedy search.
            n_best: Hypotheses returned; the best is the translation, the rest its `alternatives`.
            length_penalty: alpha of the score log P / ((5 + length) / 6) ** alpha.
            coverage_penalty: beta of the GNMT coverage penalty; needs a model with attention.
            min_length: Least tokens of a translation.
            max_length: Most tokens; if None, twice the source's plus 20.
            prefix: What each translation must begin with, one string for all or one per text.
            return_attention: Whether each translation carries its alignment.
            batch_size: Texts translated at once. The result does not depend on it.

        Returns:
            A `Translation` for a string, a list of them for a sequence.

        Raises:
            TypeError: If `texts` is neither.
            ValueError: If a text is longer than `max_source_length` tokens, or a number is out of range.
        """
        if isinstance(texts, str):
            arguments = {name: value for name, value in locals().items() if name not in ("self", "texts")}
            return self.translate([texts], **arguments)[0]
        texts = list(texts)
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts})
            raise TypeError(f"translate: expected a string or a sequence of strings, received {', '.join(kinds)}")
        prefixes = self._prefixes(prefix, len(texts))
        sources = self.source_tokenizer.tokenize(tf.constant(texts, tf.string, [len(texts)])).to_list()
        self._check_lengths(texts, sources)

        translations = [Translation("", 0.0, [], [], None, []) for _ in texts]
        # Sorted by length, so that short sentences are not padded to long ones.
        order = sorted((i for i, ids in enumerate(sources) if ids), key=lambda i: len(sources[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self._translate_batch(
                [sources[i] for i in chosen],
                [prefixes[i] for i in chosen],
                max_length,
                batch_size,
                beams=beams,
                n_best=n_best,
                length_penalty=length_penalty,
                coverage_penalty=coverage_penalty,
                min_length=min_length,
                return_attention=return_attention,
            )
            for index, translation in zip(chosen, batch, strict=True):
                translations[index] = translation
        return translations

    def _prefixes(self, prefix: str | Sequence[str] | None, count: int) -> list[list[int]]:
        """Ids of the prefix of each text, empty where there is none."""
        if prefix is None:
            return [[] for _ in range(count)]
        prefixes = [prefix] * count if isinstance(prefix, str) else list(prefix)
        if len(prefixes) != count:
            raise ValueError(f"translate: expected one prefix, or one per text ({count}), received {len(prefixes)}")
        return self.target_tokenizer.tokenize(tf.constant(prefixes, tf.string, [count])).to_list()

    def _check_lengths(self, texts: list[str], sources: list[list[int]]) -> None:
        for text, ids in zip(texts, sources, strict=True):
            if len(ids) + 1 > self.max_source_length:
                raise ValueError(
                    f"translate: expected texts of at most {self.max_source_length} tokens, received one of "
                    f"{len(ids) + 1} ({text[:40]!r}...); translate it sentence by sentence"
                )

    def _translate_batch(
        self,
        sources: list[list[int]],
        prefixes: list[list[int]],
        max_length: int | None,
        batch_size: int,
        **settings: Any,
    ) -> list[Translation]:
        count = len(sources)
        rows = next((size for size in BATCH_SIZES if count <= size <= batch_size), batch_size)
        width = _padded_length(max(len(ids) for ids in sources) + 1)
        source = _padded([[*ids, END_ID] for ids in sources], rows, width)
        lengths = np.sum(source != PAD_ID, axis=1)
        limits = np.where(lengths > 0, _most_tokens(lengths) if max_length is None else max_length, 0)
        forced = None
        if any(prefixes):
            forced = _padded(prefixes, rows, _padded_length(max(map(len, prefixes))))
        results = self.generate(
            source,
            limits=limits.astype("int32"),
            max_length=_most_tokens(width) if max_length is None else max_length,
            forced_prefix=forced,
            **settings,
        )

        ids = ops.convert_to_numpy(results["tokens"])[:count]  # (count, N, L)
        flat = tf.reshape(ids, (-1, ids.shape[-1]))  # (count * N, L)
        shape = ids.shape[:2]
        texts = _decoded(self.target_tokenizer.detokenize(flat)).reshape(shape)
        pieces = _decoded(self.target_tokenizer.pieces(flat)).reshape(ids.shape)
        source_pieces = _decoded(self.source_tokenizer.pieces(source[:count]))
        scores = ops.convert_to_numpy(results["scores"])
        ends = ops.convert_to_numpy(results["lengths"])
        attention = results["attention"]
        if attention is not None:
            attention = ops.convert_to_numpy(attention)

        def hypothesis(row: int, rank: int) -> Translation:
            end = ends[row, rank]
            return Translation(
                text=texts[row, rank],
                score=float(scores[row, rank]),
                tokens=list(pieces[row, rank, :end]),
                source_tokens=list(source_pieces[row, : lengths[row]]),
                attention=None if attention is None else attention[row, rank, :end, : lengths[row]],
                alternatives=[hypothesis(row, other) for other in range(1, found[row])] if rank == 0 else [],
            )

        found = np.sum(ends[:count] > 0, axis=1)
        return [hypothesis(row, 0) for row in range(count)]

    # === Serving ===

    def export(
        self,
        folder: str | os.PathLike,
        beams: int = 4,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
    ) -> None:
        """Writes a folder that serves strings as a SavedModel, and that `load` reads to train on.

        The signature "serving_default" takes "texts": string (B,) and returns "text": string (B,),
        "score": float32 (B,), "tokens": string (B, L) and "source_tokens": string (B, S), both padded
        with "", and for a model with attention "attention": float32 (B, L, S). Loading it needs only
        tensorflow and tensorflow_text.

        Args:
            folder: Where to write; must not exist, or be empty.
            beams: Hypotheses kept by beam search; 1 is greedy search.
            length_penalty: As in `translate`.
            coverage_penalty: As in `translate`.

        Raises:
            FileExistsError: If `folder` exists and is not empty.
        """
        from attention_zoo.models import saving

        settings = {"length_penalty": length_penalty, "coverage_penalty": coverage_penalty}
        if beams > 1:
            settings |= {"beams": beams, "n_best": 1}
        with saving.written_whole(folder) as temporary:
            archive = keras.export.ExportArchive()
            archive.track(self)
            archive.add_endpoint(
                "serve",
                lambda texts: self._serve(settings, texts),
                input_signature=[tf.TensorSpec((None,), tf.string, name="texts")],
            )
            archive.write_out(temporary, verbose=False)
            file = temporary / saving.KERAS_FILE
            file.parent.mkdir()
            self.save(file)

    def _serve(self, settings: dict[str, Any], texts: Any) -> dict[str, Any]:
        """Strings to strings inside one graph; only the search is compiled, for a few input shapes."""
        ids = self.source_tokenizer.tokenize(texts)
        count = tf.shape(texts)[0]
        source = tf.concat([ids, tf.fill([count, 1], END_ID)], axis=1).to_tensor(PAD_ID)  # (B, S)
        length = tf.shape(source)[1]
        too_long = tf.debugging.assert_less_equal(
            length,
            self.max_source_length,
            f"expected texts of at most {self.max_source_length} tokens; translate sentence by sentence",
        )
        with tf.control_dependencies([too_long]):
            width = _padded_length_in_graph(length)
        rows = tf.where(count <= 1, BATCH_SIZES[0], tf.where(count <= BATCH_SIZES[1], *BATCH_SIZES[1:]))
        chunks = -(-count // rows)
        source = tf.pad(source, [[0, chunks * rows - count], [0, width - length]])
        source = tf.reshape(source, (chunks, rows, width))  # (chunks, rows, S)

        @tf.function(jit_compile=True, autograph=False)
        def search(source: Any) -> dict[str, Any]:
            lengths = tf.math.count_nonzero(source, axis=1, dtype="int32")
            # The end token alone is a blank text: nothing to say.
            limits = tf.where(lengths > 1, _most_tokens(lengths), 0)
            settings_here = {**settings, "min_length": 0, "return_attention": self._has_attention}
            settings_here["max_length"] = _most_tokens(tf.shape(source)[1])
            results = self._search(settings_here, source, limits, None)
            kept = {"tokens": results["tokens"], "scores": results["scores"]}
            if self._has_attention:
                kept["attention"] = results["attention"]
            return kept

        signature = {"tokens": tf.int32, "scores": tf.float32}
        if self._has_attention:
            signature["attention"] = tf.float32
        results = tf.map_fn(search, source, fn_output_signature=signature)
        results = {
            name: tf.reshape(x, tf.concat([[chunks * rows], tf.shape(x)[3:]], 0))[:count]  # (B, L, ...)
            for name, x in results.items()
        }
        tokens = results["tokens"]
        longest = tf.reduce_max(tf.math.count_nonzero(tokens, axis=1, dtype="int32"))
        tokens = tokens[:, :longest]
        source = tf.reshape(source, (chunks * rows, width))[:count, :length]  # (B, S)
        outputs = {
            "text": self.target_tokenizer.detokenize(tokens),
            "score": results["scores"],
            "tokens": self.target_tokenizer.pieces(tokens),
            "source_tokens": self.source_tokenizer.pieces(source),
        }
        if self._has_attention:
            outputs["attention"] = results["attention"][:, :longest, :length]
        return outputs

    @property
    def _has_attention(self) -> bool:
        return self.decoder.attention is not None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "source_tokenizer": keras.saving.serialize_keras_object(self.source_tokenizer),
            "target_tokenizer": keras.saving.serialize_keras_object(self.target_tokenizer),
            "max_source_length": self.max_source_length,
        }


def _make(classes: dict[str, type], arguments: dict[str, Any], tokenizer: Tokenizer, dtype: Any) -> Any:
    """An encoder or decoder from a preset's arguments, with a clear error for one it does not take."""
    arguments = dict(arguments)
    made = classes[arguments.pop("class")]
    allowed = [name for name in inspect.signature(made).parameters if name not in ("vocabulary_size", "kwargs")]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(
            f"{made.__name__}: expected arguments among {', '.join(allowed)}; received {', '.join(unknown)}"
        )
    return made(tokenizer.vocabulary_size, **arguments, dtype=dtype)


def _most_tokens(source_tokens: Any) -> Any:
    """Most tokens of a translation: room for languages that need twice as many, and for short texts."""
    return 2 * source_tokens + 20


def _padded_length(length: int) -> int:
    """The length, with the end token, that a source of this length is padded to."""
    return max(SMALLEST_LENGTH, 1 << (length - 1).bit_length())


def _padded_length_in_graph(length: Any) -> Any:
    lengths = tf.constant([SMALLEST_LENGTH << power for power in range(24)])
    return tf.reduce_min(tf.boolean_mask(lengths, lengths >= length))


def _padded(rows: list[list[int]], count: int, width: int) -> np.ndarray:
    """Ragged rows as int32 (count, width), zero where there is nothing."""
    padded = np.full((count, width), PAD_ID, "int32")
    for row, ids in zip(padded, rows, strict=False):
        row[: len(ids)] = ids
    return padded


def _decoded(strings: tf.Tensor) -> np.ndarray:
    """A string tensor as an array of str."""
    return np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(strings.numpy())
