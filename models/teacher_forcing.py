"""Training by teacher forcing: compiled, on one device or on many."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from attention_zoo.losses import MaskedCrossentropy, expected_risk, token_weights
from attention_zoo.metrics import Perplexity, TokenAccuracy, TokenMetric
from attention_zoo.models import replicas
from attention_zoo.models.arguments import check_product_dtype
from attention_zoo.models.halves import DropoutStates, can_be_halved
from attention_zoo.ops.linear import bfloat16_products
from attention_zoo.ops.seeds import part_of_batch
from attention_zoo.schedules import InverseSquareRootSchedule

logger = logging.getLogger("attention_zoo")


class TeacherForcing(keras.Model):
    """Base of `EncoderDecoder`: `compile`, `fit` and `evaluate`.

    A batch is `({"source": ..., "target": int (B, T)}, labels int (B, T))`, with an optional sample weight;
    calling the model on the first part gives logits (B, T, V). Labels equal to 0 are padding. For minimum
    risk training target and labels are (B, 1 + K, T), the reference and K candidates, and beside them stands
    "costs", float (B, K), what each candidate costs.

    Forward and backward run in one XLA-compiled function; the optimizer applies the gradients outside it,
    which is what lets the same step run in every replica of a tf.distribute strategy. The loss is the mean
    over the real tokens of the whole batch, in however many parts it is computed: on a CPU of several cores,
    in two halves at the same time.

    Raises:
        ValueError: In `fit` and `evaluate`, if batches have another structure or other shapes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._objective = None

    # === Compilation ===

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: list | None = None,
        jit_compile: bool = True,
        micro_batches: int = 1,
        r_drop: float = 0.0,
        risk: float = 0.0,
        product_dtype: str | None = None,
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
                after the other, to save memory. The update is that of the whole batch. 1 allows for halves at
                the same time.
            r_drop: alpha of R-Drop, 5 in the paper; 0 for none. Each batch is passed through the model twice,
                with other dropout, and the two predictions P and Q of a token are drawn together:
                loss = (loss(P) + loss(Q)) / 2 + alpha / 4 (KL(P || Q) + KL(Q || P)), half of the paper's. A
                step takes twice the time and memory.
            risk: lambda of minimum risk training; 0 for none. The loss becomes the loss of the reference plus
                lambda times the `expected_risk` of the candidates, averaged over the sources, each weighted
                by the tokens of its reference. Each batch must have candidates (`RiskBatches` makes them).
                For a model that is trained already.
            product_dtype: "bfloat16" rounds to it, in training only, what is multiplied by the weights of
                projections, feed-forward layers and logits, and the gradients that go back through them, for
                those of the weights too. All else, sums, activations, weights, recurrent cells, keeps its
                dtype. Faster on CPUs with instructions for bfloat16. None rounds nothing, nor does a model
                that runs eagerly.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is a name: Keras's named losses take probabilities, not logits. If a batch
                is computed in parts (on several replicas or as micro-batches) and `loss` averages in its
                own way, or the optimizer does what Keras cannot do then. If both `r_drop` and `risk` are
                asked for. If `product_dtype` is another one, or `jit_compile` is False.

        Reference:
            Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks"; Shen et al. 2016, "Minimum
            Risk Training for Neural Machine Translation".
        """
        if micro_batches < 1:
            raise ValueError(f"compile: expected micro_batches of at least 1, received {micro_batches}")
        if r_drop < 0:
            raise ValueError(f"compile: expected r_drop of at least 0, received {r_drop}")
        if risk < 0:
            raise ValueError(f"compile: expected risk of at least 0, received {risk}")
        if risk and r_drop:
            raise ValueError(
                f"compile: expected one of r_drop and risk, received r_drop={r_drop} and risk={risk}; train "
                "with one after the other"
            )
        if check_product_dtype(product_dtype) and not jit_compile:
            raise ValueError(
                f"compile: expected jit_compile=True with product_dtype={product_dtype!r}, as only XLA has "
                f"such products; received jit_compile={jit_compile}"
            )
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
                "micro_batches": micro_batches, "r_drop": r_drop, "risk": risk,
                "product_dtype": product_dtype, **kwargs
            },
            loss=_loss_function(loss),
            adds_up=not isinstance(loss, keras.losses.Loss) or isinstance(loss, MaskedCrossentropy),
            token_metrics=[metric for metric in metrics if isinstance(metric, TokenMetric)],
            needs_logits=bool(others or kwargs.get("weighted_metrics")),
            xla=bool(jit_compile) and not self.run_eagerly,
            micro_batches=micro_batches,
            r_drop=r_drop,
            risk=risk,
            product_dtype=product_dtype,
        )  # fmt: skip
        if (micro_batches > 1 or self._is_distributed) and not self._objective.adds_up:
            raise ValueError(
                "compile: expected a loss that is averaged over the tokens where a batch is computed in "
                f"parts (on several replicas or as micro-batches), received a {type(loss).__name__}, which "
                "averages in its own way; take MaskedCrossentropy, or a function of (labels, logits) to "
                "(B, T)"
            )
        if self._is_distributed:
            replicas.prepare_optimizer(self.optimizer, self.distribute_strategy)
            if self.steps_per_execution != 1:
                raise ValueError(
                    "compile: expected steps_per_execution=1 under a strategy with several replicas, "
                    f"received {self.steps_per_execution}; leave it out"
                )
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

    # === Steps ===

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training; called by `fit`, and under tf.distribute by each replica."""
        batch = _unpack(data)
        _check_candidates(batch[0], self._objective.risk)
        dropout = DropoutStates(self) if self._in_halves(batch[1].shape[0]) else None
        parts = replicas.split_rows(batch, 2 if dropout else self._objective.micro_batches)
        # A mean over the tokens of a part counts as much as its share of all tokens, so that the update is
        # the same in whatever parts the batch is computed.
        tokens = [ops.sum(token_weights(_reference(y), sample_weight)) for _, y, sample_weight in parts]
        all_tokens = replicas.sum_over_replicas(sum(tokens))
        states = dropout.read() if dropout else None
        gradients = None
        for number, (part, count) in enumerate(zip(parts, tokens, strict=True)):
            share = ops.divide_no_nan(count, all_tokens)
            half = (tf.constant(number), states) if dropout else None
            results, more = self._objective.forward_backward(*part, share, half)
            gradients = more if gradients is None else [a + b for a, b in zip(gradients, more, strict=True)]
            _, y, sample_weight = part
            logs = self._update_metrics(y, sample_weight, count, results)
        if dropout:
            dropout.advance(results["drawn"])
        # Summed before the optimizer clips them or looks for infinities, which it does on each replica.
        self.optimizer.apply(replicas.sum_over_replicas(gradients), self.trainable_variables)
        return logs

    def _in_halves(self, rows: int | None) -> bool:
        """Whether to compute two halves of a batch at the same time."""
        at_once = self._objective.xla and self._objective.micro_batches == 1 and not self._is_distributed
        return at_once and self._objective.adds_up and can_be_halved(self, rows)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation; called by `evaluate`, and by `fit` for validation data."""
        x, y, sample_weight = _unpack(data)
        tokens = ops.sum(token_weights(_reference(y), sample_weight))
        return self._update_metrics(y, sample_weight, tokens, self._objective.forward(x, y, sample_weight))

    def _gradients(
        self, x: Any, y: Any, sample_weight: Any, share: Any, half: tuple[Any, Any] | None
    ) -> tuple[dict[str, Any], list[Any]]:
        rounding = bfloat16_products(self._objective.product_dtype is not None)
        drawing = part_of_batch(*half, DropoutStates(self).generators) if half else contextlib.nullcontext([])
        with tf.GradientTape() as tape:
            with rounding, drawing as drawn:
                results = self._evaluate(x, y, sample_weight, training=True)
            loss = self.optimizer.scale_loss(results["loss"] * ops.cast(share, results["loss"].dtype))
        gradients = tape.gradient(loss, self.trainable_weights)
        # Embedding gradients come as slices, which cannot leave a compiled function. Weights that a batch
        # does not need have none, such as those of queries where there is one place to look at.
        return {**results, "drawn": tf.constant(drawn, "uint32")}, [
            tf.zeros(weight.shape, weight.dtype) if gradient is None else tf.convert_to_tensor(gradient)
            for weight, gradient in zip(self.trainable_weights, gradients, strict=True)
        ]

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, training: bool = False) -> dict[str, Any]:
        """Loss, and what the metrics need, which are about the reference only: runs compiled."""
        twice = training and self._objective.r_drop > 0
        if twice:
            x, y, sample_weight = keras.tree.map_structure(_repeated, (x, y, sample_weight))  # (2 B, ...)
        outputs = self(x, training=training)
        labels, y, logits = y, _reference(y), _reference(outputs, rank=3)
        loss = self._objective.loss(y, logits, sample_weight=sample_weight)
        if "costs" in x:
            risks = expected_risk(labels[:, 1:], outputs[:, 1:], x["costs"])  # (B,)
            weights = ops.sum(token_weights(y, sample_weight), axis=-1)  # (B,)
            risk = ops.divide_no_nan(ops.sum(weights * risks), ops.sum(weights))
            loss += self._objective.risk * risk
        if twice:
            loss += self._objective.r_drop / 2 * _disagreement(logits, token_weights(y, sample_weight))
        for penalty in self.losses:
            loss += ops.cast(penalty, loss.dtype)
        return {
            "loss": loss,
            "statistics": [metric.statistics(y, logits) for metric in self._objective.token_metrics],
            "logits": (ops.split(logits, 2)[0] if twice else logits)
            if self._objective.needs_logits
            else None,
        }

    def _update_metrics(
        self, y: Any, sample_weight: Any, tokens: Any, results: dict[str, Any]
    ) -> dict[str, Any]:
        # Weighted, so that an epoch's loss is the mean over its tokens, however batches share them.
        self._loss_tracker.update_state(results["loss"], sample_weight=tokens)
        for metric, sums in zip(self._objective.token_metrics, results["statistics"], strict=True):
            metric.update_from_statistics(sums)
        if self._objective.needs_logits:
            self._compile_metrics.update_state(_reference(y), results["logits"], sample_weight)
        return self.get_metrics_result()

    # === Replicas ===

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
        if self.compiled and self.built and not self._is_distributed:
            # Else the first step makes the optimizer's variables, and is traced a second time for that.
            self.optimizer.build(self.trainable_variables)
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


class _Objective:
    """What `compile` sets up; a plain object, so that Keras does not track it as part of the model."""

    def __init__(
        self,
        arguments: dict[str, Any],
        loss: Callable,
        adds_up: bool,
        token_metrics: list[TokenMetric],
        needs_logits: bool,
        xla: bool,
        micro_batches: int,
        r_drop: float,
        risk: float,
        product_dtype: str | None,
    ) -> None:
        self.arguments = arguments
        self.loss = loss
        # Whether the loss of a batch is known from those of its parts.
        self.adds_up = adds_up
        # Our metrics are sums, made inside the compiled function; only others need the logits.
        self.token_metrics = token_metrics
        self.needs_logits = needs_logits
        self.xla = xla
        self.micro_batches = micro_batches
        self.r_drop = r_drop
        self.risk = risk
        self.product_dtype = product_dtype
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


def _reference(x: Any, rank: int = 2) -> Any:
    """Labels (B, T) of the references, also among those of candidates, (B, 1 + K, T); logits likewise."""
    return x if len(x.shape) == rank else x[:, 0]


def _check_candidates(x: dict[str, Any], risk: float) -> None:
    """Raises ValueError unless there are candidates if, and only if, they count."""
    if ("costs" in x) != (risk > 0):
        expected, received = ("", "none") if risk else ("no ", "some")
        raise ValueError(
            f'EncoderDecoder: expected {expected}candidates with their "costs" in the batches after '
            f"compile(risk={risk:g}), received {received}; RiskBatches makes them, for a risk above 0"
        )


def _repeated(x: Any) -> Any:
    """A batch, and the same again: (B, ...) -> (2 B, ...)."""
    return None if x is None else ops.concatenate([x, x], axis=0)


def _disagreement(logits: Any, weights: Any) -> Any:
    """How far two predictions of a token are apart, (KL(P || Q) + KL(Q || P)) / 2, mean over the tokens.

    Args:
        logits: (2 B, T, V): those of P, then those of Q.
        weights: (2 B, T), of the tokens.
    """
    logits = ops.cast(logits, "float32")
    log_p, log_q = ops.split(ops.log_softmax(logits, axis=-1), 2)  # each (B, T, V)
    # The sum of both divergences, in one pass over the vocabulary.
    apart = ops.sum((ops.exp(log_p) - ops.exp(log_q)) * (log_p - log_q), axis=-1) / 2  # (B, T)
    weights = ops.split(weights, 2)[0]  # (B, T)
    return ops.divide_no_nan(ops.sum(weights * apart), ops.sum(weights))


_PARTS = "attention_zoo_parts"  # in a batch that is shared out: (x, y) with a first axis of length 1


def _unpack(data: Any) -> tuple[Any, Any, Any]:
    if isinstance(data, dict) and set(data) == {_PARTS}:
        data = keras.tree.map_structure(lambda x: tf.squeeze(x, 0), data[_PARTS])  # (1, B, ...) -> (B, ...)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    check_inputs(x, data)
    if y is None:
        raise ValueError(f"{_EXPECTED}, received no labels: {_described(data)}")
    if not tf.TensorShape(x["target"].shape).is_compatible_with(y.shape):
        raise ValueError(f"{_EXPECTED} of the target's shape (B, T), received {_described(data)}")
    if ("costs" in x) != (len(y.shape) == 3):
        raise ValueError(
            f'{_EXPECTED} of shape (B, T), or (B, 1 + K, T) with "costs" of shape (B, K), received '
            f"{_described(data)}"
        )
    return x, y, sample_weight


_EXPECTED = 'EncoderDecoder: expected batches of ({"source": ..., "target": ...}, labels)'


def check_inputs(x: Any, received: Any) -> None:
    """Raises ValueError unless x is a dict of "source" and "target"; the message describes `received`."""
    if not isinstance(x, dict) or not {"source", "target"} <= set(x):
        raise ValueError(f"{_EXPECTED}, received {_described(received)}")


def _described(batch: Any) -> Any:
    """The structure of a batch, with shapes and types in place of numbers."""
    return keras.tree.map_structure(
        lambda x: f"{keras.backend.standardize_dtype(x.dtype)} {x.shape}" if hasattr(x, "dtype") else x, batch
    )
