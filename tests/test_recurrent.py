import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random, randomize
from keras import ops
from references import read

from attention_zoo.layers.additive_attention import AdditiveAttention
from attention_zoo.layers.recurrent import Recurrent

B, S, D, UNITS = 3, 5, 3, 4
LENGTHS = np.array([5, 2, 0])
MASK = np.arange(S) < LENGTHS[:, None]


def built(cell="gru", bidirectional=True, **kwargs):
    layer = Recurrent(UNITS, cell, bidirectional, **kwargs)
    layer.build((None, None, D))
    return randomize(layer)


variants = pytest.mark.parametrize(
    ("cell", "bidirectional"), [("gru", True), ("gru", False), ("lstm", True), ("lstm", False)]
)


@variants
def test_equals_numpy_on_each_unpadded_sequence(cell, bidirectional):
    layer, inputs = built(cell, bidirectional), random(B, S, D)
    outputs, last = layer(inputs, mask=MASK)
    for row, length in enumerate(LENGTHS[:2]):
        expected, expected_last = read(layer, inputs[row, :length])
        np.testing.assert_allclose(outputs[row, :length], expected, atol=1e-5)
        np.testing.assert_allclose(last[row], expected_last, atol=1e-5)
    # An empty sequence leaves the state at zero.
    np.testing.assert_array_equal(last[2], np.zeros_like(last[2]))


@variants
def test_without_a_mask_everything_is_read(cell, bidirectional):
    layer, inputs = built(cell, bidirectional), random(1, S, D)
    outputs, last = layer(inputs)
    expected, expected_last = read(layer, inputs[0])
    np.testing.assert_allclose(outputs[0], expected, atol=1e-5)
    np.testing.assert_allclose(last[0], expected_last, atol=1e-5)


@variants
def test_padding_never_reaches_a_state(cell, bidirectional):
    """Not a bit changes, whatever stands in the padding and however wide it is."""
    layer, inputs = built(cell, bidirectional), random(B, S, D)
    outputs, last = layer(inputs, mask=MASK)
    filled = np.where(MASK[..., None], inputs, 1e3).astype("float32")
    wide = np.pad(filled, [(0, 0), (0, 3), (0, 0)], constant_values=-50.0)
    wide_outputs, wide_last = layer(wide, mask=np.pad(MASK, [(0, 0), (0, 3)]))
    np.testing.assert_array_equal(wide_last, last)
    np.testing.assert_array_equal(wide_outputs[:, :S], outputs)
    np.testing.assert_array_equal(wide_outputs[:, S:], np.zeros_like(wide_outputs[:, S:]))
    np.testing.assert_array_equal(np.array(outputs)[~MASK], 0.0)


def test_padding_gets_no_gradient():
    layer, inputs = built("lstm"), tf.constant(random(B, S, D))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs, last = layer(inputs, mask=MASK)
        loss = ops.sum(ops.sin(outputs)) + ops.sum(last)
    gradient = np.array(tape.gradient(loss, inputs))
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), MASK)


def test_masks_of_the_inputs_are_found_and_handed_on():
    layer, attention = built(), AdditiveAttention(4)
    ids = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(9, D, mask_zero=True)(ids)
    outputs, last = layer(embedded)
    assert (outputs.shape, last.shape) == ((None, None, 2 * UNITS), (None, 2 * UNITS))
    _, weights = attention(outputs, outputs, return_attention_scores=True)
    model = keras.Model(ids, [embedded, outputs, last, weights])

    padded = np.array([[5, 6, 0], [7, 0, 0]])
    embedded, outputs, last, weights = model(padded)
    expected, expected_last = layer(np.array(embedded), mask=padded != 0)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    np.testing.assert_allclose(last, expected_last, atol=1e-6)
    np.testing.assert_array_equal(np.any(np.array(weights) > 0, axis=1), padded != 0)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 5e-2), ("mixed_float16", 5e-3)])
def test_half_precision_is_close(policy, tolerance):
    for cell in ("gru", "lstm"):
        full, half = built(cell), built(cell, dtype=policy)
        half.set_weights(full.get_weights())
        for x, y in zip(half(random(B, S, D), mask=MASK), full(random(B, S, D), mask=MASK), strict=True):
            assert x.dtype == policy.removeprefix("mixed_")
            np.testing.assert_allclose(ops.cast(x, "float32"), y, atol=tolerance)


def test_config_and_file_round_trip(tmp_path):
    layer = Recurrent(UNITS, "lstm", bidirectional=False, name="reader")
    copy = Recurrent.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert (copy.units, copy.cell, copy.bidirectional) == (UNITS, "lstm", False)

    inputs = keras.Input((None, D))
    model = keras.Model(inputs, built("lstm")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for x, y in zip(loaded(random(B, S, D)), model(random(B, S, D)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"expected one of \['gru', 'lstm'\], received 'rnn'"):
        Recurrent(4, "rnn")
    with pytest.raises(ValueError, match="units of at least 1, received 0"):
        Recurrent(0)
