import numpy as np
import pytest
from contracts import AttentionContract, random

from attention_zoo.layers.attention import Attention


class TestAttention(AttentionContract):
    key_dim = 6  # as wide as the query

    def make(self, **kwargs):
        return Attention(**kwargs)


def test_by_hand():
    query = np.array([[[2.0, 0.0, 0.0, 0.0]]])
    key = np.array([[[np.log(3.0), 5.0, 5.0, 5.0], [0.0, -5.0, 0.0, 1.0]]])
    value = np.array([[[4.0], [8.0]]])
    context, weights = Attention()(query, value, key, return_attention_scores=True)
    # scores: 2 log 3 / sqrt 4 = log 3, and 0
    np.testing.assert_allclose(weights, [[[0.75, 0.25]]], atol=1e-6)
    np.testing.assert_allclose(context, [[[5.0]]], atol=1e-5)


def test_widths_must_match():
    with pytest.raises(ValueError, match="same width, received 3 and 4"):
        Attention()(random(2, 3, 3), random(2, 5, 4))


def test_a_subclass_overrides_what_differs():
    class Doubling(Attention):
        def project_value(self, value):
            return 2 * value

    inputs = random(2, 3, 4), random(2, 5, 4)
    np.testing.assert_allclose(Doubling()(*inputs), 2 * Attention()(*inputs), atol=1e-6)
