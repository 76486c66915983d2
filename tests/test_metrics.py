"""Token accuracy and perplexity over real tokens only."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.metrics import Perplexity, TokenAccuracy

LABELS = np.array([[2, 1, 0], [1, 0, 0]], "int32")
# Probabilities of the labels of the three real tokens: 1/2, 1/4, 1/8; the first alone is the largest.
LOGITS = np.log(
    [
        [[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [1.0, 1e-3, 1e-3]],
        [[0.125, 0.125, 0.75], [1.0, 1e-3, 1e-3], [1.0, 1e-3, 1e-3]],
    ]
).astype("float32")


def test_values_by_hand():
    accuracy, perplexity = TokenAccuracy(), Perplexity()
    accuracy.update_state(LABELS, LOGITS)
    perplexity.update_state(LABELS, LOGITS)
    np.testing.assert_allclose(accuracy.result(), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(perplexity.result(), (2 * 4 * 8) ** (1 / 3), rtol=1e-6)


@pytest.mark.parametrize("metric", [TokenAccuracy, Perplexity])
def test_uneven_batches_count_by_tokens(metric):
    """Two batches of two tokens and one are not averaged as equals."""
    together, apart = metric(), metric()
    together.update_state(LABELS, LOGITS)
    for row in range(2):
        apart.update_state(LABELS[row : row + 1], LOGITS[row : row + 1])
    np.testing.assert_allclose(apart.result(), together.result(), rtol=1e-6)


@pytest.mark.parametrize("metric", [TokenAccuracy, Perplexity])
def test_compiled_statistics_update_outside(metric):
    compiled, plain = metric(), metric()
    statistics = tf.function(compiled.statistics, jit_compile=True)(LABELS, LOGITS)
    assert float(compiled.count) == 0.0  # the first half changes nothing
    compiled.update_from_statistics(statistics)
    plain.update_state(LABELS, LOGITS)
    np.testing.assert_allclose(compiled.result(), plain.result(), rtol=1e-6)
    assert float(compiled.count) == 3.0


def test_sample_weight():
    accuracy, perplexity = TokenAccuracy(), Perplexity()
    for metric in (accuracy, perplexity):
        metric.update_state(LABELS, LOGITS, sample_weight=np.array([0.5, 0.0]))
    np.testing.assert_allclose(accuracy.result(), 1 / 2)
    np.testing.assert_allclose(perplexity.result(), 8**0.5, rtol=1e-6)


@pytest.mark.parametrize(("metric", "empty"), [(TokenAccuracy, 0.0), (Perplexity, 1.0)])
def test_no_tokens_and_reset(metric, empty):
    metric = metric()
    metric.update_state(np.zeros_like(LABELS), LOGITS)
    assert float(metric.result()) == empty
    metric.update_state(LABELS, LOGITS)
    metric.reset_state()
    assert float(metric.result()) == empty


def test_half_precision_logits():
    perplexity = Perplexity()
    perplexity.update_state(LABELS, tf.cast(LOGITS, "bfloat16"))
    assert perplexity.count.dtype == "float32"
    np.testing.assert_allclose(perplexity.result(), 4.0, rtol=1e-2)


@pytest.mark.parametrize("metric", [TokenAccuracy, Perplexity])
def test_serialization(metric):
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric(name="mine")))
    assert isinstance(restored, metric)
    assert restored.name == "mine"


def test_in_a_plain_keras_model():
    """Several batches through `fit` and `evaluate` give what one update over all gives."""
    tokens = np.array([[1, 2, 0], [2, 0, 0], [1, 1, 1], [0, 0, 0]], "int32")
    labels = np.array([[2, 1, 0], [1, 0, 0], [2, 2, 1], [0, 0, 0]], "int32")
    model = keras.Sequential([keras.layers.Embedding(3, 4), keras.layers.Dense(3)])
    metrics = [TokenAccuracy(), Perplexity()]
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
    model.fit(tokens, labels, batch_size=2, verbose=0)
    logs = model.evaluate(tokens, labels, batch_size=2, verbose=0, return_dict=True)
    for metric in metrics:
        alone = type(metric)()
        alone.update_state(labels, model(tokens))
        np.testing.assert_allclose(logs[metric.name], alone.result(), rtol=1e-5)
