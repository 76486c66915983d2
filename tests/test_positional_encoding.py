"""PositionalEncoding: the properties the literature asks of it, values, steps, grids, precision, saving."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.layers.positional_encoding import PositionalEncoding

ATOL = 3e-6  # of the sines, see test_positions.py


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def codes(length, width, **kwargs):
    """The encoding itself, (L, D), as the layer adds it to zeros."""
    start = kwargs.pop("start", 0)
    return np.array(PositionalEncoding(**kwargs)(np.zeros((1, length, width), "float32"), start=start)[0])


def distances(x):
    """Euclidean distance of every row to every other, in float64."""
    x = x.astype("float64")
    squares = np.sum(x * x, axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0))


# The four properties of the literature.


def test_every_position_has_a_code_of_its_own():
    between = distances(codes(2000, 64))
    np.fill_diagonal(between, np.inf)
    # Neighbours are closest: |PE(p + 1) - PE(p)|^2 = sum over frequencies of 2 - 2 cos(frequency).
    frequencies = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    neighbours = math.sqrt(np.sum(2 - 2 * np.cos(frequencies)))
    assert between.min() == pytest.approx(neighbours, rel=1e-3)


def test_every_position_has_a_code_of_its_own_in_half_precision():
    """In bfloat16 positions 256 and 257 are the same number; their codes must not be."""
    half = PositionalEncoding(dtype="mixed_bfloat16")(np.zeros((1, 2000, 64), "float32"))[0]
    assert half.dtype == "bfloat16"
    half = np.array(tf.cast(half, "float32"))
    np.testing.assert_allclose(half, codes(2000, 64), atol=2**-9)  # half a unit of bfloat16 below 1
    between = distances(half)
    np.fill_diagonal(between, np.inf)
    assert between.min() > 1.0


@pytest.mark.parametrize("offset", [1, 5, 100])
def test_the_distance_over_an_offset_is_the_same_everywhere(offset):
    for length in (200, 1000):
        x = codes(length, 32)
        steps = np.linalg.norm(x[offset:] - x[:-offset], axis=1)
        np.testing.assert_allclose(steps, steps[0], atol=2e-5)
    far = codes(offset + 1, 32, start=100_000)
    np.testing.assert_allclose(np.linalg.norm(far[-1] - far[0]), steps[0], atol=2e-5)


def test_values_are_bounded_however_long_the_input():
    assert np.abs(codes(5000, 16)).max() <= 1
    assert np.abs(codes(10, 16, start=10_000_000)).max() <= 1


def test_a_longer_input_begins_like_a_shorter_one():
    layer = PositionalEncoding()
    x = random(2, 300, 8)
    short = layer(x[:, :7])  # the layer has seen nothing longer yet
    np.testing.assert_allclose(layer(x)[:, :7], short, atol=ATOL)


def test_it_is_deterministic_and_has_no_weights():
    x, layer = random(2, 5, 8), PositionalEncoding()
    np.testing.assert_array_equal(layer(x), layer(x, training=True))
    np.testing.assert_array_equal(layer(x), PositionalEncoding()(x))
    assert layer.weights == []


# Values.


def test_golden_values():
    s, c = math.sin, math.cos
    expected = [[0, 1, 0, 1], [s(1), c(1), s(0.01), c(0.01)], [s(2), c(2), s(0.02), c(0.02)]]
    np.testing.assert_allclose(codes(3, 4), expected, atol=1e-6)


def test_halves_put_the_sines_first():
    s, c = math.sin, math.cos
    expected = [[0, 0, 1, 1], [s(1), s(0.01), c(1), c(0.01)]]
    np.testing.assert_allclose(codes(2, 4, order="halves"), expected, atol=1e-6)


def test_max_wavelength_slows_the_last_pair():
    np.testing.assert_allclose(
        codes(2, 4, max_wavelength=100.0)[1],
        [math.sin(1), math.cos(1), math.sin(0.1), math.cos(0.1)],
        atol=1e-6,
    )


def test_an_odd_width_ends_with_a_sine():
    expected = [math.sin(1), math.cos(1), math.sin(10000.0 ** (-2 / 3))]
    np.testing.assert_allclose(codes(2, 3)[1], expected, atol=1e-6)


def test_the_code_is_added():
    x = random(2, 5, 6)
    np.testing.assert_allclose(PositionalEncoding()(x), x + codes(5, 6), atol=1e-6)


def test_the_code_is_concatenated():
    x = random(2, 5, 3)
    y = PositionalEncoding("concat", units=4)(x)
    np.testing.assert_array_equal(y[..., :3], x)
    np.testing.assert_array_equal(y[..., 3:], np.stack([codes(5, 4)] * 2))


# Grids.


@pytest.mark.parametrize("order", ["interleaved", "halves"])
def test_a_grid_has_the_row_in_one_half_and_the_column_in_the_other(order):
    y = np.array(PositionalEncoding(order=order)(np.zeros((2, 3, 5, 8), "float32")))
    for row in range(3):
        for column in range(5):
            expected = [codes(3, 4, order=order)[row], codes(5, 4, order=order)[column]]
            np.testing.assert_allclose(y[0, row, column], np.concatenate(expected), atol=ATOL)
    np.testing.assert_array_equal(y[1], y[0])


def test_a_grid_is_concatenated():
    x = random(2, 3, 5, 1)
    y = PositionalEncoding("concat", units=8)(x)
    assert y.shape == (2, 3, 5, 9)
    np.testing.assert_array_equal(y[..., :1], x)
    np.testing.assert_array_equal(y[..., 1:], PositionalEncoding()(np.zeros((2, 3, 5, 8), "float32")))


def test_every_cell_of_a_grid_has_a_code_of_its_own():
    y = np.array(PositionalEncoding()(np.zeros((1, 20, 30, 8), "float32")))
    between = distances(y.reshape(600, 8))
    np.fill_diagonal(between, np.inf)
    # Rows 0 and 19 are nearly three turns apart in the fast pair, and 0.19 radians in the slow one.
    assert between.min() > 0.2


# Starting later.


@pytest.mark.parametrize("mode", ["add", "concat"])
def test_step_by_step_equals_all_at_once(mode):
    layer = PositionalEncoding(mode, units=6 if mode == "concat" else None)
    x = random(2, 5, 6)
    whole = layer(x)
    for t in range(5):
        for start in (t, tf.constant(t), tf.constant(t, "int64"), np.array([t, t])):
            step = layer(x[:, t : t + 1], start=start)
            np.testing.assert_allclose(step, whole[:, t : t + 1], atol=ATOL)


def test_every_row_may_start_elsewhere():
    y = PositionalEncoding()(np.zeros((2, 3, 4), "float32"), start=np.array([2, 9]))
    np.testing.assert_allclose(y[0], codes(5, 4)[2:], atol=ATOL)
    np.testing.assert_allclose(y[1], codes(12, 4)[9:], atol=ATOL)


def test_start_is_not_rounded_in_half_precision():
    layer = PositionalEncoding(dtype="bfloat16")
    y = layer(np.zeros((1, 1, 8)), start=tf.constant(1001))[0]
    np.testing.assert_allclose(tf.cast(y, "float32"), codes(1002, 8)[1001:], atol=2**-9)


def test_a_start_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="expected start as an integer, received float"):
        PositionalEncoding()(random(1, 2, 4), start=1.0)


@pytest.mark.parametrize("start", [1, np.array(0)])
def test_a_grid_has_no_start(start):
    with pytest.raises(ValueError, match="expected no start for a grid"):
        PositionalEncoding()(random(1, 2, 2, 4), start=start)


# Precision.


@pytest.mark.parametrize(
    ("policy", "unit"), [("mixed_bfloat16", 2**-8), ("mixed_float16", 2**-11), ("float16", 2**-11)]
)
@pytest.mark.parametrize("mode", ["add", "concat"])
def test_half_precision_is_rounded_at_the_end_only(policy, unit, mode):
    units = 8 if mode == "concat" else None
    x = tf.cast(3 * random(2, 700, 8), policy.removeprefix("mixed_"))
    half = PositionalEncoding(mode, units=units, dtype=policy)(x)
    assert half.dtype == x.dtype
    exact = PositionalEncoding(mode, units=units)(tf.cast(x, "float32"))
    np.testing.assert_array_equal(half, tf.cast(exact, x.dtype))
    np.testing.assert_allclose(tf.cast(half, "float32"), exact, rtol=unit, atol=1e-6)


def test_double_precision_inputs_stay_double():
    x = 1e9 + random(1, 3, 4).astype("float64")
    np.testing.assert_allclose(PositionalEncoding(dtype="float64")(x), x + codes(3, 4), rtol=1e-15)


def test_gradient_passes_unchanged():
    x, upstream = tf.constant(random(2, 3, 4)), random(2, 3, 4) + 1
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = PositionalEncoding()(x)
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), upstream)


# In models.


def test_compiled_equals_eager_with_unknown_shapes_and_a_start():
    layer, x = PositionalEncoding(), random(2, 5, 6)
    signature = [tf.TensorSpec((None, None, 6)), tf.TensorSpec((), "int32")]
    for jit_compile in (False, True):
        run = tf.function(lambda x, t: layer(x, start=t), jit_compile=jit_compile, input_signature=signature)
        np.testing.assert_allclose(run(x, 70_000), layer(x, start=70_000), atol=2 * ATOL)


@pytest.mark.parametrize("shape", [(None, 8), (None, None, 8)])
@pytest.mark.parametrize("mode", ["add", "concat"])
def test_round_trip_of_a_model_of_unknown_shapes(tmp_path, shape, mode):
    layer = PositionalEncoding(mode, 500.0, "halves", units=4 if mode == "concat" else None, name="where")
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *shape[:-1], 8 if mode == "add" else 12)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("where").get_config() == layer.get_config()
    x = random(2, 3, 5, 8) if len(shape) == 3 else random(2, 3, 8)
    np.testing.assert_array_equal(loaded(x), layer(x))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), layer(x), atol=1e-6)


def test_shapes_before_any_data():
    assert PositionalEncoding().compute_output_shape((None, None, 6)) == (None, None, 6)
    concat = PositionalEncoding("concat", units=4)
    assert concat.compute_output_shape((2, None, 6)) == (2, None, 10)
    assert concat.compute_output_shape((None, 3, 5, 6)) == (None, 3, 5, 10)


@pytest.mark.parametrize("mode", ["add", "concat"])
def test_masks_are_passed_on(mode):
    embedded = keras.layers.Embedding(5, 4, mask_zero=True)(np.array([[1, 2, 0]]))
    layer = PositionalEncoding(mode, units=4 if mode == "concat" else None)
    for start in (0, tf.constant(3)):
        np.testing.assert_array_equal(layer(embedded, start=start)._keras_mask, [[True, True, False]])


# Errors.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "multiply"}, "received 'multiply'"),
        ({"order": "random"}, "received 'random'"),
        ({"max_wavelength": -1.0}, "expected a positive max_wavelength, received -1.0"),
        ({"units": 4}, 'expected units=None for mode="add", received 4'),
        ({"mode": "concat"}, 'expected units of at least 1 for mode="concat", received None'),
        ({"mode": "concat", "units": 0}, "received 0"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PositionalEncoding(**kwargs)


@pytest.mark.parametrize("shape", [(None, 4), (None, 3, None), (None, 2, 2, 2, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected inputs of shape"):
        PositionalEncoding().build(shape)


@pytest.mark.parametrize("kwargs", [{}, {"mode": "concat", "units": 6}])
def test_a_grid_needs_a_multiple_of_four(kwargs):
    with pytest.raises(ValueError, match=r"expected a multiple of 4 .* received 6"):
        PositionalEncoding(**kwargs)(keras.Input((3, 5, 6)))
