import numpy as np
import pytest
from contracts import AttentionContract, random

from attention_zoo.layers.additive_attention import AdditiveAttention


class TestAdditiveAttention(AttentionContract):
    def make(self, **kwargs):
        return AdditiveAttention(9, **kwargs)


class TestNormalizedAdditiveAttention(AttentionContract):
    def make(self, **kwargs):
        return AdditiveAttention(9, normalize=True, **kwargs)


def weighted(layer, weights):
    """Builds the layer and sets its weights by name."""
    layer.build((None, None, 1), (None, None, 1))
    for weight in layer.weights:
        weight.assign(weights[weight.name])
    return layer


def test_by_hand():
    # tanh(10 + k) is 1 for k = 10 and 0 for k = -10, so the scores are v = log 3 and 0.
    layer = weighted(AdditiveAttention(1), {"W": [[10.0]], "U": [[10.0]], "v": [np.log(3.0)]})
    context, weights = layer(np.ones((1, 1, 1)), np.array([[[1.0], [-1.0]]]), return_attention_scores=True)
    np.testing.assert_allclose(weights, [[[0.75, 0.25]]], atol=1e-6)
    np.testing.assert_allclose(context, [[[0.5]]], atol=1e-6)


def test_normalized_by_hand():
    # |v| = 5 and g = log 3, so v counts as log 3 (3/5, 4/5).
    layer = weighted(
        AdditiveAttention(2, normalize=True),
        {"W": [[0.0, 0.0]], "U": [[1.0, 1.0]], "v": [3.0, 4.0], "g": np.log(3.0), "b": [-5.0, -5.0]},
    )
    # With b = -5, keys 25 and 5 become tanh(20) = 1 and tanh(0) = 0: scores 7/5 log 3 and 0.
    _, weights = layer(np.ones((1, 1, 1)), np.array([[[25.0], [5.0]]]), return_attention_scores=True)
    odds = 3.0**1.4
    np.testing.assert_allclose(weights, [[[odds / (odds + 1), 1 / (odds + 1)]]], atol=1e-6)


def test_normalization_ignores_the_length_of_v():
    layer = AdditiveAttention(4, normalize=True)
    inputs = random(2, 3, 5), random(2, 4, 6)
    before = np.array(layer(*inputs))
    layer.v.assign(7.0 * layer.v)
    np.testing.assert_allclose(layer(*inputs), before, atol=1e-6)


def test_the_parameters_are_those_of_the_paper():
    layer = AdditiveAttention(8)
    layer(random(2, 3, 5), random(2, 4, 6))
    assert {w.name: tuple(w.shape) for w in layer.weights} == {"W": (5, 8), "U": (6, 8), "v": (8,)}
    layer = AdditiveAttention(8, normalize=True)
    layer(random(2, 3, 5), random(2, 4, 6))
    assert [w.name for w in layer.weights] == ["W", "U", "v", "g", "b"]
    np.testing.assert_allclose(layer.g, np.sqrt(1 / 8), atol=1e-6)


def test_units_must_be_positive():
    with pytest.raises(ValueError, match="units of at least 1"):
        AdditiveAttention(0)
