"""Image to text: a tokenizer behind an image encoder and a decoder."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from attention_zoo.layers.spatial_attention import doubly_stochastic_penalty
from attention_zoo.models import arguments, composition, hypotheses, image_files, presets
from attention_zoo.models.caption import Caption
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.pixels import check_pixels
from attention_zoo.models.shapes import padded_count, padded_length
from attention_zoo.models.tokenizer import Tokenizer


@keras.saving.register_keras_serializable(package="attention_zoo")
class Captioner(EncoderDecoder):
    """A model that says what is in an image.

    With `doubly_stochastic`, training adds to the cross-entropy of all N tokens of a batch, before both are
    divided by N, the penalty of Xu et al. (equation 14): lambda times, for every image, the sum over its
    positions s of (1 - sum over its tokens t of a_ts)^2, a being the mean of the heads if there are any. So
    the model is drawn to look at every part of an image at some time. `evaluate` leaves it out.

    Args:
        encoder: An `ImageEncoder`.
        decoder: Layer that predicts token ids, e.g. `RNNDecoder`.
        tokenizer: Tokenizer of the captions.
        max_caption_length: Most tokens of a caption, unless `caption` is asked for more.
        doubly_stochastic: lambda; 0 for no penalty.

    Call arguments:
        inputs: dict of "source": images, uint8 or float (B, h, w, 3), or what `ImageEncoder.features` made of
            them, and "target": int (B, T), starting with the start token and padded with 0.
        training: Whether dropout and the penalty are active.
        return_attention: Whether the attention is returned as well.

    Returns:
        Logits, float32 (B, T, V), or the pair (logits, attention).

    Raises:
        ValueError: If `max_caption_length` is not positive or `doubly_stochastic` negative, or the penalty is
            wanted of a decoder without attention.

    Example:
        >>> from attention_zoo.models import Captioner, WhitespaceTokenizer
        >>> words = WhitespaceTokenizer(["a", "dog", "runs"])
        >>> model = Captioner.from_preset("vit_captioner", words, encoder={"layers": 1})
        >>> caption = model.caption(np.zeros((120, 160, 3), "uint8"), return_attention=True)
        >>> isinstance(caption.text, str), caption.attention.shape[1:]
        (True, (14, 14))

    Reference:
        Vinyals et al. 2015, "Show and Tell"; Xu et al. 2015, "Show, Attend and Tell".
    """

    def __init__(
        self,
        encoder: keras.layers.Layer,
        decoder: keras.layers.Layer,
        tokenizer: Tokenizer,
        max_caption_length: int = 50,
        doubly_stochastic: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, decoder, **kwargs)
        self.tokenizer = tokenizer
        self.max_caption_length = arguments.integer("max_caption_length", max_caption_length, 1)
        self.doubly_stochastic = arguments.not_negative("doubly_stochastic", doubly_stochastic)
        if self.doubly_stochastic and not decoder.has_attention:
            raise ValueError(
                "Captioner: expected a decoder with attention with "
                f"doubly_stochastic={self.doubly_stochastic}, received one without; leave that argument out"
            )

    @classmethod
    def from_preset(
        cls,
        name: str | os.PathLike,
        tokenizer: Tokenizer | None = None,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Captioner":
        """Builds a model by the name of its composition, or reads one that has its weights.

        `attention-zoo presets` lists the names of both.

        Args:
            name: E.g. "show_attend_and_tell", a composition; "show_attend_and_tell_scenes", which comes with
                weights and tokenizer; or a folder that `save_preset` wrote, which does too. These take no
                other arguments, and download nothing.
            tokenizer: Tokenizer of the captions.
            encoder: Arguments of the encoder to change, e.g. {"pretrained": "FILE.weights.h5"}, or
                {"backbone": "ResNet50"}. Presets with a CNN download the weights that it learned on ImageNet.
            decoder: Arguments of the decoder to change; {"attention": {...}} changes its attention's, and
                {"attention": layer} or None replaces it.
            **kwargs: Arguments of the model, e.g. doubly_stochastic or dtype.

        Returns:
            The model, with its weights, not yet compiled.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the name or an argument is unknown, the message names the allowed ones; if the
                tokenizer is missing, or anything is given to a preset with weights; if a folder is damaged.
            OSError: If weights cannot be downloaded.
        """
        changes = {"tokenizer": tokenizer, "encoder": encoder, "decoder": decoder, **kwargs}
        trained = cls._from_weights(name, changes)
        if trained is not None:
            return trained
        preset = presets.get_preset(name, task="captioning")
        arguments.check_tokenizers(name, {"tokenizer": tokenizer})
        dtype = kwargs.get("dtype")
        model = cls(
            composition.make_encoder(preset, encoder, dtype=dtype),
            composition.make_decoder(preset, decoder, vocabulary_size=tokenizer.vocabulary_size, dtype=dtype),
            tokenizer,
            **{**preset.model, **kwargs},
        )
        model.build()
        return model

    def call(
        self, inputs: dict[str, Any], training: bool | None = None, return_attention: bool = False
    ) -> Any:
        """Teacher forcing."""
        penalized = bool(training and self.doubly_stochastic)
        results = super().call(inputs, training, return_attention or penalized)
        if not penalized:
            return results
        logits, attention = results
        self.add_loss(self._penalty(self.decoder.alignment(attention), inputs["target"] != 0))
        return results if return_attention else logits

    def _penalty(self, attention: Any, real: Any) -> Any:
        """What the attention, (B, T, S), adds to a loss that is a mean over the real tokens, bool (B, T)."""
        images = ops.sum(ops.cast(ops.any(real, axis=1), "float32"))
        tokens = ops.sum(ops.cast(real, "float32"))
        penalty = doubly_stochastic_penalty(attention, target_mask=real, strength=self.doubly_stochastic)
        return penalty * images / ops.maximum(tokens, 1.0)  # `penalty` is a mean over the images

    def _smallest_source(self) -> Any:
        return ops.zeros((1, *self.encoder.grid, self.encoder.feature_dim))

    def check_vocabularies(self) -> None:
        """Raises ValueError if the tokenizer has other ids than the decoder."""
        arguments.check_vocabulary("Captioner", self.decoder, self.tokenizer)

    # === Captioning ===

    def caption(
        self,
        images: Any,
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
    ) -> Caption | list[Caption]:
        """Captions one image or several.

        Args:
            images: One image: the path of a JPEG, PNG, GIF or BMP file, the bytes of one, or an array of RGB
                pixels (h, w, 3), uint8 or float from 0 to 255. Several: a sequence of such, or an array
                (B, h, w, 3). Or what `ImageEncoder.features` returned, (H, W, C) or (B, H, W, C).
            beams: Hypotheses kept by beam search; 1 is greedy search. Of no use with `sample`.
            n_best: Hypotheses returned; the best is the caption, the rest its `alternatives`.
            length_penalty: alpha of the score log P / ((5 + length) / 6) ** alpha.
            coverage_penalty: beta of the GNMT coverage penalty; needs a model with attention.
            min_length: Least tokens of a caption.
            max_length: Most tokens; the model's `max_caption_length` if None, or as many as `min_length` or
                the prefix needs.
            prefix: What each caption must begin with, one string for all or one per image.
            return_attention: Whether each caption carries its attention; needs a model with attention.
            batch_size: Images captioned at once. The result does not depend on it, but for `product_dtype`.
            groups: See `Translator.translate`, as for all that follow.
            diversity_penalty: Between groups.
            repetition_penalty: For tokens that were said before.
            no_repeat_ngram: Length of the sequences of tokens that may not come twice.
            sample: Whether to draw tokens at random, `n_best` times, instead of searching.
            temperature: Of the drawing.
            top_k: Of the drawing.
            top_p: Of the drawing.
            seed: Of the drawing.
            product_dtype: See `Translator.translate`.

        Returns:
            A `Caption` for one image, a list of them for several.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If `images` is something else, or a number is none.
            ValueError: If a file is no image, an array has another shape, a prefix is longer than
                `max_length`, a number is out of range, or the model has no attention and it is asked for.
        """
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
        single, images = self._separate("caption", images)
        prefixes = arguments.prefix_ids(prefix, len(images), max_length, self.tokenizer, "caption")
        most = self.most_tokens(settings["min_length"], max_length, prefixes)
        key = arguments.sampling_key(seed) if sample else None
        captions = []
        for start in range(0, len(images), batch_size):
            batch = [self._pixels("caption", image) for image in images[start : start + batch_size]]
            rows = padded_count(len(batch), batch_size)
            if sample:  # what is drawn for an image depends on its number, not on its place in a batch
                numbers = range(start, start + len(batch))
                settings |= {"seed": key, "rows": arguments.sampling_rows(numbers, len(images), rows)}
            forced = prefixes[start : start + batch_size]
            width = padded_length(max(map(len, forced)))
            limits = np.full(rows, self.max_caption_length if max_length is None else max_length, "int32")
            if max_length is None:
                needed = [max(settings["min_length"], len(ids)) for ids in forced]
                limits[: len(batch)] = np.maximum(limits[: len(batch)], needed)
            limits[len(batch) :] = 0  # nothing to say about rows of padding
            results = self.generate(
                self._encoded("caption", batch, rows),
                limits=np.minimum(limits, most),
                max_length=most,
                forced_prefix=hypotheses.padded(forced, rows, width) if any(forced) else None,
                **settings,
            )
            captions += hypotheses.found(
                results, self.tokenizer, [self._positions] * len(batch), self._maker(batch)
            )
        return captions[0] if single else captions

    def score(
        self,
        images: Any,
        captions: str | Sequence[str],
        length_penalty: float = 1.0,
        return_attention: bool = False,
        batch_size: int = 32,
    ) -> Caption | list[Caption]:
        """Scores given captions: how probable the model finds them.

        Args:
            images: As for `caption`.
            captions: A string for one image, or as many strings as images.
            length_penalty: alpha of the score log P / ((5 + length) / 6) ** alpha, as in `caption`; 0 gives
                the log-probability itself.
            return_attention: Whether each carries its attention; needs a model with attention.
            batch_size: Pairs scored at once. The result does not depend on it.

        Returns:
            For each pair a `Caption` with the given text, its score, tokens and `log_probabilities` of the
            tokens; one for one image, a list for several.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If `captions` is not made of strings, `images` is something else, or a number is none.
            ValueError: If there are not as many captions as images, or as for `caption`.
        """
        single, images = self._separate("score", images)
        texts = arguments.strings("captions", [captions] if isinstance(captions, str) else captions, "score")
        if len(texts) != len(images):
            raise ValueError(
                f"score: expected a caption for each image, received {len(images)} images and "
                f"{len(texts)} captions"
            )
        alpha = arguments.not_negative("length_penalty", length_penalty)
        batch_size = arguments.integer("batch_size", batch_size, 1)
        self.check_vocabularies()
        self._check_attention(0.0, return_attention)
        ids = self.tokenizer.ids_of(texts)
        scored = []
        for start in range(0, len(images), batch_size):
            batch = [self._pixels("score", image) for image in images[start : start + batch_size]]
            scored += hypotheses.scored(
                self,
                self._encoded("score", batch, padded_count(len(batch), batch_size)),
                ids[start : start + batch_size],
                self.tokenizer,
                [self._positions] * len(batch),
                alpha,
                bool(return_attention),
                self._maker(batch, texts[start : start + batch_size]),
            )
        return scored[0] if single else scored

    @property
    def _positions(self) -> int:
        height, width = self.encoder.grid
        return height * width

    def most_tokens(
        self, min_length: int = 0, max_length: int | None = None, prefixes: Sequence[list[int]] = ()
    ) -> int:
        """The search's own maximum, one of a few, because each costs a compile.

        Args:
            min_length: As in `caption`.
            max_length: As in `caption`.
            prefixes: Ids that captions must begin with.

        Returns:
            Most tokens of a caption, within the positions that the decoder has.
        """
        most = self.max_caption_length
        needed = max([min_length, *map(len, prefixes)]) if max_length is None else max_length
        if max_length is not None or needed > most:
            most = padded_length(needed)
        if self.decoder.max_positions is not None:  # the start token has one of them
            most = min(most, self.decoder.max_positions - 1)
        return most

    def _separate(self, caller: str, images: Any) -> tuple[bool, Sequence[Any]]:
        """Whether there is one image, and the images one by one."""
        if isinstance(images, str | bytes | os.PathLike):
            return True, [images]
        if isinstance(images, list | tuple):
            return False, images
        if hasattr(images, "shape") and len(images.shape) in (3, 4):
            return (True, [images]) if len(images.shape) == 3 else (False, images)
        received = f"the shape {tuple(images.shape)}" if hasattr(images, "shape") else type(images).__name__
        raise TypeError(
            f"{caller}: expected an image (a path, the bytes of a file, or an array (h, w, 3)), several in a "
            f"list, or an array (B, h, w, 3); received {received}"
        )

    def _pixels(self, caller: str, image: Any) -> np.ndarray:
        """One image as an array (h, w, 3), or its features (H, W, C)."""
        if isinstance(image, str | os.PathLike):
            path = pathlib.Path(image)
            if not path.is_file():
                raise FileNotFoundError(f"{caller}: expected an image file, found none at {path}")
            return _decoded(caller, path.read_bytes(), str(path))
        if isinstance(image, bytes):
            return _decoded(caller, image, f"{len(image)} bytes")
        image = ops.convert_to_numpy(image)
        if image.shape != (*self.encoder.grid, self.encoder.feature_dim):
            check_pixels(caller, image)
        return image

    def _encoded(self, caller: str, images: list[np.ndarray], rows: int) -> Any:
        """Features of a batch of images, padded with zeros to a number of rows: (rows, H, W, C)."""
        size = self.encoder.image_size
        pixels = [
            image if image.shape[-1] != 3 else image_files.resize(image, size).numpy() for image in images
        ]
        if len({image.shape for image in pixels}) > 1:
            raise ValueError(f"{caller}: expected either images or features, received both in one batch")
        batch = np.zeros((rows, *pixels[0].shape), "float32")
        batch[: len(pixels)] = pixels
        if batch.shape[-1] != 3:
            return batch
        functions = self._searches.by_settings
        if "features" not in functions:
            # Not compiled with XLA, which is slow at the convolutions of large networks on a CPU.
            functions["features"] = tf.function(self.encoder.features, autograph=False)
        return functions["features"](tf.convert_to_tensor(batch))

    def _maker(self, images: list[np.ndarray], texts: Sequence[str] | None = None) -> Any:
        """Function that makes the captions of a batch, see `hypotheses.found`."""
        height, width = self.encoder.grid

        def make(row: int, attention: Any = None, **result: Any) -> Caption:
            if attention is not None:
                attention = attention.reshape(-1, height, width)  # (T, H, W)
            if texts is not None:
                result["text"] = texts[row]
            image = images[row] if images[row].shape[-1] == 3 else None
            return Caption(attention=attention, image=image, **result)

        return make

    # === Serving ===

    def export(
        self,
        folder: str | os.PathLike,
        beams: int = 4,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
        product_dtype: str | None = None,
    ) -> None:
        """Writes a folder that serves images as a SavedModel, and that `load` reads to train on.

        The signature "serving_default" takes "images": uint8 (B, h, w, 3), of any size, and "encoded" takes
        "encoded": string (B,), the bytes of JPEG, PNG, GIF or BMP files. Both return "text": string (B,),
        "score": float32 (B,), "tokens": string (B, L), padded with "", and for a model with attention
        "attention": float32 (B, L, H, W). The signature "heads" of such a model takes images and returns the
        attention of every layer and head besides: "cross_heads" (B, N, heads, L, S), S = H W, and for a
        Transformer "self_heads" (B, N, heads, L, L) and "encoder_heads" (B, N, heads, S, S). Loading it needs
        only tensorflow and, for a SentencePiece tokenizer, tensorflow_text.

        Args:
            folder: Where to write; must not exist, or be empty.
            beams: Hypotheses kept by beam search; 1 is greedy search.
            length_penalty: As in `caption`.
            coverage_penalty: As in `caption`.
            product_dtype: As in `caption`, but for any number of images.

        Raises:
            FileExistsError: If `folder` exists and is not an empty folder.
            TypeError: If a number is none.
            ValueError: If a number is out of range, or a model without attention gets a `coverage_penalty`.
        """
        from attention_zoo.models import serving

        settings = arguments.export_settings(beams, length_penalty, coverage_penalty, product_dtype)
        self._check_attention(settings["coverage_penalty"])
        images = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")]
        encoded = [tf.TensorSpec((None,), tf.string, name="encoded")]
        serve = serving.captions(self, settings)
        endpoints = {
            "serve": (serve, images),
            "encoded": (serving.captions_of_files(self, serve), encoded),
        }
        if self.decoder.has_attention:
            endpoints["heads"] = (serving.captions(self, settings, heads=True), images)
        self._write_folder(folder, endpoints)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "max_caption_length": self.max_caption_length,
            "doubly_stochastic": self.doubly_stochastic,
        }


def _decoded(caller: str, encoded: bytes, name: str) -> np.ndarray:
    """The pixels of a file, uint8 (h, w, 3)."""
    try:
        return image_files.decode(encoded).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{caller}: expected a JPEG, PNG, GIF or BMP image, received {name}, which cannot be decoded: "
            f"{error.message.splitlines()[0]}"
        ) from None
