"""Masked cross-entropy, against NumPy and numbers worked out by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.losses import MaskedCrossentropy, expected_risk, token_crossentropy, token_weights


def reference(labels, logits, smoothing=0.0, weights=None):
    """The definition with one-hot targets, token by token, in float64."""
    logits = logits.astype("float64")
    weights = np.ones(labels.shape) if weights is None else np.broadcast_to(weights, labels.shape)
    vocabulary = logits.shape[-1]
    total = count = 0.0
    for position in zip(*np.nonzero(labels), strict=True):
        log_p = logits[position] - np.log(np.exp(logits[position]).sum())
        target = (1 - smoothing) * np.eye(vocabulary)[labels[position]] + smoothing / vocabulary
        total += weights[position] * -(target * log_p).sum()
        count += weights[position]
    return total / count


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    labels = np.array([[3, 4, 2, 0], [5, 2, 0, 0], [0, 0, 0, 0]], "int32")
    return labels, random.normal(size=(3, 4, 7), scale=3).astype("float32")


def test_value_by_hand():
    logits = np.log([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]).astype("float32")
    labels = np.array([[1, 2, 0]])
    expected = -(math.log(0.25) + math.log(0.6)) / 2
    np.testing.assert_allclose(MaskedCrossentropy()(labels, logits), expected, rtol=1e-6)
    # Smoothed by 0.3: a tenth of the target on each of the three, and 0.7 more on the label.
    first = -(0.1 * math.log(0.5) + 0.8 * math.log(0.25) + 0.1 * math.log(0.25))
    second = -(0.1 * math.log(0.2) + 0.1 * math.log(0.2) + 0.8 * math.log(0.6))
    np.testing.assert_allclose(MaskedCrossentropy(0.3)(labels, logits), (first + second) / 2, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_definition(batch, smoothing):
    labels, logits = batch
    loss = MaskedCrossentropy(label_smoothing=smoothing)
    np.testing.assert_allclose(loss(labels, logits), reference(labels, logits, smoothing), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4)])
def test_sample_weight(batch, shape):
    labels, logits = batch
    weights = np.random.default_rng(1).uniform(0.1, 0.4, size=shape).astype("float32")
    rows = weights[:, None] if len(shape) == 1 else weights
    found = MaskedCrossentropy(0.1)(labels, logits, sample_weight=weights)
    np.testing.assert_allclose(found, reference(labels, logits, 0.1, rows), rtol=1e-5)


def test_padding_changes_nothing(batch):
    labels, logits = batch
    more_labels = np.pad(labels, ((0, 2), (0, 3)))
    more_logits = np.pad(logits, ((0, 2), (0, 3), (0, 0)), constant_values=9.0)
    loss = MaskedCrossentropy(0.1)
    np.testing.assert_allclose(loss(more_labels, more_logits), loss(labels, logits), rtol=1e-6)


def gradient(loss, labels, logits):
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value, tape.gradient(value, logits)


def test_nothing_but_padding(batch):
    labels, logits = batch
    value, gradients = gradient(MaskedCrossentropy(0.1), np.zeros_like(labels), logits)
    assert float(value) == 0.0
    assert (gradients.numpy() == 0.0).all()
    weightless = MaskedCrossentropy()(labels, logits, sample_weight=np.zeros(3, "float32"))
    assert float(weightless) == 0.0


def test_gradient_is_probability_minus_target(batch):
    labels, logits = batch
    _, gradients = gradient(MaskedCrossentropy(0.1), labels, logits)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = 0.9 * np.eye(7)[labels] + 0.1 / 7
    expected = (p - target) * (labels != 0)[..., None] / np.count_nonzero(labels)
    np.testing.assert_allclose(gradients, expected, atol=1e-6)


def test_xla_equals_eager(batch):
    labels, logits = batch
    loss = MaskedCrossentropy(0.1)
    compiled = tf.function(lambda a, b: gradient(loss, a, b), jit_compile=True)
    for found, expected in zip(compiled(labels, logits), gradient(loss, labels, logits), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_compiled_gradient_scatters_nothing(batch):
    labels, logits = batch
    compiled = tf.function(gradient, jit_compile=True, autograph=False)
    arguments = MaskedCrossentropy(0.1), tf.constant(labels), tf.constant(logits)
    assert "scatter" not in compiled.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_computed_in_float32(batch, dtype):
    labels, logits = batch
    half = tf.cast(logits, dtype)
    loss = MaskedCrossentropy(0.1)(labels, half)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, reference(labels, tf.cast(half, "float32").numpy(), 0.1), rtol=1e-5)


def test_large_logits_stay_finite():
    logits = np.array([[[1e4, -1e4, 0.0]]], "float32")
    np.testing.assert_allclose(MaskedCrossentropy()(np.array([[1]]), logits), 2e4)


def test_positions_and_weights(batch):
    labels, logits = batch
    assert token_crossentropy(labels, logits).shape == (3, 4)
    np.testing.assert_array_equal(token_weights(labels), labels != 0)


def test_in_a_plain_keras_model(batch):
    """`compile` and `evaluate` of any Keras model give the mean over real tokens."""
    labels, _ = batch
    tokens = np.array([[1, 3, 4, 0], [1, 5, 0, 0], [0, 0, 0, 0]], "int32")
    model = keras.Sequential([keras.layers.Embedding(7, 5), keras.layers.Dense(7)])
    model.compile("sgd", loss=MaskedCrossentropy(0.1))
    found = model.evaluate(tokens, labels, batch_size=3, verbose=0)
    np.testing.assert_allclose(found, reference(labels, np.array(model(tokens)), 0.1), rtol=1e-5)
    before = model.get_weights()
    model.fit(tokens, labels, batch_size=3, verbose=0)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_serialization():
    config = keras.saving.serialize_keras_object(MaskedCrossentropy(0.2, name="objective"))
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, MaskedCrossentropy)
    assert (restored.label_smoothing, restored.name) == (0.2, "objective")


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing(smoothing):
    with pytest.raises(ValueError, match="expected 0 <= label_smoothing < 1"):
        MaskedCrossentropy(smoothing)


class TestExpectedRisk:
    """Of candidates, against NumPy."""

    @pytest.fixture
    def candidates(self):
        random = np.random.default_rng(1)
        labels = np.array(
            [
                [[3, 4, 2], [5, 2, 0], [4, 4, 2]],
                [[2, 0, 0], [6, 2, 0], [0, 0, 0]],  # one is missing
                [[0, 0, 0]] * 3,
            ],
            "int32",
        )
        return labels, random.normal(size=(3, 3, 3, 7)).astype("float32"), random.random((3, 3), "float32")

    def numpy_risk(self, labels, logits, costs):
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        risks = []
        for row, (outputs, cost) in enumerate(zip(labels, costs, strict=True)):
            there = [k for k, ids in enumerate(outputs) if ids.any()]
            p = np.array(
                [np.exp(sum(log_p[row, k, t, i] for t, i in enumerate(outputs[k]) if i)) for k in there]
            )
            risks.append((p / p.sum()) @ cost[there] if there else 0.0)
        return np.array(risks)

    def test_value(self, candidates):
        expected = self.numpy_risk(*candidates)
        assert expected[2] == 0 < expected[0]
        np.testing.assert_allclose(expected_risk(*candidates), expected, rtol=1e-5)

    def test_gradient(self, candidates):
        """Against differences, in a random direction; that of what is missing is zero."""
        labels, logits, costs = candidates
        with tf.GradientTape() as tape:
            x = tf.constant(logits)
            tape.watch(x)
            total = tf.reduce_sum(expected_risk(labels, x, costs))
        gradient = tape.gradient(total, x).numpy()
        direction = np.random.default_rng(2).normal(size=logits.shape)
        step = 1e-4 * direction
        up, down = (self.numpy_risk(labels, logits.astype("float64") + s, costs).sum() for s in (step, -step))
        assert np.sum(gradient * direction) == pytest.approx((up - down) / 2e-4, rel=1e-3)
        assert not gradient[labels == 0].any()
