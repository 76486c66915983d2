import keras
import numpy as np
import pytest
from contracts import random, randomize
from references import lstm_step, sigmoid

from attention_zoo.layers.lstm_cell import LSTMCell


def built(units, **kwargs):
    cell = LSTMCell(units, **kwargs)
    cell.build()
    return randomize(cell)


@pytest.mark.parametrize(
    ("gates", "cell_state", "hidden"),
    [
        ([-50, 0, 50, 0], 2 * sigmoid(1), np.tanh(2 * sigmoid(1))),  # forget gate 1 more than its input
        ([-50, -50, 50, 0], 0.0, 0.0),  # everything forgotten
        ([50, -50, 50, 0.3], np.tanh(0.3 + 4), np.tanh(np.tanh(4.3))),  # replaced; U_g = 4 meets h = 1
        ([50, 50, 0, 0], 2 + np.tanh(4), np.tanh(2 + np.tanh(4)) / 2),  # added; output gate half open
    ],
)
def test_by_hand(gates, cell_state, hidden):
    layer = built(1)
    layer.set_weights([np.array([[0.0, 0.0, 0.0, 4.0]])])
    state = (np.array([[1.0]], "float32"), np.array([[2.0]], "float32"))
    actual = layer(np.array([gates], "float32"), state)
    np.testing.assert_allclose(actual, [[[hidden]], [[cell_state]]], atol=1e-6)


def test_equals_numpy_for_any_leading_axes():
    layer = built(4)
    x, h, c = random(2, 3, 16), random(2, 3, 4), random(2, 3, 4, seed=1)
    hidden, cell = layer(x, (h, c))
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose((hidden[i], cell[i]), lstm_step(layer, x[i], (h[i], c[i])), atol=1e-6)


def test_equals_keras():
    layer, theirs = built(4), keras.layers.LSTMCell(4)
    theirs.build((None, 16))
    i, f, o, g = np.split(np.arange(16), 4)
    order = np.concatenate([i, f, g, o])  # theirs
    bias = np.concatenate([np.zeros(4), np.ones(4), np.zeros(8)])
    theirs.set_weights([np.eye(16), layer.recurrent_kernel.numpy()[:, order], bias])
    x, state = random(3, 16), [random(3, 4), random(3, 4, seed=1)]
    np.testing.assert_allclose(layer(x, tuple(state)), theirs(x[:, order], state)[1], atol=1e-6)


def test_zero_state():
    state = LSTMCell(4, dtype="mixed_bfloat16").zero_state((2, 3))
    assert [x.dtype.name for x in state] == ["bfloat16", "bfloat16"]
    np.testing.assert_array_equal(state, np.zeros((2, 2, 3, 4)))


def test_config_round_trip():
    layer = LSTMCell(4, name="cell", dtype="mixed_float16")
    copy = LSTMCell.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert (copy.units, copy.input_units, copy.state_parts) == (4, 16, 2)


def test_units_must_be_positive():
    with pytest.raises(ValueError, match="LSTMCell: expected units of at least 1, received 0"):
        LSTMCell(0)
