"""The base of every model: an encoder, a decoder, compiled training and search."""

import functools
import logging
import os
import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from attention_zoo.losses import MaskedCrossentropy, token_weights
from attention_zoo.metrics import Perplexity, TokenAccuracy, TokenMetric
from attention_zoo.models import replicas, search
from attention_zoo.schedules import InverseSquareRootSchedule

logger = logging.getLogger("attention_zoo")


@keras.saving.register_keras_serializable(package="attention_zoo")
class EncoderDecoder(keras.Model):
    """An encoder and a decoder, trained by teacher forcing and decoded by search.

    Training runs forward and backward in one XLA-compiled function; the optimizer applies the
    gradients outside it, which is what lets the same step run under tf.distribute. Losses and
    metrics count real tokens only: labels equal to 0 are padding.

    Args:
        encoder: Layer from a source batch to a memory (see `RNNEncoder`).
        decoder: Layer with `call`, `prepare`, `initial_state` and `step` (see `RNNDecoder`).
        share_embeddings: Whether source and target tokens are looked up in one matrix; encoder and decoder
            need the same vocabulary and embedding width.

    Call arguments:
        inputs: dict of "source": what the encoder reads, and "target": int (B, T), starting with the
            start token.
        training: Whether dropout is active.
        return_attention: Whether the attention is returned as well.

    Returns:
        Logits, float32 (B, T, V), or the pair (logits, attention).

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
        self._objective = None
        # Inside a namespace, so that neither Keras nor TensorFlow takes the functions for model state.
        self._searches = types.SimpleNamespace(by_settings={})

    def call(
        self, inputs: dict[str, Any], training: bool | None = None, return_attention: bool = False
    ) -> Any:
        """Teacher forcing."""
        _check_inputs(inputs, inputs)
        memory = self.encoder(inputs["source"], training=training)
        return self.decoder(inputs["target"], memory, training=training, return_attention=return_attention)

    # === Training ===

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: list | None = None,
        jit_compile: bool = True,
        micro_batches: int = 1,
        **kwargs: Any,
    ) -> None:
        """Configures training; every argument has a default that suits translation.

        Args:
            optimizer: Default: Adam (beta_2 0.98, gradients clipped to norm 1) with a peak learning
                rate of 0.001 after 400 steps of warm-up, then the inverse square root.
            loss: A Keras loss, which averages in its own way, or a function of (labels, logits) to (B, T),
                averaged over the real tokens. Default: `MaskedCrossentropy(label_smoothing=0.1)`.
            metrics: Default: `TokenAccuracy` and `Perplexity`.
            jit_compile: Whether forward and backward are compiled with XLA, on CPU too.
            micro_batches: Parts that a batch (under tf.distribute, each replica's share) is computed in, one
                after the other, to save memory. The update is that of the whole batch.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is a name: Keras's named losses take probabilities, not logits. If a batch
                is computed in parts (on several replicas or as micro-batches) and `loss` averages in its
                own way, or the optimizer does what Keras cannot do then.
        """
        if micro_batches < 1:
            raise ValueError(f"compile: expected micro_batches of at least 1, received {micro_batches}")
        if optimizer is None:
            with self.distribute_strategy.scope():
                optimizer = keras.optimizers.Adam(
                    InverseSquareRootSchedule(1e-3, warmup_steps=400), beta_2=0.98, global_clipnorm=1.0
                )
        if loss is None:
            loss = MaskedCrossentropy(label_smoothing=0.1)
        if metrics is None:
            with self.distribute_strategy.scope():
                metrics = [TokenAccuracy(), Perplexity()]
        # Keras's own jit would compile the optimizer too, which no tf.distribute strategy survives; and
        # its loss and metrics would need the logits outside the compiled function.
        others = [metric for metric in metrics if not isinstance(metric, TokenMetric)]
        with self.distribute_strategy.scope():
            super().compile(optimizer=optimizer, metrics=others or None, jit_compile=False, **kwargs)
        self._objective = _Objective(
            arguments={
                "optimizer": optimizer, "loss": loss, "metrics": metrics, "jit_compile": jit_compile,
                "micro_batches": micro_batches, **kwargs
            },
            loss=_loss_function(loss),
            token_metrics=[metric for metric in metrics if isinstance(metric, TokenMetric)],
            needs_logits=bool(others or kwargs.get("weighted_metrics")),
            xla=bool(jit_compile) and not self.run_eagerly,
            micro_batches=micro_batches,
        )  # fmt: skip
        if micro_batches > 1 or self._is_distributed:
            _check_adds_up(loss)
        if self._is_distributed:
            self._prepare_optimizer()
        compiled = functools.partial(tf.function, jit_compile=True) if self._objective.xla else lambda f: f
        self._objective.forward_backward = compiled(self._gradients)
        self._objective.forward = compiled(self._evaluate)
        logger.info(self.compilation)

    @property
    def compilation(self) -> str:
        """What runs compiled with XLA and what does not, in one sentence."""
        compiled, plain = "search", "data pipeline, tokenizers"
        if self._objective is not None:
            if self._objective.xla:
                compiled, plain = f"forward, backward, metrics, {compiled}", f"optimizer update, {plain}"
            else:
                plain = f"forward, backward, metrics, optimizer update, {plain}"
        return f"compiled with XLA: {compiled}; not compiled: {plain}"

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Every metric, so that Keras resets them all between epochs."""
        return super().metrics + ([] if self._objective is None else self._objective.token_metrics)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given, so that a loaded model trains on in the same way."""
        if not self.compiled:
            return {}
        arguments = keras.saving.serialize_keras_object(self._objective.arguments)
        return {**arguments, "optimizer_is_built": self.optimizer.built}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as the saved one was."""
        config = dict(config)
        # The file holds an optimizer's state only if it has taken a step.
        has_state = config.pop("optimizer_is_built", True)
        self.compile(**keras.saving.deserialize_keras_object(config))
        if has_state:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training; called by `fit`, and under tf.distribute by each replica."""
        parts = replicas.split_rows(_unpack(data), self._objective.micro_batches)
        # A mean over the tokens of a part counts as much as its share of all tokens, so that the update is
        # the same in whatever parts the batch is computed.
        tokens = [ops.sum(token_weights(y, sample_weight)) for _, y, sample_weight in parts]
        all_tokens = replicas.sum_over_replicas(sum(tokens))
        gradients = None
        for part, count in zip(parts, tokens, strict=True):
            share = ops.divide_no_nan(count, all_tokens)
            results, more = self._objective.forward_backward(*part, share)
            gradients = more if gradients is None else [a + b for a, b in zip(gradients, more, strict=True)]
            _, y, sample_weight = part
            logs = self._update_metrics(y, sample_weight, results)
        # Summed before the optimizer clips them or looks for infinities, which it does on each replica.
        self.optimizer.apply(replicas.sum_over_replicas(gradients), self.trainable_variables)
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation; called by `evaluate`, and by `fit` for validation data."""
        x, y, sample_weight = _unpack(data)
        return self._update_metrics(y, sample_weight, self._objective.forward(x, y, sample_weight))

    def _gradients(self, x: Any, y: Any, sample_weight: Any, share: Any) -> tuple[dict[str, Any], list[Any]]:
        with tf.GradientTape() as tape:
            results = self._evaluate(x, y, sample_weight, training=True)
            loss = self.optimizer.scale_loss(results["loss"] * ops.cast(share, results["loss"].dtype))
        gradients = tape.gradient(loss, self.trainable_weights)
        # Embedding gradients come as slices, which cannot leave a compiled function.
        return results, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, training: bool = False) -> dict[str, Any]:
        """Loss, weight of the real tokens, and what the metrics need: runs compiled."""
        logits = self(x, training=training)
        loss = self._objective.loss(y, logits, sample_weight=sample_weight)
        for penalty in self.losses:
            loss += ops.cast(penalty, loss.dtype)
        return {
            "loss": loss,
            "tokens": ops.sum(token_weights(y, sample_weight)),
            "statistics": [metric.statistics(y, logits) for metric in self._objective.token_metrics],
            "logits": logits if self._objective.needs_logits else None,
        }

    def _update_metrics(self, y: Any, sample_weight: Any, results: dict[str, Any]) -> dict[str, Any]:
        # Weighted, so that an epoch's loss is the mean over its tokens, however batches share them.
        self._loss_tracker.update_state(results["loss"], sample_weight=results["tokens"])
        for metric, sums in zip(self._objective.token_metrics, results["statistics"], strict=True):
            metric.update_from_statistics(sums)
        if self._objective.needs_logits:
            self._compile_metrics.update_state(y, results["logits"], sample_weight)
        return self.get_metrics_result()

    # === Training under tf.distribute ===

    def fit(self, x: Any = None, *args: Any, validation_data: Any = None, **kwargs: Any) -> Any:
        """Trains the model, on all replicas of the strategy in whose scope it was made.

        Args:
            x: As in `keras.Model.fit`. Under a strategy, every batch of a `tf.data.Dataset` is shared out
                among all replicas of all workers; on several workers it must be a dataset, with the same
                batches in the same order on each of them (seed its `shuffle`).
            *args: As in `keras.Model.fit`.
            validation_data: Likewise.
            **kwargs: Likewise.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If there are several workers, and data that are no dataset.
        """
        return super().fit(
            self._shared_out(x), *args, validation_data=self._shared_out(validation_data), **kwargs
        )

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics; data, arguments and results as in `fit` and `keras.Model.evaluate`."""
        within_fit = kwargs.get("_use_cached_eval_dataset")  # which has shared out the data already
        return super().evaluate(x if within_fit else self._shared_out(x), *args, **kwargs)

    @property
    def _is_distributed(self) -> bool:
        return self.distribute_strategy.num_replicas_in_sync > 1

    def _shared_out(self, data: Any) -> Any:
        """Data whose elements fall into equal parts, one for each replica.

        tf.distribute splits a batch by itself, but unequally: XLA would compile each size, and a replica may
        be left without a row.
        """
        if not self._is_distributed or data is None or isinstance(data, tf.distribute.DistributedDataset):
            return data
        if not isinstance(data, tf.data.Dataset):
            if replicas.is_multi_worker(self.distribute_strategy):
                raise ValueError(
                    f"fit: expected a tf.data.Dataset on several workers, received {type(data).__name__}; "
                    "make one that gives every worker the same batches in the same order"
                )
            return data
        count = self.distribute_strategy.num_replicas_in_sync
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        stacked = data.map(lambda *batch: {_PARTS: replicas.stack_rows(batch, count)}).with_options(options)
        # Without fetching ahead: that begins when an iterator is made, and Keras makes one after every epoch
        # that it throws away. Data whose order depends on the epoch would be out of step.
        ahead = tf.distribute.InputOptions(experimental_fetch_to_device=False)
        return self.distribute_strategy.experimental_distribute_dataset(stacked.prefetch(2), ahead)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Makes all variables before the first step, where Keras's own way fails on several workers."""
        if not self._is_distributed:
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        with self.distribute_strategy.scope():
            self.build()
            self.optimizer.build(self.trainable_variables)
            if self._objective.needs_logits and not self._compile_metrics.built:
                target = ops.ones((1, 2), "int32")
                logits = self({"source": self._smallest_source(), "target": target})
                self._compile_metrics.build(target, logits)

    def _make_function(self, step_function: Callable) -> Callable:
        """Runs a step on all replicas; Keras's own way reduces the logs, and fails on several workers."""
        if not self._is_distributed:
            return super()._make_function(step_function)
        strategy = self.distribute_strategy

        def step(batch: Any) -> Any:
            logs = strategy.run(step_function, args=(batch,))
            # The metrics behind the logs are sums over all replicas: each has the same.
            return keras.tree.map_structure(lambda x: strategy.experimental_local_results(x)[0], logs)

        if not self.run_eagerly:
            step = tf.function(step, reduce_retracing=True, autograph=False)
        return lambda iterator: step(next(iter(iterator)))

    def _prepare_optimizer(self) -> None:
        """Checks that the optimizer works on several replicas, and makes it take gradients already summed."""
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not self.distribute_strategy.extended.variable_created_in_scope(inner.variables[0].value):
            raise ValueError(
                "compile: expected an optimizer made in the scope of the model's strategy, received one made "
                "outside; make it under `with strategy.scope():`"
            )
        for name, instead in (
            ("gradient_accumulation_steps", "compile(micro_batches=...)"),
            ("ema_overwrite_frequency", "None, with which `fit` ends with the averages"),
        ):
            if getattr(inner, name):
                raise ValueError(
                    f"compile: expected an optimizer without {name} under a strategy with several replicas, "
                    f"received {name}={getattr(inner, name)}; take {instead}"
                )
        if self.steps_per_execution != 1:
            raise ValueError(
                "compile: expected steps_per_execution=1 under a strategy with several replicas, received "
                f"{self.steps_per_execution}; leave it out"
            )
        replicas.expect_reduced_gradients(self.optimizer)

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
    ) -> dict[str, Any]:
        """Decodes a source batch, compiled with XLA once per input shape and setting.

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
        key = tuple(settings.items())
        searches = self._searches.by_settings
        if key not in searches:
            searches[key] = tf.function(
                functools.partial(self.decode, settings), jit_compile=True, autograph=False
            )
        # A list would be a constant of the compiled function; a tensor is its argument.
        inputs = (source, limits, forced_prefix, seed, rows)
        return searches[key](*(None if x is None else tf.convert_to_tensor(x) for x in inputs))

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
                else of `search.greedy`.
            source: As for `generate`, like the other arguments.
            limits: See `generate`.
            forced_prefix: See `generate`.
            seed: See `generate`.
            rows: See `generate`.

        Returns:
            What `generate` returns.
        """
        memory = self._encode(source, settings["return_attention"])
        prepared = self.decoder.prepare(memory)
        hypotheses = settings.get("samples") or settings.get("beams", 1)
        state = self.decoder.initial_state(prepared, hypotheses, max_positions=settings["max_length"] + 1)
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

    def _write_folder(
        self, folder: str | os.PathLike, endpoints: dict[str, tuple[Callable, list[tf.TensorSpec]]]
    ) -> None:
        """Writes a SavedModel with these signatures, and the model itself for `saving.load`."""
        from attention_zoo.models import saving

        self.check_vocabularies()
        self.build()
        with saving.written_whole(folder) as temporary:
            archive = keras.export.ExportArchive()
            archive.track(self)
            for name, (function, signature) in endpoints.items():
                archive.add_endpoint(name, function, input_signature=signature)
            archive.write_out(temporary, verbose=False)
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


class _Objective:
    """What `compile` sets up; a plain object, so that Keras does not track it as part of the model."""

    def __init__(
        self,
        arguments: dict[str, Any],
        loss: Callable,
        token_metrics: list[TokenMetric],
        needs_logits: bool,
        xla: bool,
        micro_batches: int,
    ) -> None:
        self.arguments = arguments
        self.loss = loss
        # Our metrics are sums, made inside the compiled function; only others need the logits.
        self.token_metrics = token_metrics
        self.needs_logits = needs_logits
        self.xla = xla
        self.micro_batches = micro_batches
        self.forward_backward = None
        self.forward = None


def _loss_function(loss: Any) -> Callable:
    """A loss as a function of labels, logits and sample weights."""
    if isinstance(loss, str):
        raise ValueError(
            f"compile: expected a loss object or function, received the name {loss!r}, which stands for "
            "a loss that takes probabilities; leave `loss` out, or make a loss that takes logits"
        )
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss

    def mean_over_tokens(labels: Any, logits: Any, sample_weight: Any = None) -> Any:
        weights = token_weights(labels, sample_weight)  # (B, T)
        return ops.divide_no_nan(ops.sum(weights * loss(labels, logits)), ops.sum(weights))

    return mean_over_tokens


_PARTS = "attention_zoo_parts"  # in a batch that is shared out: (x, y) with a first axis of length 1


def _check_adds_up(loss: Any) -> None:
    """Raises ValueError unless the loss of a batch is known from those of its parts."""
    if isinstance(loss, keras.losses.Loss) and not isinstance(loss, MaskedCrossentropy):
        raise ValueError(
            "compile: expected a loss that is averaged over the tokens where a batch is computed in parts "
            f"(on several replicas or as micro-batches), received a {type(loss).__name__}, which averages in "
            "its own way; take MaskedCrossentropy, or a function of (labels, logits) to (B, T)"
        )


def _unpack(data: Any) -> tuple[Any, Any, Any]:
    if isinstance(data, dict) and set(data) == {_PARTS}:
        data = keras.tree.map_structure(lambda x: tf.squeeze(x, 0), data[_PARTS])  # (1, B, ...) -> (B, ...)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    _check_inputs(x, data)
    if y is None:
        raise ValueError(f"{_EXPECTED}, received no labels: {_described(data)}")
    if not tf.TensorShape(x["target"].shape).is_compatible_with(y.shape):
        raise ValueError(f"{_EXPECTED} of the target's shape (B, T), received {_described(data)}")
    return x, y, sample_weight


_EXPECTED = 'EncoderDecoder: expected batches of ({"source": ..., "target": ...}, labels)'


def _check_inputs(x: Any, received: Any) -> None:
    if not isinstance(x, dict) or not {"source", "target"} <= set(x):
        raise ValueError(f"{_EXPECTED}, received {_described(received)}")


def _described(batch: Any) -> Any:
    """The structure of a batch, with shapes and types in place of numbers."""
    return keras.tree.map_structure(
        lambda x: f"{keras.backend.standardize_dtype(x.dtype)} {x.shape}" if hasattr(x, "dtype") else x, batch
    )


def _serialize_unbuilt(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layer as a config from which it comes back without weights: the model builds it."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)  # with it, each would come back with an embedding of its own
    return config


def _deserialize(value: Any) -> Any:
    serialized = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if serialized else value
