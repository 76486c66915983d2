import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.layers.dropout import Dropout
from attention_zoo.ops import chunked_attention as chunked
from attention_zoo.ops.chunked_attention import attend_in_chunks
from attention_zoo.ops.random import random_bits

B, H, G, T, S, D, DV = 2, 4, 2, 7, 11, 3, 5
CHUNK = 4  # of 7 queries and 11 keys: neither is a multiple


def arrays(heads=H, groups=H, target=T, source=S, seed=0):
    random = np.random.default_rng(seed)
    shapes = (B, heads, target, D), (B, groups, source, D), (B, groups, source, DV)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def random_mask(*shape):
    """Some of everything, with one row and one key that are hidden altogether where there is room."""
    mask = np.random.default_rng(1).random(shape) > 0.4
    if mask.ndim == 4 and shape[2] > 1:
        mask[:, :, 2] = False
    return mask


def reference(query, key, value, mask=None, causal=False, scale=None, drop=lambda weights: weights):
    """The formula, with the whole matrix of weights."""
    repeats = query.shape[1] // key.shape[1]
    key, value = tf.repeat(key, repeats, axis=1), tf.repeat(value, repeats, axis=1)
    scores = tf.matmul(query, key, transpose_b=True) * (D**-0.5 if scale is None else scale)
    allowed = np.ones(scores.shape, bool)
    if mask is not None:
        allowed &= mask[:, None, None, :] if mask.ndim == 2 else mask
    if causal:
        allowed &= np.arange(scores.shape[3]) <= np.arange(scores.shape[2])[:, None]
    weights = tf.nn.softmax(tf.where(allowed, scores, -1e30))
    return tf.matmul(drop(tf.where(allowed, weights, 0.0)), value)


def with_gradients(function, inputs):
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
        loss = tf.reduce_sum(tf.sin(tf.cast(output, "float32")))
    return output, *tape.gradient(loss, inputs)


def assert_equal(results, expected, atol=1e-5):
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(tf.cast(result, "float32"), wanted, atol=atol)


def check(inputs, chunk_size=CHUNK, **options):
    """Output and gradients are those of the formula."""
    expected = with_gradients(lambda *x: reference(*x, **options), inputs)
    results = with_gradients(lambda *x: attend_in_chunks(*x, chunk_size=chunk_size, **options), inputs)
    assert_equal(results, expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 11, 100])
def test_any_chunk_size_gives_the_formula(chunk_size):
    check(arrays(), chunk_size)


def test_lengths_that_are_multiples_of_the_chunk():
    check(arrays(target=8, source=4))


def test_one_query_and_one_key():
    check(arrays(target=1, source=S))
    check(arrays(target=T, source=1))


def test_scale():
    check(arrays(), scale=2.0)


def test_padding():
    check(arrays(), mask=np.arange(S) < np.array([[9], [3]]))


@pytest.mark.parametrize("shape", [(B, H, T, S), (1, 1, T, S), (B, 1, 1, S), (1, H, T, 1), (1, 1, 1, 1)])
def test_masks_of_rank_4(shape):
    check(arrays(), mask=random_mask(*shape))


@pytest.mark.parametrize(("target", "source"), [(T, T), (T, S), (S, T), (5, 13)])
def test_causal(target, source):
    check(arrays(target=target, source=source), causal=True)


def test_causal_with_a_mask():
    check(arrays(), causal=True, mask=random_mask(B, S))
    check(arrays(), causal=True, mask=random_mask(B, 1, T, S))


@pytest.mark.parametrize("groups", [1, G])
def test_grouped_heads(groups):
    check(arrays(groups=groups))
    check(arrays(groups=groups), causal=True, mask=random_mask(1, H, T, S))


def test_large_scores_do_not_overflow():
    query, key, value = arrays()
    output, *gradients = with_gradients(
        lambda *x: attend_in_chunks(*x, chunk_size=CHUNK), [1000 * query, key, value]
    )
    np.testing.assert_allclose(output, reference(1000 * query, key, value), atol=1e-4)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_a_row_with_nothing_allowed_is_zero_with_zero_gradients():
    mask = random_mask(B, H, T, S)
    assert not mask[:, :, 2].any()
    output, d_query, *_ = with_gradients(
        lambda *x: attend_in_chunks(*x, mask=mask, chunk_size=CHUNK), arrays()
    )
    np.testing.assert_array_equal(output[:, :, 2], 0)
    np.testing.assert_array_equal(d_query[:, :, 2], 0)
    nothing = np.zeros((B, S), bool)
    for result in with_gradients(lambda *x: attend_in_chunks(*x, mask=nothing, chunk_size=CHUNK), arrays()):
        np.testing.assert_array_equal(result, 0)


@pytest.mark.parametrize("options", [{}, {"causal": True, "mask": random_mask(B, S)}])
@pytest.mark.parametrize("groups", [G, H])
def test_dropout_is_that_of_the_layer_on_the_whole_matrix(groups, options):
    def materialised(*inputs):
        layer = Dropout(0.3, seed=5)
        return reference(*inputs, **options, drop=lambda weights: layer(weights, training=True))

    def in_chunks(*inputs):
        seed = keras.random.SeedGenerator(5).next()
        return attend_in_chunks(*inputs, **options, dropout=0.3, seed=seed, chunk_size=CHUNK)

    inputs = arrays(groups=groups)
    assert_equal(with_gradients(in_chunks, inputs), with_gradients(materialised, inputs))
    assert np.abs(in_chunks(*inputs) - reference(*inputs, **options)).max() > 0.1


def test_dropout_of_everything():
    output = attend_in_chunks(*arrays(), dropout=1.0, seed=[1, 2], chunk_size=CHUNK)
    np.testing.assert_array_equal(output, 0)


def test_random_bits_depend_on_seed_and_index_only():
    index = np.arange(12, dtype="uint32").reshape(3, 4)
    bits = np.array(random_bits([1000, 2], index))
    assert bits.dtype == "uint32"
    np.testing.assert_array_equal(random_bits([1000, 2], index[::-1]), bits[::-1])
    assert len({*bits.ravel(), *np.array(random_bits([1000, 3], index)).ravel()}) == 24


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_goes_through_float32(dtype):
    rounded = [tf.cast(x, dtype) for x in arrays()]
    expected = with_gradients(reference, [tf.cast(x, "float32") for x in rounded])
    results = with_gradients(lambda *x: attend_in_chunks(*x, chunk_size=CHUNK), rounded)
    assert {x.dtype.name for x in results} == {dtype}
    # only the results are rounded, and, for the gradients, what comes down from the rounded output
    assert_equal(results, expected, atol=2.0**-6 if dtype == "bfloat16" else 2.0**-9)


def test_output_has_the_dtype_of_the_value():
    query, key, value = arrays()
    output, *gradients = with_gradients(attend_in_chunks, [query, key, tf.cast(value, "bfloat16")])
    assert output.dtype == "bfloat16"
    assert [x.dtype.name for x in gradients] == ["float32", "float32", "bfloat16"]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_equals_eager(jit_compile):
    mask = random_mask(B, 1, T, S)

    def run(*inputs):
        options = {"mask": mask, "causal": True, "dropout": 0.2, "seed": [3, 4], "chunk_size": CHUNK}
        return with_gradients(lambda *x: attend_in_chunks(*x, **options), inputs)

    inputs = [tf.constant(x) for x in arrays(groups=G)]
    assert_equal(tf.function(run, jit_compile=jit_compile)(*inputs), run(*inputs))


def test_unknown_batch_and_lengths():
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, H, None, D)),
            tf.TensorSpec((None, G, None, D)),
            tf.TensorSpec((None, G, None, DV)),
            tf.TensorSpec((None, 1, None, None), "bool"),
        ]
    )
    def run(query, key, value, mask):
        options = {"mask": mask, "causal": True, "dropout": 0.2, "seed": [3, 4], "chunk_size": CHUNK}
        return with_gradients(lambda *x: attend_in_chunks(*x, **options), (query, key, value))

    for target, source, mask in (
        (T, S, random_mask(B, 1, T, S)),
        (8, 4, random_mask(1, 1, 1, 4)),
        (1, 2, random_mask(B, 1, 1, 2)),
    ):
        inputs = arrays(groups=G, target=target, source=source)
        layer = Dropout(0.2, seed=3)
        layer.seed_generator.state.assign([3, 4])

        def expected(*inputs, mask=mask, layer=layer):
            drop = lambda weights: layer(weights, training=True)  # noqa: E731
            return reference(*inputs, mask=mask, causal=True, drop=drop)

        assert_equal(run(*inputs, mask), with_gradients(expected, inputs))


def test_unknown_mask_for_known_lengths():
    """A loop's state must not become less known than it was; sizes of 1 are where it might."""

    @tf.function(input_signature=[tf.TensorSpec((None, None), "bool")])
    def run(mask):
        return attend_in_chunks(*(x[:1, :, :1] for x in inputs), mask=mask, chunk_size=CHUNK)

    inputs = arrays(target=1, source=1)
    np.testing.assert_allclose(run(np.array([[True]])), inputs[2][:1], atol=1e-6)


def test_tiles_hidden_by_the_causal_mask_are_not_computed():
    """Whatever is computed with NaN is NaN: hidden chunks of keys never are."""
    query, key, value = arrays(target=8, source=16)
    key[:, :, 8:], value[:, :, 8:] = np.nan, np.nan
    clean = [query, key[:, :, :8], value[:, :, :8]]
    expected = with_gradients(lambda *x: reference(*x, causal=True), clean)
    results = with_gradients(lambda *x: attend_in_chunks(*x, causal=True, chunk_size=4), [query, key, value])
    output, d_query, d_key, d_value = results
    assert_equal((output, d_query, d_key[:, :, :8], d_value[:, :, :8]), expected)
    np.testing.assert_array_equal(d_key[:, :, 8:], 0)
    np.testing.assert_array_equal(d_value[:, :, 8:], 0)


def test_the_first_queries_do_not_meet_the_later_keys():
    query, key, value = arrays(target=8, source=8)
    key[:, :, 4:], value[:, :, 4:] = np.nan, np.nan
    output, d_query, *_ = with_gradients(
        lambda *x: attend_in_chunks(*x, causal=True, chunk_size=4), [query, key, value]
    )
    assert np.all(np.isfinite(output[:, :, :4])) and np.all(np.isnan(output[:, :, 4:]))
    assert np.all(np.isfinite(d_query[:, :, :4]))


def test_late_queries_leave_the_gradients_of_early_tiles_alone():
    """Going backwards, too, a chunk of keys meets only the queries that may see it."""
    query, key, value = arrays(target=8, source=8)
    query[:, :, :4] = np.nan
    _, _, d_key, d_value = with_gradients(
        lambda *x: attend_in_chunks(*x, causal=True, chunk_size=4), [query, key, value]
    )
    for gradient in (d_key, d_value):
        assert np.all(np.isnan(gradient[:, :, :4])) and np.all(np.isfinite(gradient[:, :, 4:]))


def test_an_eager_tape_keeps_no_tile(monkeypatch):
    tiles = []

    def compare(query, key, original=chunked._compare):
        result = original(query, key)
        tiles.append(weakref.ref(result))
        return result

    monkeypatch.setattr(chunked, "_compare", compare)
    query, key, value = (tf.constant(x) for x in arrays())
    with tf.GradientTape() as tape:
        tape.watch([query, key, value])
        output = attend_in_chunks(query, key, value, chunk_size=CHUNK)
    assert len(tiles) == 2 * 3
    assert all(tile() is None for tile in tiles)
    assert np.any(tape.gradient(output, query) != 0)


@pytest.mark.slow
def test_memory_is_far_below_that_of_the_scores():
    """In a process of its own: one matrix of scores alone would take 134 MB, and training needs several."""
    program = """
import resource
import tensorflow as tf
from attention_zoo.ops import chunked_attention as chunked
from attention_zoo.ops.chunked_attention import attend_in_chunks

@tf.function
def gradients(x):
    return tf.gradients(attend_in_chunks(x, x, x), x)[0]

peaks = []
for length in (64, 4096):
    float(tf.reduce_sum(gradients(tf.ones((1, 2, length, 64)))))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert float(output.stdout.split()[-1]) < 80  # MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((B, T, D))}, "a query of shape"),
        ({"key": np.zeros((B, H, 0, D))}, "not empty"),
        ({"key": np.zeros((B, 3, S, D)), "value": np.zeros((B, 3, S, DV))}, "G divides H"),
        ({"key": np.zeros((B, H, S, D + 1))}, "G divides H"),
        ({"value": np.zeros((B, H, S + 1, DV))}, "fit each other"),
        ({"value": np.zeros((B, 1, S, DV))}, "fit each other"),
        ({"query": np.zeros((B + 1, H, T, D))}, "fit each other"),
        ({"mask": np.ones((B, S))}, "boolean mask.*received dtype float"),
        ({"mask": np.ones((B, T, S), bool)}, r"mask of shape \(B, S\).*received shape \(2, 7, 11\)"),
        ({"mask": np.ones((B, T), bool)}, "received shape"),
        ({"mask": np.ones((B, 1, S, S), bool)}, "received shape"),
        ({"mask": np.ones((B, G, T, S), bool)}, "received shape"),
        ({"chunk_size": 0}, "chunk_size of at least 1, received 0"),
        ({"dropout": 1.5, "seed": [1, 2]}, "between 0 and 1, received 1.5"),
        ({"dropout": 0.1}, "a seed with dropout 0.1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    query, key, value = arrays()
    with pytest.raises(ValueError, match=message):
        attend_in_chunks(**{"query": query, "key": key, "value": value, **change})
