import keras
import numpy as np
import pytest
from contracts import random, randomize
from keras import ops
from transformer_references import transform

from attention_zoo.layers.feed_forward import FeedForward

B, T, D, UNITS = 2, 3, 4, 6


def built(**kwargs):
    layer = FeedForward(**{"units": UNITS, **kwargs})
    layer.build((None, None, D))
    return randomize(layer)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_equals_numpy(activation):
    layer, x = built(activation=activation), random(B, T, D)
    np.testing.assert_allclose(layer(x), transform(layer, x), atol=1e-5)


def test_numbers_computed_by_hand():
    """relu([1 * 2 - 1, 1 * -3]) = [1, 0]; 1 * 5 + 0 * 7 + 0.5 = 5.5."""
    layer = FeedForward(2)
    layer.build((None, None, 1))
    layer.set_weights([np.array(w) for w in ([[2.0, -3.0]], [-1.0, 0.0], [[5.0], [7.0]], [0.5])])
    np.testing.assert_array_equal(layer(np.ones((1, 1, 1))), [[[5.5]]])


def test_dropout_is_of_the_hidden_layer_and_in_training_only():
    layer, plain, x = built(dropout=0.5), built(), np.ones((1, 4000, D), "float32")
    for training in (None, False):
        np.testing.assert_array_equal(layer(x, training=training), plain(x))
    for features, inputs in ((layer.hidden, D), (layer.output_layer, UNITS)):
        features.kernel.assign(np.ones(features.kernel.shape))
        features.bias.assign(np.zeros(features.bias.shape))
        assert features.kernel.shape[0] == inputs
    # Each of the hidden units, all D, is dropped or doubled; the outputs, their sum, are alike in a row.
    rows = np.array(layer(x, training=True))[0]
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], D, axis=1))
    assert set(rows[:, 0].tolist()) == {2.0 * D * kept for kept in range(UNITS + 1)}
    np.testing.assert_allclose(rows.mean(), D * UNITS, rtol=0.05)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 1e-1), ("mixed_float16", 1e-2)])
def test_half_precision_is_close(policy, tolerance):
    half, x = built(dtype=policy), random(B, T, D)
    output = half(x)
    assert output.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(ops.cast(output, "float32"), built()(x), atol=tolerance)


def test_config_round_trip():
    arguments = {"units": 5, "activation": keras.activations.gelu, "dropout": 0.25}
    layer = FeedForward(**arguments, name="inner", dtype="mixed_bfloat16")
    copy = FeedForward.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments


def test_file_round_trip(tmp_path):
    inputs, x = keras.Input((None, D)), random(B, T, D)
    layer = built(activation="gelu")
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, None, D)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), layer(x))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="FeedForward: expected units of at least 1, received 0"):
        FeedForward(0)
    with pytest.raises(ValueError, match="relux"):
        FeedForward(4, activation="relux")
    with pytest.raises(ValueError, match="between 0 and 1"):
        FeedForward(4, dropout=1.5)
