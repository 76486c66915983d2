"""LearnedPositionEmbedding: values, steps, the end of the table in every mode of execution, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.layers.learned_position_embedding import LearnedPositionEmbedding

N, D = 6, 3
TABLE = np.arange(N * D, dtype="float32").reshape(N, D)


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def counting(**kwargs):
    """A layer whose table counts: row p is [3p, 3p + 1, 3p + 2]."""
    layer = LearnedPositionEmbedding(N, **kwargs)
    layer.build((None, None, D))
    layer.embeddings.assign(TABLE)
    return layer


def in_graph(layer, jit_compile=False):
    """The layer as a function of inputs and start whose sizes are unknown when it is traced."""
    signature = [tf.TensorSpec((None, None, D)), tf.TensorSpec((), "int32")]
    return tf.function(lambda x, t: layer(x, start=t), jit_compile=jit_compile, input_signature=signature)


# Values.


def test_golden_values():
    y = counting()(np.full((2, 2, D), 100.0, "float32"))
    np.testing.assert_array_equal(y, [[[100, 101, 102], [103, 104, 105]]] * 2)


def test_a_later_start():
    x = random(2, 2, D)
    for start in (4, tf.constant(4), tf.constant(4, "int64"), np.array([4, 4])):
        np.testing.assert_array_equal(counting()(x, start=start), x + TABLE[4:])


def test_every_row_may_start_elsewhere():
    y = counting()(np.zeros((2, 2, D), "float32"), start=np.array([0, 3]))
    np.testing.assert_array_equal(y, [TABLE[:2], TABLE[3:5]])


def test_step_by_step_equals_all_at_once():
    layer, x = counting(), random(2, N, D)
    whole = layer(x)
    for t in range(N):
        np.testing.assert_array_equal(layer(x[:, t : t + 1], start=tf.constant(t)), whole[:, t : t + 1])


def test_rows_start_as_large_as_sines():
    layer = LearnedPositionEmbedding(1000)
    layer.build((None, None, 32))
    table = np.array(layer.embeddings)
    assert np.mean(table**2) == pytest.approx(0.5, rel=0.05)
    assert abs(table.mean()) < 0.02  # five standard deviations


def test_the_initializer_is_used():
    layer = LearnedPositionEmbedding(4, initializer="ones")
    np.testing.assert_array_equal(layer(np.zeros((1, 2, D), "float32")), np.ones((1, 2, D)))


@pytest.mark.parametrize("start", [1, tf.constant(1)])
def test_gradient_reaches_the_rows_in_use(start):
    """Each row gets the sum over the batch, whether it was cut out or looked up."""
    layer, x, upstream = counting(), tf.constant(random(2, 2, D)), random(2, 2, D) + 1
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, start=start)
    to_x, to_table = tape.gradient(y, [x, layer.embeddings.value], upstream)
    np.testing.assert_array_equal(to_x, upstream)
    expected = np.zeros((N, D))
    expected[1:3] = upstream.sum(axis=0)
    np.testing.assert_allclose(tf.convert_to_tensor(to_table), expected, atol=1e-6)


# The end of the table.


def test_the_table_can_be_filled():
    np.testing.assert_array_equal(counting()(np.zeros((1, N, D), "float32"))[0], TABLE)


def test_inputs_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="expected at most 6 positions, received 7; shorten"):
        counting()(np.zeros((1, N + 1, D), "float32"))


def test_inputs_that_are_too_long_are_refused_before_any_data():
    with pytest.raises(ValueError, match="expected at most 6 positions, received 7; shorten"):
        LearnedPositionEmbedding(N)(keras.Input((N + 1, D)))


def test_a_start_that_is_too_late_is_refused():
    with pytest.raises(ValueError, match="expected at most 6 positions, received 7; shorten"):
        counting()(np.zeros((1, 2, D), "float32"), start=5)


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="expected a start of at least 0, received -1"):
        counting()(np.zeros((1, 2, D), "float32"), start=-1)


@pytest.mark.parametrize("start", [5, -1, [0, 5], [-1, 0]])
def test_a_start_in_a_tensor_is_checked(start):
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected at most 6 positions, from 0 to 5"):
        counting()(np.zeros((2, 2, D), "float32"), start=tf.constant(start))


def test_the_graph_checks_what_is_unknown_when_it_is_traced():
    run = in_graph(counting())
    np.testing.assert_array_equal(run(np.zeros((1, 2, D), "float32"), 4)[0], TABLE[4:])
    for length, start in ((2, 5), (2, -1), (N + 1, 0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected at most 6 positions"):
            run(np.zeros((1, length, D), "float32"), start)


def test_xla_gives_nan_past_the_table():
    """Assertions vanish there, and a lookup would repeat the last row."""
    run = in_graph(counting(), jit_compile=True)
    x = random(1, 3, D)
    np.testing.assert_array_equal(run(x, 3), x + TABLE[3:])
    past, before = np.array(run(x, 4))[0], np.array(run(x, -1))[0]
    np.testing.assert_array_equal(past[:2], x[0, :2] + TABLE[4:])
    np.testing.assert_array_equal(before[1:], x[0, 1:] + TABLE[:2])
    assert np.isnan(past[2]).all()
    assert np.isnan(before[0]).all()


# In models.


@pytest.mark.parametrize(("policy", "unit"), [("mixed_bfloat16", 2**-8), ("mixed_float16", 2**-11)])
@pytest.mark.parametrize("start", [1, tf.constant(1)])
def test_half_precision_is_close(policy, unit, start):
    layer = LearnedPositionEmbedding(N, keras.initializers.RandomUniform(-1, 1, seed=3))
    x = np.clip(random(2, 4, D), -2.9, 2.9)  # so that every sum is below 4
    expected = np.array(layer(x, start=start))
    half = LearnedPositionEmbedding(N, dtype=policy)
    half.build((None, None, D))
    half.embeddings.assign(layer.embeddings)
    assert half.embeddings.dtype == "float32"
    y = half(x, start=start)
    assert y.dtype == policy.removeprefix("mixed_")
    # Inputs, rows and sum are rounded: all below 4, by half a unit each.
    np.testing.assert_allclose(tf.cast(y, "float32"), expected, atol=6 * unit, rtol=0)


def test_round_trip_of_a_model_of_unknown_length(tmp_path):
    inputs = keras.Input((None, D))
    layer = LearnedPositionEmbedding(N, keras.initializers.RandomUniform(-1, 1, seed=3), name="where")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, D)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("where").get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded.get_layer("where").embeddings, layer.embeddings)
    x = random(2, 5, D)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model(x), atol=1e-6)


def test_the_default_initializer_survives_its_config():
    layer = LearnedPositionEmbedding(N)
    copy = LearnedPositionEmbedding.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert copy.initializer.stddev == pytest.approx(0.5**0.5)


def test_fit_learns_the_rows():
    """Inputs of zeros, targets the rows of another table."""
    inputs = keras.Input((None, D))
    layer = LearnedPositionEmbedding(N)
    model = keras.Model(inputs, layer(inputs))
    # The gradient for a row is 2 (E - target) / (N D), so this rate takes it there in one step.
    model.compile(keras.optimizers.SGD(N * D / 2), "mse")
    x, target = np.zeros((4, N, D), "float32"), np.repeat(random(1, N, D), 4, axis=0)
    model.fit(x, target, batch_size=4, verbose=0)
    np.testing.assert_allclose(layer.embeddings, target[0], atol=1e-5)


def test_masks_are_passed_on():
    embedded = keras.layers.Embedding(5, D, mask_zero=True)(np.array([[1, 2, 0]]))
    for start in (0, tf.constant(3)):
        np.testing.assert_array_equal(counting()(embedded, start=start)._keras_mask, [[True, True, False]])


# Errors.


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="expected max_positions of at least 1, received 0"):
        LearnedPositionEmbedding(0)


@pytest.mark.parametrize("shape", [(None, 4), (None, 3, None), (None, 2, 2, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected inputs of shape"):
        LearnedPositionEmbedding(N).build(shape)


def test_a_start_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="expected start as an integer, received float"):
        counting()(random(1, 2, D), start=1.0)
