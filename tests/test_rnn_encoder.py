import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import randomize
from keras import ops
from references import encode

from attention_zoo.models.rnn_encoder import RNNEncoder

V, E, UNITS = 11, 3, 4
IDS = np.array([[5, 6, 7, 8, 2], [9, 2, 0, 0, 0]])
LENGTHS = [5, 2]


def built(**kwargs):
    encoder = RNNEncoder(V, E, UNITS, **kwargs)
    encoder.build()
    return randomize(encoder)


variants = pytest.mark.parametrize("cell", ["gru", "lstm"])
directions = pytest.mark.parametrize("bidirectional", [True, False])


@variants
@directions
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_numpy_on_each_unpadded_sentence(cell, bidirectional, layers):
    encoder = built(cell=cell, bidirectional=bidirectional, layers=layers)
    memory = encoder(IDS)
    np.testing.assert_array_equal(memory["mask"], IDS != 0)
    assert memory["values"].shape == (2, 5, encoder.output_dim)
    for row, length in enumerate(LENGTHS):
        values, summary = encode(encoder, IDS[row, :length])
        np.testing.assert_allclose(memory["values"][row, :length], values, atol=1e-5)
        np.testing.assert_allclose(memory["summary"][row], summary, atol=1e-5)


def test_padding_changes_nothing():
    encoder = built(layers=2)
    memory, wide = encoder(IDS), encoder(np.pad(IDS, [(0, 0), (0, 4)]))
    np.testing.assert_array_equal(wide["values"][:, :5], memory["values"])
    np.testing.assert_array_equal(wide["values"][:, 5:], np.zeros((2, 4, 2 * UNITS)))
    np.testing.assert_array_equal(wide["summary"], memory["summary"])


def test_rows_that_only_fill_the_batch_stay_finite():
    memory = built(cell="lstm")(np.array([[0, 0, 0], [5, 2, 0]]))
    np.testing.assert_array_equal(memory["values"][0], np.zeros((3, 2 * UNITS)))
    np.testing.assert_array_equal(memory["summary"][0], np.zeros(2 * UNITS))


def test_dropout_is_active_in_training_only():
    plain, dropping = built(layers=2), built(layers=2, dropout=0.5)
    for training in (None, False):
        memory = dropping(IDS, training=training)
        np.testing.assert_array_equal(memory["values"], plain(IDS)["values"])
    memory = dropping(IDS, training=True)
    real = np.array(memory["values"])[IDS != 0]
    assert 0.2 < np.mean(real == 0) < 0.8
    # The embeddings are dropped too: the state of the last layer, before the last dropout, differs.
    assert np.abs(memory["summary"] - plain(IDS)["summary"]).max() > 1e-2


@pytest.mark.parametrize("xla", [False, True])
def test_compiled_equals_eager_with_unknown_shapes(xla):
    """With dropout, whose masks continue the same sequence."""
    encoder = built(layers=2, cell="lstm", dropout=0.3) if xla else built(dropout=0.3)
    generators = [v for v in encoder.non_trainable_variables if "seed" in v.path]
    assert len(generators) == encoder.layers + 1

    def run(ids):
        with tf.GradientTape() as tape:
            memory = encoder(ids, training=True)
            loss = ops.sum(ops.sin(memory["values"])) + ops.sum(memory["summary"])
        gradients = tape.gradient(loss, encoder.trainable_weights)
        return memory, [tf.convert_to_tensor(g) for g in gradients]

    before = [v.numpy() for v in generators]
    eager = run(tf.constant(IDS, "int32"))
    for variable, value in zip(generators, before, strict=True):
        variable.assign(value)
    signature = [tf.TensorSpec((None, None), tf.int32)]
    compiled = tf.function(run, input_signature=signature, jit_compile=xla)(tf.constant(IDS, "int32"))
    for x, y in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 5e-2), ("mixed_float16", 5e-3)])
def test_half_precision_is_close(policy, tolerance):
    full, half = built(layers=2), built(layers=2, dtype=policy)
    expected, memory = full(IDS), half(IDS)
    for name in ("values", "summary"):
        assert memory[name].dtype == policy.removeprefix("mixed_")
        np.testing.assert_allclose(ops.cast(memory[name], "float32"), expected[name], atol=tolerance)
    assert memory["mask"].dtype == "bool"


def test_config_round_trip():
    arguments = {
        "vocabulary_size": 12,
        "embedding_dim": 3,
        "units": 5,
        "layers": 2,
        "cell": "lstm",
        "bidirectional": False,
        "dropout": 0.25,
    }
    encoder = RNNEncoder(**arguments, name="reader", dtype="mixed_bfloat16")
    copy = RNNEncoder.from_config(encoder.get_config())
    assert copy.get_config() == encoder.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments
    assert copy.output_dim == 5


def test_file_round_trip(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, built(layers=2)(ids))
    assert {name: x.shape for name, x in model.output.items()} == {
        "values": (None, None, 2 * UNITS),
        "mask": (None, None),
        "summary": (None, 2 * UNITS),
    }
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for x, y in zip(tf.nest.flatten(loaded(IDS)), tf.nest.flatten(model(IDS)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["vocabulary_size", "embedding_dim", "units", "layers"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"RNNEncoder: expected {name} of at least 1, received 0"):
        RNNEncoder(**{"vocabulary_size": V, name: 0})


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"expected one of \['gru', 'lstm'\], received 'rnn'"):
        RNNEncoder(V, cell="rnn")
    with pytest.raises(ValueError, match="between 0 and 1"):
        RNNEncoder(V, dropout=1.5)
