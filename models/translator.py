"""Text to text: tokenizers around an encoder and a decoder."""

import inspect
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from attention_zoo.layers.additive_attention import AdditiveAttention
from attention_zoo.layers.luong_attention import LuongAttention
from attention_zoo.layers.multi_head_attention import MultiHeadAttention
from attention_zoo.models import presets
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.rnn_decoder import RNNDecoder
from attention_zoo.models.rnn_encoder import RNNEncoder
from attention_zoo.models.shapes import most_tokens, padded_count, padded_length
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID, Tokenizer
from attention_zoo.models.transformer_decoder import TransformerDecoder
from attention_zoo.models.transformer_encoder import TransformerEncoder
from attention_zoo.models.translation import Translation

# What the "class" of a preset's parts may name.
ENCODERS = {"RNNEncoder": RNNEncoder, "TransformerEncoder": TransformerEncoder}
DECODERS = {"RNNDecoder": RNNDecoder, "TransformerDecoder": TransformerDecoder}
ATTENTIONS = {
    "AdditiveAttention": AdditiveAttention,
    "LuongAttention": LuongAttention,
    "MultiHeadAttention": MultiHeadAttention,
}


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
            decoder: Arguments of the decoder to change; {"attention": {...}} changes its attention's, and
                {"attention": layer} or None replaces it.
            **kwargs: Arguments of the model, e.g. max_source_length or dtype.

        Returns:
            The model, with its weights, not yet compiled.

        Raises:
            ValueError: If the name or an argument is unknown; the message names the allowed ones.
        """
        preset = presets.get_preset(name)
        dtype = kwargs.get("dtype")
        encoder = presets.override(preset.encoder, encoder)
        decoder = presets.override(preset.decoder, decoder)
        if isinstance(decoder.get("attention"), dict):
            decoder["attention"] = _make(ATTENTIONS, decoder["attention"], dtype=dtype)
        encoder_size, decoder_size = source_tokenizer.vocabulary_size, target_tokenizer.vocabulary_size
        model = cls(
            _make(ENCODERS, encoder, vocabulary_size=encoder_size, dtype=dtype),
            _make(DECODERS, decoder, vocabulary_size=decoder_size, dtype=dtype),
            source_tokenizer,
            target_tokenizer,
            **kwargs,
        )
        model.build()
        return model

    def check_vocabularies(self) -> None:
        """Raises ValueError if a tokenizer has other ids than the layer that reads or writes them."""
        for part, tokenizer in ((self.encoder, self.source_tokenizer), (self.decoder, self.target_tokenizer)):
            if part.vocabulary_size != tokenizer.vocabulary_size:
                raise ValueError(
                    f"Translator: expected a tokenizer with the {part.vocabulary_size} ids of the "
                    f"{type(part).__name__}, received a {type(tokenizer).__name__} with "
                    f"{tokenizer.vocabulary_size}; use the one that the model was made with"
                )

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
        *,
        groups: int = 1,
        diversity_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Translation | list[Translation]:
        """Translates one text or several.

        Args:
            texts: A string, or a sequence of strings. A blank text translates to the empty text.
            beams: Hypotheses kept by beam search; 1 is greedy search. Of no use with `sample`.
            n_best: Hypotheses returned; the best is the translation, the rest its `alternatives`.
            length_penalty: alpha of the score log P / ((5 + length) / 6) ** alpha.
            coverage_penalty: beta of the GNMT coverage penalty; needs a model with attention.
            min_length: Least tokens of a translation.
            max_length: Most tokens; if None, twice the source's plus 20, or as many as `min_length` or the
                prefix needs.
            prefix: What each translation must begin with, one string for all or one per text.
            return_attention: Whether each translation carries its alignment; needs a model with attention.
            batch_size: Texts translated at once. The result does not depend on it.
            groups: Groups of beams that diverse beam search keeps apart; must divide `beams`.
            diversity_penalty: What a token costs a group for each earlier group that took it too.
            repetition_penalty: Factor of 1 or more on the log-probability of tokens that were said before.
            no_repeat_ngram: Length of the sequences of tokens that may not come twice; 0 allows all.
            sample: Whether to draw tokens at random, `n_best` times, instead of searching.
            temperature: Divides the logits before drawing: above 0; below 1 is more careful, above 1 bolder.
            top_k: Draw among so many most probable tokens only.
            top_p: Draw among the fewest tokens that are together so probable only.
            seed: Of the drawing; the same seed gives the same translations. None takes one from NumPy's
                global generator.

        Returns:
            A `Translation` for a string, a list of them for a sequence.

        Raises:
            TypeError: If `texts` or `prefix` is not made of strings, or a number is none.
            ValueError: If a text is longer than `max_source_length` tokens, a prefix than `max_length`, a
                number is out of range, or the model has no attention and it is asked for.
        """
        single = isinstance(texts, str)
        texts = _strings("texts", [texts] if single else texts)
        beams = _integer("beams", beams, 1)
        settings = {
            "beams": beams,
            "n_best": _integer("n_best", n_best, 1, None if sample else beams),
            "groups": _integer("groups", groups, 1),
            "diversity_penalty": _not_negative("diversity_penalty", diversity_penalty),
            "repetition_penalty": _not_negative("repetition_penalty", repetition_penalty),
            "no_repeat_ngram": _integer("no_repeat_ngram", no_repeat_ngram, 0),
            "sample": bool(sample),
            "temperature": _not_negative("temperature", temperature),
            "top_k": None if top_k is None else _integer("top_k", top_k, 1),
            "top_p": None if top_p is None else _not_negative("top_p", top_p),
            "length_penalty": _not_negative("length_penalty", length_penalty),
            "coverage_penalty": _not_negative("coverage_penalty", coverage_penalty),
            "min_length": _integer("min_length", min_length, 0),
            "return_attention": bool(return_attention),
        }
        batch_size = _integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = _integer("max_length", max_length, max(1, settings["min_length"]))
        self.check_vocabularies()
        self._check_attention(settings["coverage_penalty"], return_attention)
        sources = self.source_tokenizer.tokenize(_encoded(texts)).to_list()
        self._check_lengths(texts, sources)
        prefixes = self._prefixes(prefix, len(texts), max_length)

        nothing = np.zeros((0, 0), "float32") if return_attention else None
        translations = [Translation("", 0.0, [], [], nothing) for _ in texts]
        # Sorted by length, so that short sentences are not padded to long ones.
        order = sorted((i for i, ids in enumerate(sources) if ids), key=lambda i: len(sources[i]))
        key = _sampling_key(seed) if sample else None
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = padded_count(len(chosen), batch_size)
            if sample:  # what is drawn for a text depends on its number, not on its place in a batch
                numbers = np.array([*chosen, *range(len(texts), len(texts) + rows - len(chosen))], "int32")
                settings |= {"seed": key, "rows": numbers}
            batch = self._translate_batch(
                [sources[i] for i in chosen], [prefixes[i] for i in chosen], max_length, rows, settings
            )
            for index, translation in zip(chosen, batch, strict=True):
                translations[index] = translation
        return translations[0] if single else translations

    def score(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        length_penalty: float = 1.0,
        return_attention: bool = False,
        batch_size: int = 32,
    ) -> Translation | list[Translation]:
        """Scores given translations: how probable the model finds them.

        Args:
            sources: A string, or a sequence of strings.
            targets: Their translations, a string for a string.
            length_penalty: alpha of the score log P / ((5 + length) / 6) ** alpha, as in `translate`; 0 gives
                the log-probability itself.
            return_attention: Whether each carries its alignment; needs a model with attention.
            batch_size: Pairs scored at once. The result does not depend on it.

        Returns:
            For each pair a `Translation` with the given text, its score, tokens and `log_probabilities` of
            the tokens; one for a string, a list for a sequence.

        Raises:
            TypeError: If `sources` or `targets` is not made of strings, or a number is none.
            ValueError: If there are not as many targets as sources, a source is blank or longer than
                `max_source_length` tokens, or the model has no attention and it is asked for.

        Example:
            >>> from attention_zoo.models import Translator, WhitespaceTokenizer
            >>> words = WhitespaceTokenizer(["good", "morning"])
            >>> model = Translator.from_preset("bahdanau", source_tokenizer=words, target_tokenizer=words)
            >>> model.score("good morning", "morning").score < 0
            True
        """
        if isinstance(sources, str) != isinstance(targets, str):
            raise TypeError(
                "score: expected two strings or two sequences of strings, received "
                f"{type(sources).__name__} and {type(targets).__name__}"
            )
        single = isinstance(sources, str)
        sources = _strings("sources", [sources] if single else sources, "score")
        targets = _strings("targets", [targets] if single else targets, "score")
        if len(sources) != len(targets):
            raise ValueError(
                f"score: expected a target for each source, received {len(sources)} sources and "
                f"{len(targets)} targets"
            )
        alpha = _not_negative("length_penalty", length_penalty)
        batch_size = _integer("batch_size", batch_size, 1)
        self.check_vocabularies()
        self._check_attention(0.0, return_attention)
        source_ids = self.source_tokenizer.tokenize(_encoded(sources)).to_list()
        self._check_lengths(sources, source_ids, "score")
        for number, ids in enumerate(source_ids):
            if not ids:
                raise ValueError(f"score: expected sources with text, received a blank one, number {number}")
        target_ids = self.target_tokenizer.tokenize(_encoded(targets)).to_list()

        scored: list[Translation] = [None] * len(sources)
        order = sorted(range(len(sources)), key=lambda i: (len(source_ids[i]), len(target_ids[i])))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self._score_batch(
                [source_ids[i] for i in chosen],
                [target_ids[i] for i in chosen],
                [targets[i] for i in chosen],
                padded_count(len(chosen), batch_size),
                alpha,
                bool(return_attention),
            )
            for index, translation in zip(chosen, batch, strict=True):
                scored[index] = translation
        return scored[0] if single else scored

    def _score_batch(
        self,
        sources: list[list[int]],
        targets: list[list[int]],
        texts: list[str],
        rows: int,
        alpha: float,
        return_attention: bool,
    ) -> list[Translation]:
        width = padded_length(max(map(len, sources)) + 1, self.encoder.max_positions)
        source = _padded([[*ids, END_ID] for ids in sources], rows, width)
        width = padded_length(max(map(len, targets)) + 1, self.decoder.max_positions)
        labels = _padded([[*ids, END_ID] for ids in targets], rows, width)
        target = _padded([[START_ID, *ids] for ids in targets], rows, width)
        results = self.score_ids(source, target, labels, return_attention)

        log_probabilities = ops.convert_to_numpy(results["token_log_probabilities"])  # (B, T)
        source_pieces = _decoded(self.source_tokenizer.pieces(source))
        pieces = _decoded(self.target_tokenizer.pieces(labels))
        attention = _attention_arrays(results)
        translations = []
        for row, (ids, target_ids) in enumerate(zip(sources, targets, strict=True)):
            length, source_length = len(target_ids) + 1, len(ids) + 1
            tokens = log_probabilities[row, :length].copy()
            translations.append(
                Translation(
                    text=texts[row],
                    score=float(tokens.sum() / ((5 + length) / 6) ** alpha),
                    tokens=list(pieces[row, :length]),
                    source_tokens=list(source_pieces[row, :source_length]),
                    log_probabilities=tokens,
                    **_attention_of(attention, (row,), length, source_length),
                )
            )
        return translations

    def _check_attention(self, coverage_penalty: float, return_attention: bool = False) -> None:
        if not self.decoder.has_attention and (coverage_penalty or return_attention):
            asked = "return_attention=True" if return_attention else f"coverage_penalty={coverage_penalty}"
            raise ValueError(
                f"Translator: expected a model with attention for {asked}, received one whose decoder has "
                "none; leave that argument out, or take another preset, e.g. 'bahdanau'"
            )

    def _check_lengths(self, texts: list[str], sources: list[list[int]], caller: str = "translate") -> None:
        for text, ids in zip(texts, sources, strict=True):
            if len(ids) + 1 > self.max_source_length:
                raise ValueError(
                    f"{caller}: expected texts of at most {self.max_source_length} tokens, received one of "
                    f"{len(ids) + 1} ({text[:40]!r}...); {caller} it sentence by sentence"
                )

    def _prefixes(
        self, prefix: str | Sequence[str] | None, count: int, max_length: int | None
    ) -> list[list[int]]:
        """Ids of the prefix of each text, empty where there is none."""
        if prefix is None:
            return [[] for _ in range(count)]
        prefixes = _strings("prefix", [prefix] * count if isinstance(prefix, str) else prefix)
        if len(prefixes) != count:
            raise ValueError(
                f"translate: expected one prefix, or one per text ({count}), received {len(prefixes)}"
            )
        rows = self.target_tokenizer.tokenize(_encoded(prefixes)).to_list()
        longest = max(map(len, rows), default=0)
        if max_length is not None and longest > max_length:
            raise ValueError(
                f"translate: expected prefixes of at most max_length={max_length} tokens, received one "
                f"of {longest}"
            )
        return rows

    def _translate_batch(
        self,
        sources: list[list[int]],
        prefixes: list[list[int]],
        max_length: int | None,
        rows: int,
        settings: dict[str, Any],
    ) -> list[Translation]:
        count = len(sources)
        width = padded_length(max(map(len, sources)) + 1, self.encoder.max_positions)
        source = _padded([[*ids, END_ID] for ids in sources], rows, width)  # (B, S)
        lengths = np.sum(source != PAD_ID, axis=1)
        forced, prefix_lengths = None, np.zeros(rows, "int32")
        if any(prefixes):
            forced = _padded(prefixes, rows, padded_length(max(map(len, prefixes))))  # (B, P)
            prefix_lengths = np.sum(forced != PAD_ID, axis=1)
        if max_length is None:
            limits = np.maximum(most_tokens(lengths), np.maximum(settings["min_length"], prefix_lengths))
        else:
            limits = np.full(rows, max_length)
        limits = np.where(lengths > 0, limits, 0)  # nothing to say where there is no text
        # The limits are exact; the search's own maximum is one of a few, because each costs a compile.
        most = most_tokens(width)
        if max_length is not None or limits.max() > most:
            most = padded_length(int(limits.max()))
        if self.decoder.max_positions is not None:  # the start token has one of them
            most = min(most, self.decoder.max_positions - 1)
            limits = np.minimum(limits, most)
        results = self.generate(
            source, limits=limits.astype("int32"), max_length=most, forced_prefix=forced, **settings
        )

        ids = ops.convert_to_numpy(results["tokens"])[:count]  # (count, N, L)
        flat = tf.reshape(ids, (-1, ids.shape[-1]))  # (count * N, L)
        texts = _decoded(self.target_tokenizer.detokenize(flat)).reshape(ids.shape[:2])
        pieces = _decoded(self.target_tokenizer.pieces(flat)).reshape(ids.shape)
        source_pieces = _decoded(self.source_tokenizer.pieces(source[:count]))
        scores = ops.convert_to_numpy(results["scores"])
        ends = ops.convert_to_numpy(results["lengths"])[:count]
        found = np.sum(ends > 0, axis=1)  # fewer than N where no more hypotheses exist
        attention = _attention_arrays(results)

        def hypothesis(row: int, rank: int) -> Translation:
            end = ends[row, rank]
            return Translation(
                text=texts[row, rank],
                score=float(scores[row, rank]),
                tokens=list(pieces[row, rank, :end]),
                source_tokens=list(source_pieces[row, : lengths[row]]),
                **_attention_of(attention, (row, rank), end, lengths[row]),
                alternatives=[hypothesis(row, other) for other in range(1, found[row])] if rank == 0 else [],
            )

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
        with "", and for a model with attention "attention": float32 (B, L, S), the alignment. The signature
        "heads" of such a model returns the attention of every layer and head besides: "cross_heads"
        (B, N, H, L, S), and for a Transformer "self_heads" (B, N, H, L, L) and "encoder_heads"
        (B, N, H, S, S). Loading it needs only tensorflow and tensorflow_text.

        Args:
            folder: Where to write; must not exist, or be empty.
            beams: Hypotheses kept by beam search; 1 is greedy search.
            length_penalty: As in `translate`.
            coverage_penalty: As in `translate`.

        Raises:
            FileExistsError: If `folder` exists and is not an empty folder.
            TypeError: If a number is none.
            ValueError: If a number is out of range, or a model without attention gets a `coverage_penalty`.
        """
        from attention_zoo.models import saving, serving

        beams = _integer("beams", beams, 1)
        settings = {
            "length_penalty": _not_negative("length_penalty", length_penalty),
            "coverage_penalty": _not_negative("coverage_penalty", coverage_penalty),
        }
        self.check_vocabularies()
        self.build()
        self._check_attention(settings["coverage_penalty"])
        if beams > 1:
            settings |= {"beams": beams, "n_best": 1}
        with saving.written_whole(folder) as temporary:
            archive = keras.export.ExportArchive()
            archive.track(self)
            texts = [tf.TensorSpec((None,), tf.string, name="texts")]
            archive.add_endpoint("serve", serving.function(self, settings), input_signature=texts)
            if self.decoder.has_attention:
                heads = serving.function(self, settings, heads=True)
                archive.add_endpoint("heads", heads, input_signature=texts)
            archive.write_out(temporary, verbose=False)
            file = temporary / saving.KERAS_FILE
            file.parent.mkdir()
            self.save(file)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "source_tokenizer": keras.saving.serialize_keras_object(self.source_tokenizer),
            "target_tokenizer": keras.saving.serialize_keras_object(self.target_tokenizer),
            "max_source_length": self.max_source_length,
        }


def _attention_arrays(results: dict[str, Any]) -> dict[str, Any] | None:
    """What `generate` found out about attention, in NumPy; None if it was not asked."""
    if results["attention"] is None:
        return None
    parts = {name: results[name] for name in ("alignment", "heads", "encoder") if name in results}
    return keras.tree.map_structure(ops.convert_to_numpy, parts)


def _attention_of(
    arrays: dict[str, Any] | None, index: tuple[int, ...], target_length: int, source_length: int
) -> dict[str, Any]:
    """The attention of one hypothesis, at (row, rank), as arguments of `Translation`, without padding."""
    if arrays is None:
        return {}
    # Copies, so that one translation does not keep the arrays of the whole batch.
    widths = {"cross": source_length, "self": target_length}
    heads = {
        name: np.moveaxis(x[index][:target_length, ..., : widths[name]], 0, 2).copy()  # (N, H, T, S)
        for name, x in arrays["heads"].items()
    }
    if "encoder" in arrays:
        heads["encoder"] = arrays["encoder"][index[0], :, :, :source_length, :source_length].copy()
    return {
        "attention": arrays["alignment"][index][:target_length, :source_length].copy(),
        "heads": heads,
    }


def _make(classes: dict[str, type], arguments: dict[str, Any], **fixed: Any) -> Any:
    """The layer that a preset's part describes, with a clear error for what it does not take."""
    arguments = dict(arguments)
    name = arguments.pop("class", None)
    if name not in classes:
        raise ValueError(f'from_preset: expected a "class" among {", ".join(classes)}; received {name!r}')
    allowed = [name for name in inspect.signature(classes[name]).parameters if name not in (*fixed, "kwargs")]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(
            f"{name}: expected arguments among {', '.join(allowed)}; received {', '.join(unknown)}"
        )
    return classes[name](**arguments, **fixed)


def _strings(name: str, values: Any, caller: str = "translate") -> list[str]:
    """The values as a list, if they are a sequence of strings."""
    expected = f"{caller}: expected {name} to be a string or a sequence of strings"
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{expected}, received {type(values).__name__}")
    values = list(values)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{expected}, received a sequence with {type(value).__name__} in it")
    return values


def _integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """The value as a Python int, whatever integer type it has."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, received {value!r}") from None
    if number < lowest or (highest is not None and number > highest):
        allowed = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name}: expected an integer {allowed}, received {number}")
    return number


def _not_negative(name: str, value: Any) -> float:
    """The value as a Python float, whatever number type it has."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, received {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a number of at least 0, received {value}")
    return float(value)


def _sampling_key(seed: int | None) -> np.ndarray:
    """Two words of 32 bits."""
    if seed is None:
        return np.random.randint(0, 2**31, 2).astype("int32")  # of what keras.utils.set_random_seed sets
    seed = _integer("seed", seed, 0, 2**62 - 1)
    return np.array([seed % 2**31, seed // 2**31], "int32")


def _padded(rows: list[list[int]], count: int, width: int) -> np.ndarray:
    """Ragged rows as int32 (count, width), zero where there is nothing."""
    padded = np.full((count, width), PAD_ID, "int32")
    for row, ids in zip(padded, rows, strict=False):
        row[: len(ids)] = ids
    return padded


def _encoded(texts: list[str]) -> tf.Tensor:
    """A list of str as a string tensor; "?" for lone surrogates, which UTF-8 does not have."""
    return tf.constant([text.encode("utf-8", "replace") for text in texts], tf.string, [len(texts)])


def _decoded(strings: tf.Tensor) -> np.ndarray:
    """A string tensor as an array of str."""
    return np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(strings.numpy())
