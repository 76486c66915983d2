import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random
from keras import ops
from transformer_references import (
    STACK_ARGUMENTS,
    assert_same_gradients,
    config_round_trip,
    draw_weights,
    encode,
    pytorch_stack,
)

from attention_zoo.models.transformer_encoder import TransformerEncoder

V, D, N, H = 11, 8, 2, 2
IDS = np.array([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]], "int32")
LENGTHS = [5, 3]
SIZES = {"vocabulary_size": V, "layers": N, "units": D, "feed_forward_units": 12, "num_heads": H}
VARIANTS = {
    "sinusoidal": {},
    "halves": {"position_order": "halves", "max_wavelength": 300.0},
    "sinusoidal, pre-norm": {"normalize_first": True, "activation": "gelu"},
    "learned": {"positions": "learned", "max_positions": 8, "scale_embeddings": False},
    "learned, pre-norm": {"positions": "learned", "max_positions": 8, "normalize_first": True},
    "rotary": {"positions": "rotary", "activation": "swish", "num_key_value_heads": 1},
    "rotary, pre-norm": {"positions": "rotary", "normalize_first": True},
}

variants = pytest.mark.parametrize("variant", VARIANTS)


def built(variant="sinusoidal", **kwargs):
    encoder = TransformerEncoder(**{**SIZES, "dropout": 0.0, **VARIANTS[variant], **kwargs})
    encoder.build()
    return draw_weights(encoder)


@variants
def test_equals_numpy_on_each_unpadded_sentence(variant):
    encoder = built(variant)
    memory = encoder(IDS, return_attention=True)
    np.testing.assert_array_equal(memory["mask"], IDS != 0)
    assert memory["attention"].shape == (2, N, H, 5, 5)
    assert memory["attention"].dtype == "float32"
    for row, length in enumerate(LENGTHS):
        values, summary, attention = encode(encoder, IDS[row, :length])
        np.testing.assert_allclose(memory["values"][row, :length], values, atol=2e-5)
        np.testing.assert_allclose(memory["summary"][row], summary, atol=2e-5)
        weights = np.array(memory["attention"][row])
        np.testing.assert_allclose(weights[:, :, :length, :length], attention, atol=1e-5)
        weights[:, :, :length, :length] = 0
        np.testing.assert_array_equal(weights, np.zeros_like(weights))


@pytest.mark.parametrize("normalize_first", [False, True])
def test_equals_pytorch_with_gradients(normalize_first):
    torch = pytest.importorskip("torch")
    encoder = built(normalize_first=normalize_first, activation="gelu")
    direction = random(*IDS.shape, D) * (IDS != 0)[..., None]
    with tf.GradientTape() as tape:
        values = encoder(IDS)["values"]
        loss = ops.sum(values * direction)
    gradients = tape.gradient(loss, encoder.trainable_weights)

    other, embed, pairs = pytorch_stack(torch, encoder)
    torch_values = other(embed(IDS), src_key_padding_mask=torch.from_numpy(IDS == 0))
    (torch_values * torch.from_numpy(direction)).sum().backward()
    real = IDS != 0
    np.testing.assert_allclose(np.array(values)[real], torch_values.detach().numpy()[real], atol=1e-4)
    assert_same_gradients(encoder.trainable_weights, map(tf.convert_to_tensor, gradients), pairs)


@variants
def test_padding_changes_nothing(variant):
    encoder = built(variant)
    memory = encoder(IDS, return_attention=True)
    wide = encoder(np.pad(IDS, [(0, 0), (0, 3)]), return_attention=True)
    real = IDS != 0
    np.testing.assert_allclose(wide["values"][:, :5][real], memory["values"][real], atol=1e-5)
    np.testing.assert_allclose(wide["summary"], memory["summary"], atol=1e-5)
    np.testing.assert_allclose(wide["attention"][..., :5, :5], memory["attention"], atol=1e-5)


@variants
def test_rows_that_only_fill_the_batch_stay_finite(variant):
    encoder, ids = built(variant), np.array([[0, 0, 0], [5, 2, 0]])
    with tf.GradientTape() as tape:
        memory = encoder(ids)
        loss = ops.sum(ops.sin(memory["values"])) + ops.sum(memory["summary"])
    np.testing.assert_array_equal(memory["summary"][0], np.zeros(D))
    for array in (memory["values"], *tape.gradient(loss, encoder.trainable_weights)):
        assert np.all(np.isfinite(tf.convert_to_tensor(array)))


@variants
def test_order_matters(variant):
    """Self-attention alone would give reversed sentences reversed values."""
    encoder = built(variant)
    forward, backward = encoder(IDS[:1])["values"], encoder(IDS[:1, ::-1])["values"]
    assert np.abs(forward - backward[:, ::-1]).max() > 1e-2


def test_asking_for_attention_changes_nothing():
    encoder = built()
    assert set(encoder(IDS)) == {"values", "mask", "summary"}
    asked = encoder(IDS, return_attention=True)
    for name, array in encoder(IDS).items():
        np.testing.assert_allclose(asked[name], array, atol=1e-6)


def test_dropouts_go_where_they_belong():
    rates = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}
    encoder = built(**rates)
    assert encoder.embedding_dropout.rate == 0.1
    for block in encoder.blocks:
        assert {name: getattr(block, name) for name in rates} == rates


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_dropout_is_active_in_training_only(rate):
    plain, dropping = built(), built(**{rate: 0.5})
    expected = plain(IDS)["values"]
    for training in (None, False):
        np.testing.assert_array_equal(dropping(IDS, training=training)["values"], expected)
    first, second = (np.array(dropping(IDS, training=True)["values"]) for _ in range(2))
    assert np.abs(first - expected).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


@variants
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 1e-1), ("mixed_float16", 1e-2)])
def test_half_precision_is_close(variant, policy, tolerance):
    full, half = built(variant), built(variant, dtype=policy)
    expected, memory = full(IDS, return_attention=True), half(IDS, return_attention=True)
    for name in ("values", "summary"):
        assert memory[name].dtype == policy.removeprefix("mixed_")
        np.testing.assert_allclose(ops.cast(memory[name], "float32"), expected[name], atol=tolerance)
    assert memory["attention"].dtype == "float32"
    np.testing.assert_allclose(memory["attention"], expected["attention"], atol=tolerance)


def test_config_round_trip():
    encoder = TransformerEncoder(**STACK_ARGUMENTS, name="reader", dtype="mixed_bfloat16")
    config_round_trip(encoder, STACK_ARGUMENTS)
    arguments = {**SIZES, **VARIANTS["halves"]}
    config_round_trip(TransformerEncoder(**arguments), arguments)


@pytest.mark.parametrize("variant", ["halves", "learned, pre-norm", "rotary, pre-norm"])
def test_file_round_trip(variant, tmp_path):
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, built(variant)(ids, return_attention=True))
    assert {name: x.shape for name, x in model.output.items()} == {
        "values": (None, None, D),
        "mask": (None, None),
        "summary": (None, D),
        "attention": (None, N, H, None, None),
    }
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for x, y in zip(tf.nest.flatten(loaded(IDS)), tf.nest.flatten(model(IDS)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_embeddings_and_positions_start_with_similar_variance():
    encoder = TransformerEncoder(1000, units=64, num_heads=2, layers=1)
    encoder.build()
    np.testing.assert_allclose(np.var(encoder.embedding(np.arange(1000))), 1.0, rtol=0.1)


@pytest.mark.parametrize("name", ["vocabulary_size", "layers", "units", "feed_forward_units", "num_heads"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"TransformerEncoder: expected {name} of at least 1, received 0"):
        TransformerEncoder(**{**SIZES, name: 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "expected num_heads to divide units, received 3 and 8"),
        ({"positions": "random"}, "expected positions among .*, received 'random'"),
        ({"positions": "learned"}, 'expected max_positions with positions="learned"'),
        ({"max_positions": 9}, "and with no other, received max_positions=9 and positions='sinusoidal'"),
        ({"positions": "learned", "max_positions": 0}, "max_positions of at least 1, received 0"),
        ({"positions": "rotary", "num_heads": 8}, 'even units / num_heads with positions="rotary"'),
        ({"num_key_value_heads": 3}, "expected num_key_value_heads to divide num_heads, received 3 and 2"),
        (
            {"positions": "rotary", "position_order": "halves"},
            "position_order and max_wavelength with .* only, received 'halves' and 10000.0 with .*'rotary'",
        ),
        ({"position_order": "random"}, 'the order "interleaved" or "halves", received \'random\''),
        ({"dropout": 1.5}, "between 0 and 1"),
        ({"activation": "rely"}, "rely"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerEncoder(**{**SIZES, **arguments})


def test_sentence_longer_than_the_learned_positions_is_refused():
    encoder = built("learned")
    assert encoder(np.ones((1, 8), "int32"))["values"].shape == (1, 8, D)
    with pytest.raises(ValueError, match="expected at most 8 positions, received 9"):
        encoder(np.ones((1, 9), "int32"))
