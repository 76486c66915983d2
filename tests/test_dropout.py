"""The statistics hold for fixed seeds; bounds are five standard deviations, wider for a maximum of many."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.layers.dropout import Dropout

N = 2**16


def keeps(seed, calls=1, rate=0.5, shape=(N,)):
    """Which entries each of some successive calls keeps."""
    layer = Dropout(rate, seed=seed)
    kept = np.stack([np.array(layer(np.ones(shape, "float32"), training=True)) > 0 for _ in range(calls)])
    return kept.reshape(calls, *shape)


def correlation(x, y):
    return np.corrcoef(x.ravel(), y.ravel())[0, 1]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_kept_in_every_call(rate):
    kept = np.concatenate([keeps(seed, 8, rate) for seed in (0, 1, 2, 12345)])
    deviation = np.sqrt(rate * (1 - rate) / N)
    assert np.all(np.abs(kept.mean(axis=1) - (1 - rate)) < 5 * deviation)
    # and the calls differ from each other as chance has it: neither alike nor locked to the rate
    assert 0.4 * deviation < kept.mean(axis=1).std() < 2 * deviation


def test_positions_are_independent():
    (kept,) = keeps(seed=3)
    for lag in (1, 2, 3, 7, 8, 16, 64, 100, 128, 256, 1024, 4096, 2**15):
        assert abs(correlation(kept[:-lag], kept[lag:])) < 5 / np.sqrt(N - lag), lag


def test_patterns_of_eight_neighbours_are_equally_likely():
    kept = keeps(seed=4, shape=(N, 8))[0]
    counts = np.bincount(kept @ (1 << np.arange(8)), minlength=256)
    chi_squared = np.sum((counts - N / 256) ** 2 / (N / 256))  # mean 255, variance 510
    assert abs(chi_squared - 255) < 5 * np.sqrt(510)


def test_rows_and_columns_have_the_rate():
    kept = keeps(seed=5, shape=(256, 256), rate=0.3)[0]
    deviation = np.sqrt(0.3 * 0.7 / 256)
    for axis in (0, 1):
        assert np.abs(kept.mean(axis) - 0.7).max() < 5 * deviation
        assert 0.8 * deviation < kept.mean(axis).std() < 1.2 * deviation


def test_calls_are_independent_even_when_shifted():
    """No call's mask is a shift of another's."""
    signs = 2.0 * keeps(seed=6, calls=6) - 1
    spectra = np.fft.fft(signs)
    for i in range(6):
        for j in range(i):
            shifted = np.fft.ifft(spectra[i] * spectra[j].conj()).real / N  # correlation at every shift
            assert np.abs(shifted).max() < 7 / np.sqrt(N)


def test_layers_are_independent():
    masks = [keeps(seed)[0] for seed in (0, 1, 2, 3, 1000, 2**31 - 1)]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert abs(correlation(mask, other)) < 5 / np.sqrt(N)
    # the second call of one layer is not the first of the next
    assert abs(correlation(keeps(0, 2)[1], keeps(1)[0])) < 5 / np.sqrt(N)


def test_equal_seeds_give_equal_masks():
    np.testing.assert_array_equal(keeps(9, calls=3), keeps(9, calls=3))
    first, second = keeps(9, calls=2)
    assert np.any(first != second)


def test_state_of_the_generator_continues_the_sequence():
    layer, restored = Dropout(0.5, seed=1), Dropout(0.5, seed=2)
    layer(np.ones(8), training=True)
    restored.seed_generator.state.assign(layer.seed_generator.state)
    x = np.ones((4, 8), "float32")
    np.testing.assert_array_equal(restored(x, training=True), layer(x, training=True))


def test_seed_none_follows_the_global_seed():
    def draw():
        keras.utils.set_random_seed(5)
        layers = [Dropout(0.5), Dropout(0.5)]
        return [np.array(layer(np.ones(100), training=True)) for layer in layers]

    first, second = draw()
    assert np.any(first != second)
    np.testing.assert_array_equal(draw(), [first, second])


def test_kept_entries_are_scaled_and_the_mean_is_preserved():
    x = np.random.default_rng(0).uniform(1, 2, size=N).astype("float32")
    y = np.array(Dropout(0.2, seed=1)(x, training=True))
    np.testing.assert_allclose(y[y != 0], x[y != 0] / 0.8, rtol=1e-6)
    deviation = np.sqrt(np.mean(x**2) * 0.2 / 0.8 / N)
    assert abs(y.mean() - x.mean()) < 5 * deviation


def test_identity_outside_training():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_array_equal(Dropout(0.5)(x), x)
    np.testing.assert_array_equal(Dropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)


def test_rate_one_drops_everything():
    np.testing.assert_array_equal(Dropout(1.0)(np.ones(1000), training=True), np.zeros(1000))


def test_dropped_entries_are_zero_whatever_they_were():
    y = np.array(Dropout(0.5, seed=1)(np.full(100, np.inf, "float32"), training=True))
    assert set(y.tolist()) == {0.0, np.inf}


def test_gradient_is_the_mask():
    x = tf.Variable(tf.ones((50,)))
    layer = Dropout(0.5, seed=1)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        loss = tf.reduce_sum(y)
    np.testing.assert_array_equal(tape.gradient(loss, x), y)


def test_noise_shape_drops_whole_axes():
    y = np.array(Dropout(0.5, noise_shape=(None, 1, None), seed=1)(np.ones((4, 5, 30)), training=True))
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 5, axis=1))
    assert np.any(y[0] != y[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_same_mask(dtype):
    x = np.ones((20, 30), "float32")
    half = Dropout(0.5, seed=1, dtype=dtype)(x, training=True)
    assert half.dtype == dtype
    np.testing.assert_array_equal(tf.cast(half, "float32"), Dropout(0.5, seed=1)(x, training=True))


def test_compiled_equals_eager_call_by_call():
    x = tf.ones((7, 33))
    eager, compiled = Dropout(0.3, seed=8), Dropout(0.3, seed=8)
    run = tf.function(lambda x: compiled(x, training=True), jit_compile=True)
    for _ in range(3):
        np.testing.assert_array_equal(run(x), eager(x, training=True))


def test_unknown_shapes():
    layer, known = Dropout(0.5, seed=1), Dropout(0.5, seed=1)
    run = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None, 4))])
    x = tf.ones((3, 5, 4))
    np.testing.assert_array_equal(run(x), known(x, training=True))


def test_mask_for_a_loop():
    mask = np.array(Dropout(0.25, seed=1).mask((100, 100)))
    np.testing.assert_allclose(np.unique(mask), [0.0, 4 / 3], rtol=1e-6)
    assert abs(mask.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / mask.size)
    assert Dropout(0.25).mask((2, 3), "float16").dtype == "float16"
    np.testing.assert_array_equal(Dropout(0.0).mask((2, 3)), np.ones((2, 3)))


def test_round_trip_and_masking(tmp_path):
    layer = Dropout(0.5, noise_shape=(None, 1), seed=3, name="drop")
    copy = Dropout.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = keras.Input((4,), dtype="int32")
    embedded = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, Dropout(0.5)(embedded))
    model.save(tmp_path / "model.keras")
    output = keras.models.load_model(tmp_path / "model.keras")(np.array([[1, 2, 0, 0]]))
    np.testing.assert_array_equal(output._keras_mask, [[True, True, False, False]])


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(rate)
