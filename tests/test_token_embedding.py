"""TokenEmbedding: values, scale at the start, round trip, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from attention_zoo.layers import TokenEmbedding


def test_golden_values():
    layer = TokenEmbedding(3, 4)
    layer.build()
    layer.embeddings.assign(np.arange(12.0).reshape(3, 4))
    np.testing.assert_allclose(layer(ops.array([[2, 0]]))[0], [[16, 18, 20, 22], [0, 2, 4, 6]])


def test_outputs_start_with_unit_variance_and_rows_with_length_one():
    layer = TokenEmbedding(2000, 64)
    outputs = ops.convert_to_numpy(layer(ops.arange(2000)))
    assert np.var(outputs) == pytest.approx(1.0, rel=0.05)
    assert np.mean(np.sum(ops.convert_to_numpy(layer.embeddings) ** 2, axis=1)) == pytest.approx(
        1.0, rel=0.05
    )


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_close(dtype):
    layer = TokenEmbedding(10, 8)
    expected = layer(ops.arange(10))
    half = TokenEmbedding(10, 8, dtype=dtype)
    half.build()
    half.embeddings.assign(layer.embeddings)
    outputs = half(ops.arange(10))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype.removeprefix("mixed_")
    np.testing.assert_allclose(ops.cast(outputs, "float32"), expected, rtol=0.01, atol=0.01)


def test_round_trip(tmp_path):
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, TokenEmbedding(5, 3)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ids = np.array([[1, 4]])
    np.testing.assert_array_equal(model(ids), loaded(ids))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match=r"expected .* of at least 1, received 0"):
        TokenEmbedding(*sizes)
