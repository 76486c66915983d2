import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.ops import masks


def test_padding_mask_is_true_at_tokens():
    ids = np.array([[4, 9, 1, 0, 0], [0, 0, 0, 0, 0]], "int32")
    np.testing.assert_array_equal(masks.padding_mask(ids), [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])


def test_causal_mask_is_true_for_the_past():
    np.testing.assert_array_equal(masks.causal_mask(3), [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]])
    np.testing.assert_array_equal(masks.causal_mask(2, 4), [[[1, 0, 0, 0], [1, 1, 0, 0]]])
    assert masks.causal_mask(3).dtype == "bool"


def test_causal_mask_of_unknown_length():
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def run(x):
        return masks.causal_mask(tf.shape(x)[1])

    np.testing.assert_array_equal(run(tf.zeros((1, 3))), masks.causal_mask(3))


def test_a_padding_mask_counts_for_every_query():
    """With B equal to T, where a mask of shape (B, S) could be taken for (T, S)."""
    padding = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    combined = masks.combine_masks(padding, masks.causal_mask(3))
    expected = [[[padding[b, s] and s <= t for s in range(3)] for t in range(3)] for b in range(3)]
    np.testing.assert_array_equal(combined, expected)


def test_combining_nothing():
    assert masks.combine_masks() is None
    assert masks.combine_masks(None, None) is None
    np.testing.assert_array_equal(masks.combine_masks(None, [[True, False]]), [[[True, False]]])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_of_numbers_is_refused(dtype):
    with pytest.raises(ValueError, match=f"expected boolean.*received dtype {dtype}"):
        masks.combine_masks(np.zeros((2, 3), dtype))


def test_a_mask_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"received shape \(3,\)"):
        masks.combine_masks(np.ones((3,), bool))
