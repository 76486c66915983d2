import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random
from keras import ops
from references import decode

from attention_zoo.layers import AdditiveAttention, LuongAttention
from attention_zoo.models.rnn_decoder import RNNDecoder

B, T, S, K = 2, 3, 5, 3
V, E, UNITS, D, R = 11, 3, 4, 5, 6
LENGTHS = [5, 2]
TARGET = np.array([[1, 5, 6], [1, 7, 0]], "int32")

# The three ways in which the context enters the recurrence.
FORMS = {
    "no attention": lambda **kwargs: {"attention": None},
    "previous": lambda **kwargs: {"attention": AdditiveAttention(7, **kwargs), "query_state": "previous"},
    "current": lambda **kwargs: {"attention": LuongAttention("general", **kwargs), "query_state": "current"},
}

forms = pytest.mark.parametrize("form", FORMS)
cells = pytest.mark.parametrize("cell", ["gru", "lstm"])


def example_memory():
    mask = np.arange(S) < np.array(LENGTHS)[:, None]
    return {"values": random(B, S, D), "mask": mask, "summary": random(B, D)}


def make(form, **kwargs):
    dtype = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else {}
    return RNNDecoder(V, E, UNITS, **{"readout_units": R, **FORMS[form](**dtype), **kwargs})


def built(form, **kwargs):
    decoder = make(form, **kwargs)
    decoder.build((None, None), {name: x.shape for name, x in example_memory().items()})
    decoder.set_weights([random(*w.shape, seed=i) / 2 for i, w in enumerate(decoder.get_weights())])
    return decoder


def step_by_step(decoder, targets, memory):
    """Logits (B, K, T, V) and attention (B, K, T, S) of hypotheses (B, K, T), one token at a time."""
    prepared = decoder.prepare(memory)
    state = decoder.initial_state(prepared, targets.shape[1])
    logits, attention = [], []
    for t in range(targets.shape[2]):
        shapes = [tuple(x.shape) for x in tf.nest.flatten(state)]
        assert all(shape[:2] == targets.shape[:2] for shape in shapes)
        step_logits, state, weights = decoder.step(targets[:, :, t], state, prepared)
        assert [tuple(x.shape) for x in tf.nest.flatten(state)] == shapes
        logits.append(step_logits)
        attention.append(weights)
    return np.stack(logits, 2), None if weights is None else np.stack(attention, 2)


def assert_equals_numpy(decoder):
    memory = example_memory()
    logits, attention = decoder(TARGET, memory, return_attention=True)
    assert logits.dtype == "float32"
    for row, length in enumerate(LENGTHS):
        values, summary = memory["values"][row, :length], memory["summary"][row]
        expected, weights = decode(decoder, TARGET[row], values, summary)
        np.testing.assert_allclose(logits[row], expected, atol=2e-5)
        if decoder.attention is None:
            assert attention is None
        else:
            np.testing.assert_allclose(attention[row, :, :length], weights, atol=1e-5)
            np.testing.assert_array_equal(attention[row, :, length:], np.zeros((T, S - length)))


@forms
@cells
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_numpy(form, cell, layers):
    assert_equals_numpy(built(form, cell=cell, layers=layers))


@forms
def test_maxout_and_tied_embeddings_equal_numpy(form):
    decoder = built(form, readout_activation="maxout", tie_embeddings=True, readout_units=E)
    assert decoder.readout.units == 2 * E
    assert_equals_numpy(decoder)


@forms
@cells
@pytest.mark.parametrize("layers", [1, 2])
def test_step_equals_call(form, cell, layers):
    """Three hypotheses per source at once, each the same as if it were alone."""
    decoder, memory = built(form, cell=cell, layers=layers), example_memory()
    targets = np.random.default_rng(0).integers(1, V, size=(B, K, T)).astype("int32")
    logits, attention = step_by_step(decoder, targets, memory)
    for k in range(K):
        expected, weights = decoder(targets[:, k], memory, return_attention=True)
        np.testing.assert_allclose(logits[:, k], expected, atol=1e-5)
        if weights is not None:
            np.testing.assert_allclose(attention[:, k], weights, atol=1e-5)
    alone, _ = step_by_step(decoder, targets[:, :1], memory)
    np.testing.assert_allclose(alone, logits[:, :1], atol=1e-5)


@pytest.mark.parametrize("form", ["previous", "current"])
def test_asking_for_attention_changes_nothing(form):
    decoder, memory = built(form), example_memory()
    logits, attention = decoder(TARGET, memory, return_attention=True)
    np.testing.assert_array_equal(decoder(TARGET, memory), logits)
    assert attention.dtype == "float32"
    np.testing.assert_allclose(np.sum(attention, axis=-1), 1.0, atol=1e-6)


@forms
def test_later_tokens_change_nothing_before_them(form):
    decoder, memory = built(form, layers=2, cell="lstm"), example_memory()
    changed = TARGET.copy()
    changed[:, 1] = [9, 4]
    before, after = np.array(decoder(TARGET, memory)), np.array(decoder(changed, memory))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.all(np.abs(after[:, 1:] - before[:, 1:]).max(axis=-1) > 1e-3)


@forms
def test_padded_memory_changes_nothing(form):
    """Nor does a row with nothing to attend to become anything but finite."""
    decoder, memory = built(form), example_memory()
    wide = {
        "values": np.pad(memory["values"], [(0, 0), (0, 3), (0, 0)], constant_values=9.0),
        "mask": np.pad(memory["mask"], [(0, 0), (0, 3)]),
        "summary": memory["summary"],
    }
    np.testing.assert_allclose(decoder(TARGET, wide), decoder(TARGET, memory), atol=1e-5)
    empty = {**memory, "mask": np.zeros((B, S), bool)}
    assert np.all(np.isfinite(decoder(TARGET, empty)))


def test_tied_embeddings_are_one_matrix():
    tied, apart = (built("previous", readout_units=E, tie_embeddings=tie) for tie in (True, False))
    assert apart.count_params() - tied.count_params() == V * E
    memory = example_memory()
    before = np.array(tied(TARGET, memory))
    embeddings = tied.embedding.embeddings.numpy()
    embeddings[10] += 1.0  # a token that the targets do not contain: only its own logit can change
    tied.embedding.embeddings.assign(embeddings)
    after = np.array(tied(TARGET, memory))
    np.testing.assert_allclose(after[..., :10], before[..., :10], atol=1e-6)
    assert np.all(np.abs(after[..., 10] - before[..., 10]) > 1e-4)


@forms
def test_dropout_is_active_in_training_only(form):
    plain, dropping = built(form, layers=2), built(form, layers=2, dropout=0.5)
    memory = example_memory()
    expected = plain(TARGET, memory)
    for training in (None, False):
        np.testing.assert_array_equal(dropping(TARGET, memory, training=training), expected)
    first, second = (np.array(dropping(TARGET, memory, training=True)) for _ in range(2))
    assert np.abs(first - expected).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_dropout_between_layers_keeps_its_mask_for_a_sentence():
    """Cells that forget everything at once show it: equal tokens give equal logits."""
    decoder = built("no attention", layers=2, dropout=0.5)
    for dropout in (decoder.embedding_dropout, decoder.readout_dropout):
        dropout.rate = 0.0
    for cell in decoder.cells:
        cell.recurrent_kernel.assign(np.zeros((UNITS, 3 * UNITS)))
    for projection in (decoder.token_projection, *decoder.layer_projections):
        bias = projection.bias.numpy()
        bias[:UNITS] = -50.0  # the update gate
        projection.bias.assign(bias)
    target = np.full((B, 6), 5)
    logits = np.array(decoder(target, example_memory(), training=True))
    np.testing.assert_allclose(logits, logits[:, :1].repeat(6, axis=1), atol=1e-5)
    assert np.abs(logits - decoder(target, example_memory())).max() > 1e-2


@pytest.mark.parametrize(
    ("form", "cell", "layers", "xla"),
    [
        ("no attention", "gru", 1, True),
        ("previous", "gru", 1, True),
        ("current", "lstm", 2, True),
        ("previous", "lstm", 1, False),
    ],
)
def test_compiled_equals_eager_with_unknown_shapes(form, cell, layers, xla):
    """Gradients too, and with dropout, whose masks continue the same sequence."""
    decoder = built(form, cell=cell, layers=layers, dropout=0.3)
    generators = [v for v in decoder.non_trainable_variables if "seed" in v.path]
    assert len(generators) == 3

    def run(target, memory):
        with tf.GradientTape() as tape:
            tape.watch([memory["values"], memory["summary"]])
            logits, attention = decoder(target, memory, training=True, return_attention=True)
            loss = ops.mean(ops.sin(logits))
        inputs = [memory["values"], memory["summary"]][decoder.attention is None :]
        gradients = tape.gradient(loss, inputs + decoder.trainable_weights)
        return logits, attention, [tf.convert_to_tensor(g) for g in gradients]

    memory = {name: tf.constant(x) for name, x in example_memory().items()}
    before = [v.numpy() for v in generators]
    eager = run(tf.constant(TARGET), memory)
    for variable, value in zip(generators, before, strict=True):
        variable.assign(value)
    signature = [
        tf.TensorSpec((None, None), tf.int32),
        {
            "values": tf.TensorSpec((None, None, D)),
            "mask": tf.TensorSpec((None, None), tf.bool),
            "summary": tf.TensorSpec((None, D)),
        },
    ]
    compiled = tf.function(run, input_signature=signature, jit_compile=xla)(tf.constant(TARGET), memory)
    for x, y in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        if y is None:
            assert x is None
        else:
            np.testing.assert_allclose(x, y, atol=1e-5)


@forms
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 6e-2), ("mixed_float16", 8e-3)])
def test_half_precision_is_close(form, policy, tolerance):
    full, half, memory = built(form), built(form, dtype=policy), example_memory()
    expected, weights = full(TARGET, memory, return_attention=True)
    logits, half_weights = half(TARGET, memory, return_attention=True)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, expected, atol=tolerance)
    if weights is not None:
        assert half_weights.dtype == "float32"
        np.testing.assert_allclose(half_weights, weights, atol=tolerance)
    stepped, _ = step_by_step(half, TARGET[:, None], memory)
    np.testing.assert_allclose(stepped[:, 0], logits, atol=tolerance / 2)
    assert all(
        x.dtype == half.compute_dtype for x in tf.nest.flatten(half.initial_state(half.prepare(memory)))
    )


def test_output_bias_keeps_its_precision():
    """It is added in float32, in a call as in a step; 1.001 would be 1 in bfloat16."""
    decoder, memory = built("previous", dtype="mixed_bfloat16"), example_memory()
    decoder.output_kernel.assign(np.zeros((V, R)))
    decoder.output_bias.assign(np.full(V, 1.001))
    stepped, _ = step_by_step(decoder, TARGET[:, None], memory)
    for logits in (decoder(TARGET, memory), stepped):
        np.testing.assert_array_equal(logits, np.full(logits.shape, 1.001, "float32"))


@pytest.mark.parametrize(
    "attention",
    [LuongAttention("concat", units=3), AdditiveAttention(3, normalize=True), LuongAttention("dot")],
)
@pytest.mark.parametrize("query_state", ["previous", "current"])
def test_every_attention_goes_with_every_form(attention, query_state):
    attention = type(attention).from_config(attention.get_config())
    memory = {**example_memory(), "values": random(B, S, UNITS)}
    decoder = RNNDecoder(V, E, UNITS, attention=attention, query_state=query_state)
    logits, weights = decoder(TARGET, memory, return_attention=True)
    assert logits.shape == (B, T, V)
    np.testing.assert_array_equal(np.array(weights) > 0, np.repeat(memory["mask"][:, None], T, axis=1))
    stepped, _ = step_by_step(decoder, TARGET[:, None], memory)
    np.testing.assert_allclose(stepped[:, 0], logits, atol=1e-5)


def test_config_round_trip():
    arguments = {
        "vocabulary_size": 12,
        "embedding_dim": 3,
        "units": 5,
        "query_state": "current",
        "layers": 2,
        "cell": "lstm",
        "readout_units": 3,
        "readout_activation": "maxout",
        "tie_embeddings": True,
        "dropout": 0.25,
    }
    attention = LuongAttention("concat", units=7)
    decoder = RNNDecoder(**arguments, attention=attention, name="writer", dtype="mixed_bfloat16")
    copy = RNNDecoder.from_config(decoder.get_config())
    assert copy.get_config() == decoder.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments
    assert copy.attention.get_config() == attention.get_config()
    assert copy.attention is not attention
    assert RNNDecoder.from_config(make("no attention").get_config()).attention is None


@pytest.mark.parametrize("form", ["previous", "current"])
def test_file_round_trip(form, tmp_path):
    """Every weight comes back, those of the nested attention layer among them."""
    memory = example_memory()
    inputs = {name: keras.Input(x.shape[1:], dtype=x.dtype.name, name=name) for name, x in memory.items()}
    target = keras.Input((None,), dtype="int32", name="target")
    decoder = built(form, layers=2)
    model = keras.Model({"target": target, **inputs}, decoder(target, inputs))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")

    expected = model({"target": TARGET, **memory})
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.get_weights()) == len(decoder.get_weights())
    np.testing.assert_array_equal(loaded({"target": TARGET, **memory}), expected)
    loaded.set_weights([np.zeros_like(w) for w in loaded.get_weights()])
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded({"target": TARGET, **memory}), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_state": "next"}, "expected query_state 'previous' or 'current', received 'next'"),
        ({"readout_activation": "relu"}, "expected readout_activation 'tanh' or 'maxout', received 'relu'"),
        ({"cell": "rnn"}, r"expected one of \['gru', 'lstm'\], received 'rnn'"),
        ({"tie_embeddings": True, "readout_units": 8}, "tie_embeddings=True, received 8 and 3"),
        ({"attention": AdditiveAttention(3, dropout=0.1)}, "with dropout 0, received 0.1"),
        (
            {"attention": keras.layers.AdditiveAttention()},
            "expected an attention layer of attention_zoo.layers",
        ),
        ({"dropout": 1.5}, "between 0 and 1"),
        *(
            ({name: 0}, f"RNNDecoder: expected {name} of at least 1, received 0")
            for name in ("vocabulary_size", "embedding_dim", "units", "layers", "readout_units")
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RNNDecoder(**{"vocabulary_size": V, "embedding_dim": E, "units": UNITS, **arguments})


def test_widths_that_do_not_fit_are_refused():
    decoder = RNNDecoder(V, E, UNITS, attention=LuongAttention("dot"))
    with pytest.raises(ValueError, match="same width, received 4 and 5"):
        decoder(TARGET, example_memory())
