import numpy as np
import tensorflow as tf

from attention_zoo.ops import attention


def test_weights_by_hand():
    scores = [[[np.log(1.0), np.log(3.0), np.log(9.0)]]]
    np.testing.assert_allclose(attention.attention_weights(scores), [[[1 / 13, 3 / 13, 9 / 13]]], atol=1e-6)
    weights = attention.attention_weights(scores, [[[True, True, False]]])
    np.testing.assert_allclose(weights, [[[0.25, 0.75, 0.0]]], atol=1e-6)


def test_weights_are_float32_of_any_scores():
    for dtype in ("float16", "bfloat16", "float32"):
        assert attention.attention_weights(tf.zeros((1, 2, 3), dtype)).dtype == "float32"


def test_a_row_with_nothing_allowed():
    scores = tf.Variable(np.random.default_rng(0).normal(size=(1, 2, 3)).astype("float32"))
    mask = np.array([[[False] * 3, [True] * 3]])
    with tf.GradientTape() as tape:
        weights = attention.attention_weights(scores, mask)
        loss = tf.reduce_sum(weights[..., 0] ** 2)
    gradient = tape.gradient(loss, scores)
    np.testing.assert_array_equal(weights[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(gradient[0, 0], [0, 0, 0])
    assert np.all(np.isfinite(gradient)) and np.any(gradient[0, 1] != 0)


def test_hidden_scores_do_not_matter_however_large():
    mask = np.array([[[True, True, False]]])
    for hidden in (3e38, -3e38, np.inf):
        weights = attention.attention_weights(np.array([[[-1e30, -1e30, hidden]]], "float32"), mask)
        np.testing.assert_array_equal(weights, [[[0.5, 0.5, 0.0]]])


def test_attend_by_hand():
    scores, value = [[[0.0, np.log(3.0)]]], np.array([[[4.0, 0.0], [8.0, 1.0]]], "float32")
    context, weights = attention.attend(scores, value)
    np.testing.assert_allclose(weights, [[[0.25, 0.75]]], atol=1e-6)
    np.testing.assert_allclose(context, [[[7.0, 0.75]]], atol=1e-5)
    context, _ = attention.attend(scores, value, [[[True, False]]])
    np.testing.assert_allclose(context, [[[4.0, 0.0]]], atol=1e-6)


def test_context_has_the_dtype_of_the_value():
    context, weights = attention.attend(tf.zeros((1, 2, 3)), tf.zeros((1, 3, 4), "bfloat16"))
    assert (context.dtype, weights.dtype) == (tf.bfloat16, tf.float32)


def test_dropout_touches_the_sum_and_not_the_returned_weights():
    context, weights = attention.attend([[[0.0, 0.0]]], [[[4.0], [8.0]]], dropout=lambda w: w * [2.0, 0.0])
    np.testing.assert_allclose(weights, [[[0.5, 0.5]]])
    np.testing.assert_allclose(context, [[[4.0]]])
