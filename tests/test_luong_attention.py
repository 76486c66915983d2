import numpy as np
import pytest
from contracts import AttentionContract, random, randomize

from attention_zoo.layers.luong_attention import LuongAttention
from attention_zoo.ops import attention, scores


class TestDot(AttentionContract):
    key_dim = 6  # as wide as the query

    def make(self, **kwargs):
        return LuongAttention("dot", **kwargs)


class TestGeneralScaled(AttentionContract):
    def make(self, **kwargs):
        return LuongAttention("general", scale=True, **kwargs)


class TestConcat(AttentionContract):
    def make(self, **kwargs):
        return LuongAttention("concat", units=9, **kwargs)


def weights_of(layer, query, key):
    return layer(query, key, return_attention_scores=True)[1]


def test_dot_by_hand():
    query, key = np.array([[[1.0, 2.0]]]), np.array([[[np.log(3.0), 0.0], [2.0, -1.0]]])
    np.testing.assert_allclose(weights_of(LuongAttention("dot"), query, key), [[[0.75, 0.25]]], atol=1e-6)


def test_scale_by_hand():
    layer = LuongAttention("dot", scale=True)
    query, key = np.array([[[1.0]]]), np.array([[[np.log(3.0)], [0.0]]])
    np.testing.assert_allclose(weights_of(layer, query, key), [[[0.75, 0.25]]], atol=1e-6)
    layer.g.assign(2.0)
    np.testing.assert_allclose(weights_of(layer, query, key), [[[0.9, 0.1]]], atol=1e-6)


def test_general_by_hand():
    # q' W k with W = [[1, 2]], q = 3: 3 k_1 + 6 k_2
    layer = LuongAttention("general")
    layer.build((None, None, 1), (None, None, 2))
    layer.W.assign([[1.0, 2.0]])
    query, key = np.array([[[3.0]]]), np.array([[[np.log(3.0) / 3, 0.0], [2.0, -1.0]]])
    np.testing.assert_allclose(weights_of(layer, query, key), [[[0.75, 0.25]]], atol=1e-6)


def test_concat_by_hand():
    layer = LuongAttention("concat", units=1)
    layer.build((None, None, 1), (None, None, 1))
    layer.W.assign([[10.0], [20.0]])
    layer.v.assign([np.log(3.0) / 2])
    # tanh(10 q + 20 k) is 1 and -1
    query, key = np.array([[[1.0]]]), np.array([[[1.0], [-2.0]]])
    np.testing.assert_allclose(weights_of(layer, query, key), [[[0.75, 0.25]]], atol=1e-6)


@pytest.mark.parametrize("score", ["general", "concat"])
def test_equals_the_pure_function(score):
    layer = LuongAttention(score, units=4 if score == "concat" else None)
    query, key = random(2, 3, 5), random(2, 4, 6)
    layer.build(query.shape, key.shape)
    randomize(layer)
    function = getattr(scores, f"{score}_scores")
    expected = attention.attention_weights(function(query, key, *layer.get_weights()))
    np.testing.assert_allclose(weights_of(layer, query, key), expected, atol=1e-5)


def test_dot_needs_equal_widths():
    with pytest.raises(ValueError, match="same width, received 5 and 6"):
        LuongAttention("dot").build((None, None, 5), (None, None, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "cosine"}, "dot.*general.*concat.*received 'cosine'"),
        ({"score": "concat"}, "units of at least 1"),
        ({"score": "dot", "units": 4}, "no units"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LuongAttention(**arguments)
