"""Text to text: tokenizers around an encoder and a decoder."""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from attention_zoo.models import arguments, composition, hypotheses, presets
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.shapes import most_tokens, padded_count, padded_length
from attention_zoo.models.tokenizer import END_ID, PAD_ID, Tokenizer
from attention_zoo.models.translation import Translation


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
        name: str | os.PathLike,
        source_tokenizer: Tokenizer | None = None,
        target_tokenizer: Tokenizer | None = None,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Translator":
        """Builds a model by the name of its composition, or reads one that has its weights.

        `attention-zoo presets` lists the names of both. Nothing is downloaded.

        Args:
            name: E.g. "bahdanau", a composition; "bahdanau_dates", which comes with weights and tokenizers;
                or a folder that `save_preset` wrote, which does too. These take no other arguments.
            source_tokenizer: Tokenizer of the source language.
            target_tokenizer: Tokenizer of the target language.
            encoder: Arguments of the encoder to change, e.g. {"units": 512}.
            decoder: Arguments of the decoder to change; {"attention": {...}} changes its attention's, and
                {"attention": layer} or None replaces it.
            **kwargs: Arguments of the model, e.g. max_source_length or dtype.

        Returns:
            The model, with its weights, not yet compiled.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the name or an argument is unknown, the message names the allowed ones; if
                tokenizers are missing, or anything is given to a preset with weights; if a folder is damaged.
        """
        tokenizers = {"source_tokenizer": source_tokenizer, "target_tokenizer": target_tokenizer}
        trained = cls._from_weights(name, {**tokenizers, "encoder": encoder, "decoder": decoder, **kwargs})
        if trained is not None:
            return trained
        preset = presets.get_preset(name, task="translation")
        arguments.check_tokenizers(name, tokenizers)
        dtype = kwargs.get("dtype")
        encoder_size, decoder_size = source_tokenizer.vocabulary_size, target_tokenizer.vocabulary_size
        model = cls(
            composition.make_encoder(preset, encoder, vocabulary_size=encoder_size, dtype=dtype),
            composition.make_decoder(preset, decoder, vocabulary_size=decoder_size, dtype=dtype),
            source_tokenizer,
            target_tokenizer,
            **kwargs,
        )
        model.build()
        return model

    def check_vocabularies(self) -> None:
        """Raises ValueError if a tokenizer has other ids than the layer that reads or writes them."""
        arguments.check_vocabulary("Translator", self.encoder, self.source_tokenizer)
        arguments.check_vocabulary("Translator", self.decoder, self.target_tokenizer)

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
        product_dtype: str | None = None,
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
            batch_size: Texts translated at once. The result does not depend on it, but for `product_dtype`.
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
            product_dtype: "bfloat16" rounds to it what is multiplied by most weights, and adds up in float32:
                faster on CPUs with instructions for it. Not with fewer than 8 hypotheses at once.

        Returns:
            A `Translation` for a string, a list of them for a sequence.

        Raises:
            TypeError: If `texts` or `prefix` is not made of strings, or a number is none.
            ValueError: If a text is longer than `max_source_length` tokens, a prefix than `max_length`, a
                number is out of range, or the model has no attention and it is asked for.
        """
        single = isinstance(texts, str)
        texts = arguments.strings("texts", [texts] if single else texts, "translate")
        settings = arguments.search_settings(
            beams=beams,
            n_best=n_best,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
            min_length=min_length,
            groups=groups,
            diversity_penalty=diversity_penalty,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            sample=sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            return_attention=return_attention,
            product_dtype=product_dtype,
        )
        batch_size = arguments.integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = arguments.integer("max_length", max_length, max(1, settings["min_length"]))
        self.check_vocabularies()
        self._check_attention(settings["coverage_penalty"], return_attention)
        sources = self.source_tokenizer.ids_of(texts)
        self._check_lengths(texts, sources)
        prefixes = arguments.prefix_ids(prefix, len(texts), max_length, self.target_tokenizer, "translate")

        nothing = np.zeros((0, 0), "float32") if return_attention else None
        translations = [Translation("", 0.0, [], [], nothing) for _ in texts]
        # Sorted by length, so that short sentences are not padded to long ones.
        order = sorted((i for i, ids in enumerate(sources) if ids), key=lambda i: len(sources[i]))
        key = arguments.sampling_key(seed) if sample else None
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = padded_count(len(chosen), batch_size)
            if sample:  # what is drawn for a text depends on its number, not on its place in a batch
                settings |= {"seed": key, "rows": arguments.sampling_rows(chosen, len(texts), rows)}
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
        sources = arguments.strings("sources", [sources] if single else sources, "score")
        targets = arguments.strings("targets", [targets] if single else targets, "score")
        if len(sources) != len(targets):
            raise ValueError(
                f"score: expected a target for each source, received {len(sources)} sources and "
                f"{len(targets)} targets"
            )
        alpha = arguments.not_negative("length_penalty", length_penalty)
        batch_size = arguments.integer("batch_size", batch_size, 1)
        self.check_vocabularies()
        self._check_attention(0.0, return_attention)
        source_ids = self.source_tokenizer.ids_of(sources)
        self._check_lengths(sources, source_ids, "score")
        for number, ids in enumerate(source_ids):
            if not ids:
                raise ValueError(f"score: expected sources with text, received a blank one, number {number}")
        target_ids = self.target_tokenizer.ids_of(targets)

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
        source = hypotheses.padded([[*ids, END_ID] for ids in sources], rows, width)
        lengths = [len(ids) + 1 for ids in sources]
        pieces = self.source_tokenizer.names_of(source)

        def make(row: int, **scored: Any) -> Translation:
            return Translation(texts[row], source_tokens=list(pieces[row, : lengths[row]]), **scored)

        return hypotheses.scored(
            self, source, targets, self.target_tokenizer, lengths, alpha, return_attention, make
        )

    def _check_lengths(self, texts: list[str], sources: list[list[int]], caller: str = "translate") -> None:
        for text, ids in zip(texts, sources, strict=True):
            if len(ids) + 1 > self.max_source_length:
                raise ValueError(
                    f"{caller}: expected texts of at most {self.max_source_length} tokens, received one of "
                    f"{len(ids) + 1} ({text[:40]!r}...); {caller} it sentence by sentence"
                )

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
        source = hypotheses.padded([[*ids, END_ID] for ids in sources], rows, width)  # (B, S)
        lengths = np.sum(source != PAD_ID, axis=1)
        forced, prefix_lengths = None, np.zeros(rows, "int32")
        if any(prefixes):
            forced = hypotheses.padded(prefixes, rows, padded_length(max(map(len, prefixes))))  # (B, P)
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

        pieces = self.source_tokenizer.names_of(source[:count])

        def make(row: int, **hypothesis: Any) -> Translation:
            return Translation(source_tokens=list(pieces[row, : lengths[row]]), **hypothesis)

        return hypotheses.found(results, self.target_tokenizer, lengths[:count], make)

    # === Serving ===

    def export(
        self,
        folder: str | os.PathLike,
        beams: int = 4,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
        product_dtype: str | None = None,
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
            product_dtype: As in `translate`, but for any number of texts.

        Raises:
            FileExistsError: If `folder` exists and is not an empty folder.
            TypeError: If a number is none.
            ValueError: If a number is out of range, or a model without attention gets a `coverage_penalty`.
        """
        from attention_zoo.models import serving

        settings = arguments.export_settings(beams, length_penalty, coverage_penalty, product_dtype)
        self._check_attention(settings["coverage_penalty"])
        texts = [tf.TensorSpec((None,), tf.string, name="texts")]
        endpoints = {"serve": (serving.translation(self, settings), texts)}
        if self.decoder.has_attention:
            endpoints["heads"] = (serving.translation(self, settings, heads=True), texts)
        self._write_folder(folder, endpoints)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "source_tokenizer": keras.saving.serialize_keras_object(self.source_tokenizer),
            "target_tokenizer": keras.saving.serialize_keras_object(self.target_tokenizer),
            "max_source_length": self.max_source_length,
        }
