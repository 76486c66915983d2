"""Positions: sines and rotations against float64, at small and at very large positions."""

import math

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.ops import positions

# Up to three turns, of 2 pi each, are added up in float32: an error of 8e-7 per rounding, a few of them.
ATOL = 3e-6


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def sine_by_sine(position, units, max_wavelength=10000.0):
    """The paper's formula for one position, in float64."""
    code = []
    for j in range(units):
        angle = position / max_wavelength ** ((j - j % 2) / units)
        code.append(math.cos(angle) if j % 2 else math.sin(angle))
    return np.array(code)


def table(places, units, **kwargs):
    return np.stack([sine_by_sine(float(p), units, **kwargs) for p in places])


# Counting.


def test_counting_from_a_number():
    counted = positions.positions_from(3, 4)
    assert counted.dtype == "int32"
    np.testing.assert_array_equal(counted, [3, 4, 5, 6])


def test_counting_from_a_number_per_row():
    counted = positions.positions_from(np.array([0, 7], "int64"), 3)
    np.testing.assert_array_equal(counted, [[0, 1, 2], [7, 8, 9]])


@pytest.mark.parametrize("start", [1.0, np.array([1.0], "float16"), True])
def test_counting_from_anything_but_integers_is_refused(start):
    with pytest.raises(TypeError, match="expected start as an integer, received"):
        positions.positions_from(start, 3)


def test_counting_from_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"expected start as a scalar .* received shape \(2, 1\)"):
        positions.positions_from(np.zeros((2, 1), "int32"), 3)


# Sines.


def test_golden_values():
    """Width 4: wavelengths of 2 pi and, at exponent 2 / 4, of 100 times as much."""
    expected = [
        [0.0, 1.0, 0.0, 1.0],
        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)],
        [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)],
    ]
    np.testing.assert_allclose(positions.sinusoids([0, 1, 2], 4), expected, atol=1e-6)


def test_position_zero_is_exact():
    np.testing.assert_array_equal(positions.sinusoids(0, 7), [0, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("units", [1, 2, 7, 64])
@pytest.mark.parametrize("max_wavelength", [100.0, 10000.0])
def test_equals_the_formula(units, max_wavelength):
    codes = positions.sinusoids(np.arange(50), units, max_wavelength)
    assert codes.dtype == "float32"
    np.testing.assert_allclose(
        codes, table(range(50), units, max_wavelength=max_wavelength), atol=ATOL, rtol=0
    )


@pytest.mark.parametrize("top", [5_000, 100_000, 2**24])
def test_large_positions_are_as_accurate_as_small_ones(top):
    """The plain product of float32 numbers is off by 5e-3 at 100,000 and by more than 0.5 at 2^24."""
    places = np.append(np.random.default_rng(top).integers(-top, top, 100), [top, -top, top - 1])
    np.testing.assert_allclose(positions.sinusoids(places, 64), table(places, 64), atol=ATOL, rtol=0)


def test_fractions_count():
    places = np.random.default_rng(0).uniform(-1e5, 1e5, 100).astype("float32")
    np.testing.assert_allclose(positions.sinusoids(places, 16), table(places, 16), atol=ATOL, rtol=0)


def test_wavelengths_below_one_turn_per_position():
    places = np.arange(200)
    expected = table(places, 6, max_wavelength=1e-3)
    # Frequencies of up to 100: more turns per position, but no less exact.
    np.testing.assert_allclose(positions.sinusoids(places, 6, 1e-3), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("units", [1, 6, 7])
def test_halves_are_the_same_columns_sines_first(units):
    interleaved = np.array(positions.sinusoids(np.arange(9), units))
    halves = positions.sinusoids(np.arange(9), units, order="halves")
    expected = np.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], axis=1)
    np.testing.assert_array_equal(halves, expected)


def test_shape_of_the_positions_is_kept():
    places = np.arange(12).reshape(2, 3, 2)
    codes = positions.sinusoids(places, 5)
    assert codes.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(codes[1, 2], positions.sinusoids(places[1, 2], 5), atol=ATOL)


def test_gradient_is_the_derivative():
    place = tf.constant([0.25, 5000.75])
    with tf.GradientTape() as tape:
        tape.watch(place)
        codes = positions.sinusoids(place, 2)
    # d sin(p) / dp + d cos(p) / dp
    p = np.array(place, "float64")
    np.testing.assert_allclose(tape.gradient(codes, place), np.cos(p) - np.sin(p), atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_sines_in_a_graph_are_as_accurate(jit_compile):
    """No optimizer of graphs may undo the exact arithmetic: Grappler reorders sums, XLA fuses products."""
    places = np.append(np.random.default_rng(1).integers(-(2**24), 2**24, 100), np.arange(100))
    compiled = tf.function(lambda p: positions.sinusoids(p, 10), jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(tf.constant(places)), table(places, 10), atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"units": 0}, "expected units of at least 1, received 0"),
        ({"units": 4, "order": "sines"}, "received 'sines'"),
        ({"units": 4, "max_wavelength": 0.0}, "expected a positive max_wavelength, received 0.0"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        positions.sinusoids([0], **kwargs)


# Rotations.


def by_complex_numbers(x, places, max_wavelength=10000.0):
    """Neighbours as the real and imaginary part of a number times e^(i p theta)."""
    x = x.astype("float64")
    theta = max_wavelength ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * np.asarray(places, "float64")[..., None] * theta)
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("first", [0, 100_000])
def test_rotation_is_complex_multiplication(first):
    x = random(2, 3, 5, 8)
    places = np.arange(first, first + 5)
    expected = by_complex_numbers(x, places)
    # Entries of up to 3 multiply sines that are off by up to ATOL.
    np.testing.assert_allclose(positions.rotate(x, places), expected, atol=3 * ATOL, rtol=1e-6)


def test_rotation_by_max_wavelength():
    x = random(5, 4)
    expected = by_complex_numbers(x, np.arange(5), max_wavelength=100.0)
    np.testing.assert_allclose(positions.rotate(x, np.arange(5), 100.0), expected, atol=1e-5)


def test_positions_may_differ_by_row():
    x = random(2, 3, 4, 6)  # (B, H, L, D)
    places = np.array([[0, 1, 2, 3], [7, 8, 9, 10]])
    rotated = positions.rotate(x, places[:, None])  # (B, 1, L)
    for row in range(2):
        np.testing.assert_allclose(rotated[row], positions.rotate(x[row], places[row]), atol=1e-6)


def test_position_zero_leaves_everything_as_it_is():
    x = random(2, 3, 8)
    np.testing.assert_array_equal(positions.rotate(x, np.zeros(3, "int32")), x)


def test_rotation_keeps_the_norm():
    x = random(7, 8)
    rotated = positions.rotate(x, np.arange(7) * 1000)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_rotating_back_undoes_it():
    x, places = random(4, 6), np.array([1, 5, 300, 70_000])
    np.testing.assert_allclose(positions.rotate(positions.rotate(x, places), -places), x, atol=2e-5)


@pytest.mark.parametrize("distance", [0, 1, 17])
def test_dot_products_depend_on_the_distance_only(distance):
    query, key = (np.repeat(v, 6, axis=0) for v in (random(1, 16), random(1, 16) + 1))
    places = np.array([0, 1, 50, 3000, 65_537, 100_000])
    rotated = positions.rotate(query, places + distance), positions.rotate(key, places)
    products = np.sum(np.array(rotated[0]) * np.array(rotated[1]), axis=-1)
    np.testing.assert_allclose(products, products[0], atol=1e-4)
    # The same as turning the query alone by the distance.
    expected = np.sum(by_complex_numbers(query[0], distance) * key[0])
    np.testing.assert_allclose(products, expected, atol=1e-4)


def test_dot_products_at_different_distances_differ():
    query, key = random(1, 16), random(1, 16) + 1
    rotated = np.array(positions.rotate(np.repeat(query, 5, axis=0), np.arange(5)))
    products = np.sort(rotated @ key[0])
    assert np.diff(products).min() > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_is_rounded_once(dtype, tolerance):
    x = tf.cast(random(6, 8), dtype)
    places = np.arange(10_000, 10_006)
    rotated = positions.rotate(x, places)
    assert rotated.dtype == dtype
    expected = by_complex_numbers(np.array(tf.cast(x, "float32")), places)
    np.testing.assert_allclose(tf.cast(rotated, "float32"), expected, rtol=tolerance, atol=1e-5)


def test_rotation_compiled_with_its_gradient():
    """The gradient of a rotation is the rotation back. Batch and length are unknown to the graph."""
    x, upstream, places = random(2, 5, 4), random(2, 5, 4) + 1, np.arange(5)

    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            rotated = positions.rotate(x, tf.range(tf.shape(x)[1]))
        return rotated, tape.gradient(rotated, x, upstream)

    signature = [tf.TensorSpec((None, None, 4))] * 2
    rotated, gradient = tf.function(run, jit_compile=True, input_signature=signature)(x, upstream)
    np.testing.assert_allclose(rotated, by_complex_numbers(x, places), atol=1e-5)
    np.testing.assert_allclose(gradient, by_complex_numbers(upstream, -places), atol=1e-5)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="expected an even width, received 3"):
        positions.rotate(random(2, 3), [0, 1])


def test_positions_with_an_axis_too_many_are_refused():
    with pytest.raises(ValueError, match=r"received \(1, 2\) for \(2, 4\)"):
        positions.rotate(random(2, 4), [[0, 1]])
