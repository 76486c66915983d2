import re

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.ops import scores
from attention_zoo.ops.recurrence import scan

B, S, U = 2, 5, 6
LENGTHS = [1, 4, scores._CHUNK, scores._CHUNK + 1, 2 * scores._CHUNK + 3]  # one chunk, and several


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def reference(query, key, score):
    """Applies a score of two vectors to every pair."""
    return [[[score(q, k) for k in keys] for q in queries] for queries, keys in zip(query, key, strict=True)]


def plain_additive(query, key, v):
    """The formula at once, (B, T, S, U)."""
    return tf.reduce_sum(tf.tanh(query[:, :, None] + key[:, None]) * v, axis=-1)


def with_gradients(function, query, key, v):
    inputs = [tf.convert_to_tensor(x) for x in (query, key, v)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = function(*inputs)
        loss = tf.reduce_sum(tf.sin(result))
    return result, *tape.gradient(loss, inputs)


def test_dot():
    query, key = random(B, 3, 4), random(B, S, 4)
    np.testing.assert_allclose(scores.dot_scores(query, key), reference(query, key, np.dot), atol=1e-5)


def test_scaled_dot():
    query, key = random(B, 3, 4), random(B, S, 4)
    expected = reference(query, key, lambda q, k: np.dot(q, k) / 2)  # sqrt(4)
    np.testing.assert_allclose(scores.scaled_dot_scores(query, key), expected, atol=1e-5)


def test_general():
    query, key, weight = random(B, 3, 4), random(B, S, 7), random(4, 7)
    expected = reference(query, key, lambda q, k: q @ weight @ k)
    np.testing.assert_allclose(scores.general_scores(query, key, weight), expected, atol=1e-5)


def test_concat():
    query, key, weight, v = random(B, 3, 4), random(B, S, 7), random(11, U), random(U)
    expected = reference(query, key, lambda q, k: v @ np.tanh(np.concatenate([q, k]) @ weight))
    np.testing.assert_allclose(scores.concat_scores(query, key, weight, v), expected, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_additive(length):
    query, key, v = random(B, length, U), random(B, S, U), random(U)
    expected = reference(query, key, lambda q, k: v @ np.tanh(q + k))
    np.testing.assert_allclose(scores.additive_scores(query, key, v), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_are_float32(dtype):
    query, key = tf.cast(random(B, 3, U), dtype), tf.cast(random(B, S, U), dtype)
    vector, square, tall = (tf.cast(random(*shape), dtype) for shape in [(U,), (U, U), (2 * U, U)])
    for result in (
        scores.dot_scores(query, key),
        scores.scaled_dot_scores(query, key),
        scores.general_scores(query, key, square),
        scores.additive_scores(query, key, vector),
        scores.concat_scores(query, key, tall, vector),
    ):
        assert result.dtype == "float32"
        assert result.shape == (B, 3, S)


def test_scores_reach_beyond_float16():
    query = tf.fill((1, 1, 4), tf.constant(300, "float16"))
    np.testing.assert_allclose(scores.dot_scores(query, query), [[[360000.0]]])


@pytest.mark.parametrize("length", LENGTHS)
def test_additive_gradient_is_that_of_the_formula(length):
    inputs = random(B, length, U), random(B, S, U), random(U)
    expected = with_gradients(plain_additive, *inputs)
    for x, y in zip(with_gradients(scores.additive_scores, *inputs), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("length", [1, LENGTHS[-1]])
def test_additive_compiled_equals_eager(length):
    def run(*inputs):
        return with_gradients(scores.additive_scores, *inputs)

    inputs = random(B, length, U), random(B, S, U), random(U)
    expected = run(*inputs)
    for x, y in zip(tf.function(run, jit_compile=True)(*inputs), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_additive_of_unknown_lengths():
    @tf.function(input_signature=[tf.TensorSpec((None, None, U))] * 2 + [tf.TensorSpec((U,))])
    def run(*inputs):
        return with_gradients(scores.additive_scores, *inputs)

    for length in (3, LENGTHS[-1]):
        inputs = random(B, length, U), random(B, S, U), random(U)
        for x, y in zip(run(*inputs), with_gradients(plain_additive, *inputs), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_additive_gradient_in_half_precision(dtype):
    inputs = [random(B, 3, U), random(B, S, U), random(U)]
    expected = with_gradients(plain_additive, *inputs)
    result = with_gradients(scores.additive_scores, *(tf.cast(x, dtype) for x in inputs))
    for x, y in zip(result[1:], expected[1:], strict=True):
        assert x.dtype == dtype
        np.testing.assert_allclose(tf.cast(x, "float32"), y, atol=0.02 * np.abs(y).max())


def largest_array(function, *inputs):
    """Elements of the largest array anywhere in the compiled program of value and gradients."""
    compiled = tf.function(lambda *x: with_gradients(function, *x), jit_compile=True)
    program = compiled.experimental_get_compiler_ir(*map(tf.constant, inputs))(stage="optimized_hlo")
    return max(
        np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", program)
    )


def test_additive_needs_no_memory_for_all_pairs():
    length, units = 10 * scores._CHUNK, 16
    inputs = random(1, length, units), random(1, 32, units), random(units)
    everything = length * 32 * units
    assert largest_array(plain_additive, *inputs) >= everything  # the formula as it stands does need it
    assert largest_array(scores.additive_scores, *inputs) <= everything // 10


def test_additive_in_a_loop_keeps_neither_keys_nor_hidden_layer():
    """In a differentiated loop, as in a decoder, nothing of the size of the keys is kept per step."""

    @tf.function
    def run(inputs, key, v):
        with tf.GradientTape() as tape:
            tape.watch([inputs, key, v])

            def step(state, x):
                result = scores.additive_scores(state[:, None], key, v)  # (B, 1, S)
                return tf.tanh(state + x) * tf.reduce_sum(result), result

            last, _ = scan(step, inputs, tf.zeros((B, U)))
            loss = tf.reduce_sum(last)
        return tape.gradient(loss, [inputs, key, v])

    graph = run.get_concrete_function(random(3, B, U), random(B, S, U), random(U)).graph
    bodies = [f.graph for f in graph._functions.values() if getattr(f, "graph", None) is not None]
    kept = [
        operation.inputs[1].shape
        for body in bodies
        for operation in body.get_operations()
        if operation.type == "TensorListPushBack"
    ]
    assert kept  # the state, for one
    assert max(shape.num_elements() or 0 for shape in kept) < B * S * U
