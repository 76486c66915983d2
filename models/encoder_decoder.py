"""The base of every model: an encoder, a decoder, and search."""

import functools
import os
import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from attention_zoo.models import arguments, parallel_rows, search, trained_preset
from attention_zoo.models.compiled_function import CompiledFunction
from attention_zoo.models.teacher_forcing import TeacherForcing, check_inputs
from attention_zoo.ops.linear import bfloat16_products

FEWEST_ROUNDED = 8  # hypotheses, measured on a CPU: products of fewer rows are no faster in bfloat16


@keras.saving.register_keras_serializable(package="attention_zoo")
class EncoderDecoder(TeacherForcing):
    """An encoder and a decoder, trained by teacher forcing and decoded by search.

    How it is trained, see `TeacherForcing`. Losses and metrics count real tokens only: labels equal to 0 are
    padding.

    Args:
        encoder: Layer from a source batch to a memory (see `RNNEncoder`).
        decoder: Layer with `call`, `prepare`, `initial_state` and `step` (see `RNNDecoder`).
        share_embeddings: Whether source and target tokens are looked up in one matrix; encoder and decoder
            need the same vocabulary and embedding width.

    Call arguments:
        inputs: dict of "source": what the encoder reads, and "target": int (B, T), starting with the
            start token; or (B, N, T), N outputs for each source.
        training: Whether dropout is active.
        return_attention: Whether the attention is returned as well.

    Returns:
        Logits, float32 (B, T, V) or (B, N, T, V), or the pair (logits, attention).

    Example:
        >>> from attention_zoo.models import EncoderDecoder, RNNDecoder, RNNEncoder
        >>> model = EncoderDecoder(RNNEncoder(100, 8, 16), RNNDecoder(50, 8, 16))
        >>> logits = model({"source": ops.array([[5, 6, 2]]), "target": ops.array([[1, 7]])})
        >>> logits.shape
        TensorShape([1, 2, 50])
    """

    def __init__(
        self,
        encoder: keras.layers.Layer,
        decoder: keras.layers.Layer,
        share_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if share_embeddings:
            _share_embeddings(encoder, decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.share_embeddings = share_embeddings
        # Inside a namespace, so that neither Keras nor TensorFlow takes the functions for model state.
        self._searches = types.SimpleNamespace(by_settings={})

    def call(
        self, inputs: dict[str, Any], training: bool | None = None, return_attention: bool = False
    ) -> Any:
        """Teacher forcing."""
        check_inputs(inputs, inputs)
        target = inputs["target"]
        memory = self.encoder(inputs["source"], training=training)
        decode = functools.partial(self.decoder, training=training, return_attention=return_attention)
        if len(target.shape) < 3:
            return decode(target, memory)
        batch, outputs, _ = ops.shape(target)
        memory = keras.tree.map_structure(lambda x: ops.repeat(x, outputs, axis=0), memory)
        return search.split_hypotheses(decode(search.join_hypotheses(target), memory), batch, outputs)

    # === Search ===

    def generate(
        self,
        source: Any,
        *,
        max_length: int,
        limits: Any = None,
        forced_prefix: Any = None,
        beams: int = 1,
        n_best: int = 1,
        length_penalty: float = 0.0,
        coverage_penalty: float = 0.0,
        min_length: int = 0,
        groups: int = 1,
        diversity_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Any = None,
        rows: Any = None,
        return_attention: bool = False,
        product_dtype: str | None = None,
    ) -> dict[str, Any]:
        """Decodes a source batch, compiled with XLA once per input shape and setting.

        On a CPU with several cores a small model decodes a batch in equal parts at the same time.

        Args:
            source: What the encoder reads, e.g. int (B, S).
            max_length: Most tokens of any hypothesis, without the end token.
            limits: int (B,), most tokens for each source; `max_length` for all if None.
            forced_prefix: int (B, P), the first tokens of each output, padded with 0, or None.
            beams: Hypotheses kept; 1 is greedy search; of no use with `sample`.
            n_best: Hypotheses returned, at most `beams`; or how many are drawn.
            length_penalty: alpha of `search.beam`.
            coverage_penalty: beta of `search.beam`.
            min_length: Least tokens, without the end token.
            groups: Of diverse beam search, see `search.beam`.
            diversity_penalty: Of diverse beam search.
            repetition_penalty: See `search.beam`.
            no_repeat_ngram: See `search.beam`.
            sample: Whether to draw tokens at random instead of searching, see `search.sample`.
            temperature: Of the sampling.
            top_k: Of the sampling.
            top_p: Of the sampling.
            seed: int (2,), of the sampling.
            rows: int (B,), a number for each source, on which, with the seed, what is drawn depends; 0 to
                B - 1 if None.
            return_attention: Whether the attention of the returned hypotheses is returned.
            product_dtype: "bfloat16" rounds to it what is multiplied by the weights of most layers (see
                `compile`), unless there are fewer than 8 hypotheses in what is decoded at once.

        Returns:
            What `search.beam` returns: "tokens", "scores", "log_probabilities", "lengths", "attention"; with
            `return_attention`, also "alignment" (B, N, L, S), where each token looked in one matrix, "heads",
            a dict of "cross" (B, N, L, layers, H, S) and for a Transformer "self" (B, N, L, layers, H, L),
            and, if the encoder has attention, "encoder" (B, layers, H, S, S).

        Raises:
            ValueError: If a number is out of range, an option belongs to another way of decoding, or a model
                without attention gets a `coverage_penalty`.
        """
        if n_best < 1 or beams < 1 or (n_best > beams and not sample):
            raise ValueError(
                f"generate: expected beams of at least 1 and n_best from 1 to beams, received beams={beams} "
                f"and n_best={n_best}"
            )
        settings = {
            "max_length": max_length,
            "length_penalty": length_penalty,
            "coverage_penalty": coverage_penalty,
            "min_length": min_length,
            "repetition_penalty": repetition_penalty,
            "no_repeat_ngram": no_repeat_ngram,
            "return_attention": return_attention,
            "product_dtype": arguments.check_product_dtype(product_dtype),
        }
        diversity = {"groups": groups, "diversity_penalty": diversity_penalty}
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if sample:
            _refuse(diversity, {"groups": 1, "diversity_penalty": 0.0}, "sample=False")
            settings |= {"samples": n_best, **drawing}
            if seed is None:
                raise ValueError("generate: expected a seed, int (2,), with sample=True, received None")
        else:
            _refuse(drawing, {"temperature": 1.0, "top_k": None, "top_p": None}, "sample=True")
            seed, rows = None, None
        if not sample and beams > 1:
            settings |= {"beams": beams, "n_best": n_best, **diversity}
        elif not sample:
            _refuse(diversity, {"groups": 1, "diversity_penalty": 0.0}, "beams of at least 2")
        self._ensure_built(source)
        source = tf.convert_to_tensor(source)
        count = source.shape[0] or 1  # inside a graph it may be unknown
        parts = parallel_rows.count_parts(self.decoder, count, max(beams, n_best))
        if parts > 1 and sample and rows is None:
            rows = range(count)
        inputs = {
            "source": source,
            "limits": limits,
            "forced_prefix": forced_prefix,
            "seed": seed,
            "rows": rows,
        }
        key = (parts, *settings.items())
        searches = self._searches.by_settings
        if key not in searches:
            decode = functools.partial(self.decode, settings)
            compiled = tf.function(decode, jit_compile=True, autograph=False)
            if parts > 1:
                compiled = parallel_rows.in_parts(compiled, parts, shared=["seed"])
            searches[key] = CompiledFunction(compiled)
        # A list would be a constant of the compiled function; a tensor is its argument.
        inputs = {name: None if x is None else tf.convert_to_tensor(x) for name, x in inputs.items()}
        return searches[key](**inputs)

    def decode(
        self,
        settings: dict[str, Any],
        source: Any,
        limits: Any = None,
        forced_prefix: Any = None,
        seed: Any = None,
        rows: Any = None,
    ) -> dict[str, Any]:
        """What `generate` compiles, for those who compile it themselves.

        Args:
            settings: Options of `search.sample` if "samples" is among them, of `search.beam` if "beams" is,
                else of `search.greedy`; and "product_dtype", see `generate`.
            source: As for `generate`, like the other arguments.
            limits: See `generate`.
            forced_prefix: See `generate`.
            seed: See `generate`.
            rows: See `generate`.

        Returns:
            What `generate` returns.
        """
        settings = dict(settings)
        hypotheses = settings.get("samples") or settings.get("beams", 1)
        product_dtype = settings.pop("product_dtype", None)
        few = source.shape[0] is not None and source.shape[0] * hypotheses < FEWEST_ROUNDED
        with bfloat16_products(product_dtype is not None and not few):
            memory = self._encode(source, settings["return_attention"])
            prepared = self.decoder.prepare(memory)
            state = self.decoder.initial_state(
                prepared,
                hypotheses,
                max_positions=settings["max_length"] + 1,
                reordered="samples" not in settings,
            )
            if "samples" in settings:
                decode = functools.partial(search.sample, seed=seed, rows=rows)
            else:
                decode = search.beam if "beams" in settings else search.greedy
            results = decode(
                lambda token, state: self.decoder.step(token, state, prepared),
                state,
                batch_size=ops.shape(memory["mask"])[0],
                limits=limits,
                forced_prefix=forced_prefix,
                source_mask=memory["mask"],
                alignment=self.decoder.alignment,
                **settings,
            )
        return results | self._attention_results(results["attention"], memory)

    # === Scoring ===

    def score_ids(
        self, source: Any, target: Any, labels: Any, return_attention: bool = False
    ) -> dict[str, Any]:
        """What the model thinks of given outputs, compiled with XLA once per input shape.

        Args:
            source: What the encoder reads, e.g. int (B, S).
            target: int (B, T), the outputs, beginning with the start token.
            labels: int (B, T), the outputs, ending with the end token, padded with 0.
            return_attention: Whether the attention is returned as well.

        Returns:
            A dict of "token_log_probabilities", float32 (B, T), 0 at padding; with `return_attention` also
            "attention", "alignment", "heads" and "encoder" as from `generate`, without its axis N.
        """
        self._ensure_built(source)
        key = ("score", return_attention)
        functions = self._searches.by_settings
        if key not in functions:
            functions[key] = tf.function(
                functools.partial(self._score, return_attention), jit_compile=True, autograph=False
            )
        return functions[key](*(tf.convert_to_tensor(x) for x in (source, target, labels)))

    def _score(self, return_attention: bool, source: Any, target: Any, labels: Any) -> dict[str, Any]:
        memory = self._encode(source, return_attention)
        logits, attention = self.decoder(target, memory, training=False, return_attention=True)
        index = ops.expand_dims(labels, -1)  # (B, T, 1)
        chosen = ops.take_along_axis(ops.log_softmax(logits), index, axis=-1)[..., 0]  # (B, T)
        results = {"token_log_probabilities": ops.where(labels != 0, chosen, 0.0)}
        return results | self._attention_results(attention if return_attention else None, memory)

    def _check_attention(self, coverage_penalty: float, return_attention: bool = False) -> None:
        """Raises ValueError if something is asked of the attention of a model that has none."""
        if not self.decoder.has_attention and (coverage_penalty or return_attention):
            asked = "return_attention=True" if return_attention else f"coverage_penalty={coverage_penalty}"
            raise ValueError(
                f"{type(self).__name__}: expected a model with attention for {asked}, received one whose "
                "decoder has none; leave that argument out, or take a preset with attention"
            )

    def _ensure_built(self, source: Any) -> None:
        """A model composed by hand may have no weights yet, and none can be made while compiling."""
        if not self.built:
            self({"source": source, "target": ops.ones((len(source), 1), "int32")})

    def _encode(self, source: Any, return_attention: bool) -> dict[str, Any]:
        asked = {"return_attention": True} if return_attention and self.encoder.has_attention else {}
        return self.encoder(source, training=False, **asked)

    def _attention_results(self, attention: Any, memory: dict[str, Any]) -> dict[str, Any]:
        """The attention of the decoder and, if the memory has it, of the encoder, ready to be looked at."""
        if attention is None:
            return {"attention": None}
        results = {
            "attention": attention,
            "alignment": self.decoder.alignment(attention),  # (..., T, S)
            "heads": self.decoder.heads(attention),  # of (..., T, N, H, S)
        }
        return results | ({"encoder": memory["attention"]} if "attention" in memory else {})

    # === Saving ===

    @classmethod
    def _from_weights(cls, preset: str | os.PathLike, changes: dict[str, Any]) -> "EncoderDecoder | None":
        """The model of a preset with weights, in which nothing can be changed; None if it has none."""
        folder = trained_preset.find_folder(preset)
        if folder is None:
            return None
        from attention_zoo.models import preset_folder

        trained_preset.refuse_changes(preset, changes)
        return preset_folder.load(folder, cls)

    def save_preset(self, folder: str | os.PathLike, dtype: str = "float32", card: str | None = None) -> None:
        """Writes a folder that `from_preset` reads: plain files, with checksums, without code.

        The folder holds the configuration, the weights, the vocabularies and a model card, but nothing of the
        training: neither the optimizer nor what `compile` was given. To go on with a training, `save` or
        `export`.

        Args:
            folder: Where to write; must not exist.
            dtype: Of the stored weights: "float32" keeps them as they are, "float16" takes half of the space.
            card: Text of the model card, README.md, in Markdown; None writes a short one.

        Raises:
            FileExistsError: If `folder` exists.
            ValueError: If the dtype is another, a weight is too large for it, or the model has parts that are
                neither of this library nor plain ones of Keras.
        """
        from attention_zoo.models import preset_folder

        preset_folder.save(self, folder, dtype, files=None if card is None else {preset_folder.CARD: card})

    def _write_folder(
        self, folder: str | os.PathLike, endpoints: dict[str, tuple[Callable, list[tf.TensorSpec]]]
    ) -> None:
        """Writes a SavedModel with these signatures, and the model itself for `saving.load`."""
        from attention_zoo.models import common_subexpressions, saving

        self.check_vocabularies()
        self.build()
        # Concrete functions: others are traced anew when they are saved, and so are those of Keras's archive.
        functions = {
            name: tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
            for name, (function, signature) in endpoints.items()
        }
        with saving.written_whole(folder) as temporary:
            module = _Served(self, functions)
            tf.saved_model.save(
                module, temporary, signatures={**functions, "serving_default": functions["serve"]}
            )
            common_subexpressions.merge(temporary)
            file = temporary / saving.KERAS_FILE
            file.parent.mkdir()
            self.save(file)

    def build(self, input_shape: Any = None) -> None:
        """Creates every weight by running once on the smallest input."""
        if not self.built:
            memory = self.encoder(self._smallest_source())
            self.decoder(ops.ones((1, 2), "int32"), memory)
        self.built = True

    def _smallest_source(self) -> Any:
        """Something that the encoder can read."""
        return ops.ones((1, 2), "int32")

    def get_build_config(self) -> dict[str, Any]:
        """No shape: the configuration alone determines every weight's."""
        return {"input_shape": None}  # not empty, or Keras would leave the loaded model unbuilt

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates the weights of a loaded model."""
        self.build()

    def save_own_variables(self, store: Any) -> None:
        """Saves the dropout generators, which Keras leaves out, so that training resumes exactly."""
        for index, generator in enumerate(self._dropout_generators()):
            store[f"dropout_generator_{index}"] = ops.convert_to_numpy(generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Restores the dropout generators."""
        for index, generator in enumerate(self._dropout_generators()):
            name = f"dropout_generator_{index}"
            if name in store:  # weights of a model without this dropout can be loaded too
                generator.state.assign(store[name])

    def _dropout_generators(self) -> list[keras.random.SeedGenerator]:
        return [generator for layer in self._flatten_layers() for generator in layer._seed_generators]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "encoder": _serialize_unbuilt(self.encoder),
            "decoder": _serialize_unbuilt(self.decoder),
            "share_embeddings": self.share_embeddings,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "EncoderDecoder":
        """Builds the model from its configuration."""
        return cls(**{name: _deserialize(value) for name, value in config.items()})


class _Served(tf.Module):
    """What functions of a model need, and nothing else of it.

    To save the model itself would write each variable twice: as Keras's, and as TensorFlow's within that.
    """

    def __init__(self, model: EncoderDecoder, functions: dict[str, Any]) -> None:
        super().__init__()
        for name, function in functions.items():
            setattr(self, name, function)
        used = [variable for function in functions.values() for variable in function.variables]
        self.used = list({id(variable): variable for variable in used}.values())
        parts = tf.train.TrackableView(model).descendants()
        resource = tf.saved_model.experimental.TrackableResource
        self.vocabularies = [part for part in parts if isinstance(part, resource)]


def _refuse(options: dict[str, Any], defaults: dict[str, Any], needed: str) -> None:
    """Raises ValueError if an option is set that would have no effect."""
    for name, value in options.items():
        if value != defaults[name]:
            raise ValueError(
                f"generate: expected {needed} with {name}={value}, received other; change that, or leave "
                f"{name} out"
            )


def _share_embeddings(encoder: keras.layers.Layer, decoder: keras.layers.Layer) -> None:
    """Gives two layers that have no weights yet one embedding."""
    if encoder.built or decoder.built:
        raise ValueError(
            "EncoderDecoder: expected an encoder and a decoder without weights with share_embeddings=True, "
            "received one that has been called or built; make new ones"
        )
    embedding, other = encoder.make_embedding(), decoder.make_embedding()
    sizes, expected = [(layer.vocabulary_size, layer.units, layer.scale) for layer in (other, embedding)]
    if sizes != expected:
        raise ValueError(
            "EncoderDecoder: expected a decoder with the encoder's vocabulary, embedding width and scale, "
            f"{expected}, with share_embeddings=True; received {sizes}"
        )
    encoder.embedding = decoder.embedding = embedding


def _serialize_unbuilt(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layer as a config from which it comes back without weights: the model builds it."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)  # with it, each would come back with an embedding of its own
    return config


def _deserialize(value: Any) -> Any:
    serialized = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if serialized else value
