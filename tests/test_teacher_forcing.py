import distributed
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_models import T, V, make_batch, make_model, shifted

from attention_zoo.losses import MaskedCrossentropy, expected_risk
from attention_zoo.metrics import Perplexity, TokenAccuracy
from attention_zoo.models import EncoderDecoder, RNNDecoder, RNNEncoder
from attention_zoo.schedules import InverseSquareRootSchedule


def numpy_loss(model, inputs, labels):
    """Mean over real tokens of -log softmax(logits)[label], and the number of tokens."""
    logits = ops.convert_to_numpy(model(inputs)).astype("float64")
    log_probabilities = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    losses = [-log_probabilities[b, t, labels[b, t]] for b, t in np.argwhere(labels)]
    return np.mean(losses), len(losses)


def sum_of_squares(labels, logits):
    return ops.mean(ops.square(logits - ops.one_hot(labels, V)), axis=-1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"jit_compile": True, "metrics": ["accuracy", TokenAccuracy()]},
        {"run_eagerly": True, "metrics": ["accuracy", Perplexity()]},
    ],
    ids=["graph", "xla with the logits", "eager"],
)
def test_every_way_of_compiling_gives_the_same_training(arguments):
    # Dropout is on: it draws the same masks in all of them.
    model = make_model(dropout=0.3, **{"jit_compile": False, **arguments})
    reference = make_model(dropout=0.3, run_eagerly=True, metrics=[])
    for seed in range(2):
        batch = make_batch(seed=seed)
        model.reset_metrics(), reference.reset_metrics()
        logs = model.train_on_batch(*batch, return_dict=True)
        expected = reference.train_on_batch(*batch, return_dict=True)
        np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)
    for weight, other in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-5)


def test_default_compilation():
    model = make_model()
    model.compile()
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert isinstance(model.optimizer._learning_rate, InverseSquareRootSchedule)
    assert model.get_compile_config()["jit_compile"] is True
    assert [metric.name for metric in model.metrics] == ["loss", "token_accuracy", "perplexity"]


def test_it_says_what_is_compiled(caplog):
    assert make_model().compilation.startswith("compiled with XLA: search;")
    assert make_model(jit_compile=False).compilation.startswith("compiled with XLA: search;")
    assert make_model(run_eagerly=True).compilation.startswith("compiled with XLA: search;")
    with caplog.at_level("INFO", "attention_zoo"):
        model = make_model(jit_compile=True)
    assert model.compilation.startswith("compiled with XLA: forward, backward, metrics, search;")
    assert model.compilation in caplog.text


def test_loss_of_an_epoch_is_the_mean_over_its_tokens():
    model = make_model(loss=MaskedCrossentropy(), jit_compile=False)
    batches = [make_batch(rows=2, seed=1), make_batch(rows=9, seed=2)]
    (loss, count), (other, other_count) = (numpy_loss(model, *batch) for batch in batches)
    assert count != other_count
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            {name: tf.TensorSpec((None, T), tf.int32) for name in ("source", "target")},
            tf.TensorSpec((None, T), tf.int32),
        ),
    )
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    expected = (count * loss + other_count * other) / (count + other_count)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["perplexity"], np.exp(expected), rtol=1e-5)


def test_sample_weights_make_a_weighted_mean():
    model = make_model(loss=MaskedCrossentropy(), jit_compile=False)
    inputs, labels = make_batch(rows=5)
    weights = np.array([1, 0, 0, 0, 0], "float32")
    loss, _ = numpy_loss(model, {name: x[:1] for name, x in inputs.items()}, labels[:1])
    # In batches of 2, of which all but the first weigh nothing.
    logs = model.evaluate(inputs, labels, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)


def test_own_loss_function_is_averaged_over_real_tokens():
    model = make_model(loss=sum_of_squares, metrics=[], run_eagerly=True)
    inputs, labels = make_batch()
    logits = ops.convert_to_numpy(model(inputs))
    expected = np.mean((logits - np.eye(V)[labels]) ** 2, axis=-1)[labels != 0].mean()
    np.testing.assert_allclose(
        model.test_on_batch(inputs, labels, return_dict=True)["loss"], expected, rtol=1e-5
    )


def test_own_loss_object_decides_for_itself():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model = make_model(loss=loss, metrics=[], run_eagerly=True)
    inputs, labels = make_batch()
    expected = float(loss(labels, model(inputs)))
    np.testing.assert_allclose(
        model.test_on_batch(inputs, labels, return_dict=True)["loss"], expected, rtol=1e-6
    )


def test_name_of_a_loss_is_refused():
    with pytest.raises(ValueError, match="loss object or function, received the name 'mse'"):
        make_model().compile(loss="mse")


def test_a_batch_of_single_tokens_trains():
    """Attention to a single place is 1, whatever the weights of queries and keys."""
    model = distributed.make_transformer()
    model.build()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    before = [weight.numpy() for weight in model.trainable_weights]
    token = np.array([[5]], "int32")
    model.train_on_batch({"source": token, "target": token}, token)
    changed = {
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.any(weight.numpy() != old)
    }
    assert any("value_kernel" in path for path in changed)
    assert not any("query_kernel" in path or "key_kernel" in path for path in changed)


def test_losses_of_layers_are_added():
    model = make_model(loss=MaskedCrossentropy(), metrics=[], run_eagerly=True)
    batch = make_batch()
    loss = model.test_on_batch(*batch, return_dict=True)["loss"]
    model.encoder.embedding.embeddings.regularizer = keras.regularizers.L2(0.5)
    model.reset_metrics()
    penalty = 0.5 * np.sum(ops.convert_to_numpy(model.encoder.embedding.embeddings) ** 2)
    with_penalty = model.test_on_batch(*batch, return_dict=True)["loss"]
    np.testing.assert_allclose(with_penalty, loss + penalty, rtol=1e-5)


def test_plain_and_weighted_keras_metrics():
    model = make_model(
        run_eagerly=True,
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("mine")],
    )
    inputs, labels = make_batch()
    right = ops.convert_to_numpy(ops.argmax(model(inputs), axis=-1)) == labels
    logs = model.evaluate(
        inputs, labels, sample_weight=(labels != 0).astype("float32"), verbose=0, return_dict=True
    )
    np.testing.assert_allclose(logs["accuracy"], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["mine"], right[labels != 0].mean(), rtol=1e-6)


def test_keras_callbacks(tmp_path):
    model = make_model(run_eagerly=True)
    checkpoint = tmp_path / "best.keras"
    history = model.fit(
        *make_batch(rows=12),
        validation_data=make_batch(seed=5),
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(
                monitor="val_loss", min_delta=1e9, patience=1, restore_best_weights=True
            ),
            keras.callbacks.ModelCheckpoint(checkpoint, monitor="val_token_accuracy", mode="max"),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    assert len(history.epoch) == 2  # nothing improves by 1e9
    names = {"loss", "token_accuracy", "perplexity"}
    assert set(history.history) == {*names, *(f"val_{name}" for name in names), "learning_rate"}
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert header.split(",")[0] == "epoch"
    assert len(rows) == 2
    assert keras.saving.load_model(checkpoint).compiled


def test_fit_builds_the_model():
    model = EncoderDecoder(RNNEncoder(V, 5, 4), RNNDecoder(V, 5, 6))
    model.compile(run_eagerly=True)
    model.fit(*make_batch(), verbose=0)
    assert model.built
    assert model.count_params() == make_model(attention=False).count_params()


@pytest.mark.parametrize("metrics", [None, ["accuracy"]], ids=["ours", "plain"])
@pytest.mark.parametrize("wrong", ["no labels", "tuple", "no target", "labels of another length"])
def test_wrong_batches_are_explained(wrong, metrics):
    model = make_model(jit_compile=False, metrics=metrics)
    inputs, labels = make_batch()
    batch = {
        "no labels": (inputs,),
        "tuple": ((inputs["source"], inputs["target"]), labels),
        "no target": ({"source": inputs["source"]}, labels),
        "labels of another length": (inputs, labels[:, :-1]),
    }[wrong]
    with pytest.raises(ValueError, match=r"expected batches of \(\{\"source\""):
        model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(dtype):
    model = make_model(dtype=dtype, run_eagerly=True, optimizer=keras.optimizers.Adam(0.05))
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (dtype == "mixed_float16")
    batch = make_batch(rows=16)
    before, *_, after = model.fit(*batch, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert after < before - 0.1
    assert all(weight.dtype == "float32" for weight in model.get_weights())


class TestProductsInBfloat16:
    @pytest.mark.parametrize("name", ["recurrent", "transformer"])
    def test_training_is_nearly_the_same_and_evaluation_the_same(self, name):
        batch = make_batch(vocabulary_size=distributed.V)
        before, after, weights = {}, {}, {}
        for eager in (True, False):  # eager products are not rounded
            keras.utils.set_random_seed(1)
            model = distributed.MODELS[name]()
            model.compile(keras.optimizers.SGD(0.1), run_eagerly=eager, product_dtype="bfloat16")
            before[eager] = model.evaluate(*batch, verbose=0)[0]
            after[eager] = [model.train_on_batch(*batch)[0] for _ in range(3)][-1]
            weights[eager] = np.concatenate([weight.ravel() for weight in model.get_weights()])
        np.testing.assert_allclose(before[False], before[True], rtol=1e-6)
        assert abs(after[False] / after[True] - 1) > 1e-6
        np.testing.assert_allclose(after[False], after[True], rtol=2e-3)
        np.testing.assert_allclose(weights[False], weights[True], atol=4e-3)

    def test_a_loaded_model_goes_on_with_it(self):
        model, other = make_model(jit_compile=True, product_dtype="bfloat16"), make_model()
        other.compile_from_config(model.get_compile_config())
        assert other.get_compile_config()["product_dtype"] == "bfloat16"

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="product_dtype: expected \"bfloat16\" or None, received 'int8'"):
            make_model().compile(product_dtype="int8")
        with pytest.raises(ValueError, match="expected jit_compile=True with product_dtype='bfloat16'"):
            make_model().compile(product_dtype="bfloat16", jit_compile=False)


class TestRDrop:
    def test_loss_by_hand(self):
        """The same seed draws the same masks in a twin, whose logits go through NumPy."""
        model = make_model(dropout=0.4, loss=MaskedCrossentropy(), run_eagerly=True, r_drop=3.0, metrics=[])
        twin = make_model(dropout=0.4)
        inputs, labels = make_batch()
        logs = model.train_on_batch(inputs, labels, return_dict=True)
        logits = twin({name: np.tile(ids, (2, 1)) for name, ids in inputs.items()}, training=True)
        logits = ops.convert_to_numpy(logits).astype("float64")  # (2 B, T, V)
        logs_p, logs_q = np.split(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), 2)
        assert np.abs(logs_p - logs_q).max() > 0.01  # else nothing is tested
        losses = []
        for b, t in np.argwhere(labels):
            p, q = logs_p[b, t], logs_q[b, t]
            apart = np.sum(np.exp(p) * (p - q)) + np.sum(np.exp(q) * (q - p))
            losses.append(-(p + q)[labels[b, t]] / 2 + 3.0 / 4 * apart)
        assert logs["loss"] == pytest.approx(np.mean(losses), rel=1e-5)

    @pytest.mark.parametrize("arguments", [{}, {"micro_batches": 2, "metrics": ["accuracy"]}])
    def test_without_dropout_it_changes_nothing(self, arguments):
        model = make_model(run_eagerly=True, r_drop=3.0, **arguments)
        plain = make_model(run_eagerly=True, **arguments)
        for seed in range(2):
            batch = make_batch(seed=seed)
            logs, expected = (one.train_on_batch(*batch, return_dict=True) for one in (model, plain))
            assert logs == pytest.approx(expected, rel=1e-5)
        for weight, other in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(weight, other, atol=1e-5)

    @pytest.mark.slow
    def test_it_draws_predictions_together(self):
        def disagreement(r_drop):
            model = make_model(dropout=0.4, attention=False, jit_compile=False, r_drop=r_drop)
            for seed in range(60):
                model.train_on_batch(*make_batch(seed=seed))
            inputs, labels = make_batch(rows=30, seed=100)
            one, other = (ops.softmax(model(inputs, training=True))[labels > 0] for _ in range(2))
            return float(ops.mean(ops.abs(one - other)))

        assert disagreement(5.0) < 0.7 * disagreement(0.0)

    def test_evaluation_passes_once(self):
        model = make_model(dropout=0.4, loss=MaskedCrossentropy(), jit_compile=False, r_drop=3.0)
        inputs, labels = make_batch()
        expected, _ = numpy_loss(model, inputs, labels)
        assert model.evaluate(inputs, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)

    def test_negative(self):
        with pytest.raises(ValueError, match="expected r_drop of at least 0, received -1"):
            make_model().compile(r_drop=-1)


class TestRisk:
    """Of two candidates each, sentences of another batch."""

    def batch(self, seed=0):
        inputs, labels = make_batch(seed=seed)
        others = [make_batch(seed=seed + 10 + k)[1] for k in range(2)]
        labels = np.stack([labels, *others], axis=1)  # (B, 3, T)
        target = shifted(labels.reshape(-1, T)).reshape(labels.shape)
        costs = np.random.default_rng(seed).random((len(labels), 2), "float32")
        return {"source": inputs["source"], "target": target, "costs": costs}, labels

    @pytest.mark.parametrize("arguments", [{"run_eagerly": True, "micro_batches": 2}, {"jit_compile": True}])
    def test_loss_by_hand(self, arguments):
        model = make_model(loss=MaskedCrossentropy(), risk=2.0, **arguments)
        inputs, labels = self.batch()
        logits = model(inputs)
        assert logits.shape == (6, 3, T, V)
        plain, _ = numpy_loss(make_model(), {**inputs, "target": inputs["target"][:, 0]}, labels[:, 0])
        tokens = np.sum(labels[:, 0] > 0, axis=-1)
        risks = expected_risk(labels[:, 1:], logits[:, 1:], inputs["costs"])
        expected = plain + 2.0 * np.average(risks, weights=tokens)
        logs = model.train_on_batch(inputs, labels, return_dict=True)
        # Of one batch in two parts, the mean over their tokens.
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)
        assert logs["perplexity"] == pytest.approx(np.exp(plain), rel=1e-5)  # of the references

    def test_one_part_or_several(self):
        whole, parts = (make_model(run_eagerly=True, risk=2.0, micro_batches=n) for n in (1, 3))
        for seed in range(2):
            for model in (whole, parts):
                model.train_on_batch(*self.batch(seed))
        for weight, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
            np.testing.assert_allclose(weight, other, atol=1e-5)

    def test_cheap_candidates_become_probable(self):
        model = make_model(jit_compile=False, risk=100.0)
        inputs, labels = self.batch()

        def risk():
            return float(ops.sum(expected_risk(labels[:, 1:], model(inputs)[:, 1:], inputs["costs"])))

        before = risk()
        for _ in range(30):
            model.train_on_batch(inputs, labels)
        best = inputs["costs"][:-1].min(axis=1).sum()  # the last row is padding
        assert risk() - best < 0.2 * (before - best)

    def test_plain_batches_validate(self):
        model = make_model(loss=MaskedCrossentropy(), jit_compile=False, risk=2.0)
        inputs, labels = make_batch()
        expected, _ = numpy_loss(model, inputs, labels)
        assert model.evaluate(inputs, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)

    def test_candidates_and_risk_go_together(self):
        with pytest.raises(ValueError, match=r"expected candidates .*compile\(risk=2\), received none"):
            make_model(run_eagerly=True, risk=2.0).train_on_batch(*make_batch())
        with pytest.raises(ValueError, match=r"expected no candidates .*compile\(risk=0\), received some"):
            make_model(run_eagerly=True).train_on_batch(*self.batch())
        inputs, labels = self.batch()
        del inputs["costs"]
        with pytest.raises(ValueError, match=r'\(B, 1 \+ K, T\) with "costs" of shape \(B, K\), received'):
            make_model(run_eagerly=True, risk=2.0).train_on_batch(inputs, labels)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="expected risk of at least 0, received -1"):
            make_model().compile(risk=-1)
        with pytest.raises(ValueError, match=r"one of r_drop and risk, received r_drop=5.0 and risk=1.0"):
            make_model().compile(r_drop=5.0, risk=1.0)
