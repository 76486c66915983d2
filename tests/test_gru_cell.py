import keras
import numpy as np
import pytest
from contracts import random, randomize
from references import gru_step

from attention_zoo.layers.gru_cell import GRUCell


def built(units, **kwargs):
    cell = GRUCell(units, **kwargs)
    cell.build()
    return randomize(cell)


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([0, 50, 0], 0.5 + 0.5 * np.tanh(2 * 1 + 3)),  # z = 1/2, r = 1: h meets U_n = 2 and the bias 3
        ([0, -50, 0], 0.5),  # r = 0 hides the recurrent part, its bias included
        ([0, -50, 0.7], 0.5 + 0.5 * np.tanh(0.7)),
        ([50, 50, 0], 1.0),  # z = 1 keeps the state
        ([-50, -50, 0.7], np.tanh(0.7)),  # z = 0 replaces it
    ],
)
def test_by_hand(gates, expected):
    cell = built(1)
    cell.set_weights([np.array([[0.0, 0.0, 2.0]]), np.array([3.0])])
    (hidden,) = cell(np.array([gates], "float32"), (np.array([[1.0]], "float32"),))
    np.testing.assert_allclose(hidden, [[expected]], atol=1e-6)


def test_equals_numpy_for_any_leading_axes():
    cell = built(4)
    x, h = random(2, 3, 12), random(2, 3, 4)
    (hidden,) = cell(x, (h,))
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(hidden[i], gru_step(cell, x[i], (h[i],))[0], atol=1e-6)


def test_equals_keras():
    cell, theirs = built(4), keras.layers.GRUCell(4, reset_after=True)
    theirs.build((None, 12))
    recurrent_bias = np.concatenate([np.zeros(8), cell.candidate_bias])
    theirs.set_weights([np.eye(12), cell.recurrent_kernel, np.stack([np.zeros(12), recurrent_bias])])
    x, h = random(3, 12), random(3, 4)
    np.testing.assert_allclose(cell(x, (h,))[0], theirs(x, h)[0], atol=1e-6)


def test_zero_state():
    (hidden,) = GRUCell(4, dtype="mixed_bfloat16").zero_state((2, 3))
    assert hidden.dtype == "bfloat16"
    np.testing.assert_array_equal(hidden, np.zeros((2, 3, 4)))


def test_config_round_trip():
    cell = GRUCell(4, name="cell", dtype="mixed_float16")
    copy = GRUCell.from_config(cell.get_config())
    assert copy.get_config() == cell.get_config()
    assert (copy.units, copy.input_units, copy.state_parts) == (4, 12, 1)


def test_units_must_be_positive():
    with pytest.raises(ValueError, match="GRUCell: expected units of at least 1, received 0"):
        GRUCell(0)
