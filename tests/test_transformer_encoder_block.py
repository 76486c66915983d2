import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random, randomize
from keras import ops
from transformer_references import (
    BLOCK_ARGUMENTS,
    assert_same_gradients,
    config_round_trip,
    encoder_block,
    pytorch_block,
)

from attention_zoo.layers import TransformerEncoderBlock

B, S, D, H, UNITS = 2, 5, 8, 4, 6
LENGTHS = [5, 3]
MASK = np.arange(S) < np.array(LENGTHS)[:, None]

norms = pytest.mark.parametrize("normalize_first", [False, True], ids=["post-norm", "pre-norm"])


def built(**kwargs):
    block = TransformerEncoderBlock(**{"num_heads": H, "feed_forward_units": UNITS, **kwargs})
    block.build((None, None, D))
    return randomize(block)


@norms
@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation": "gelu", "num_key_value_heads": 2}, {"activation": "swish", "rotary": True}],
    ids=["relu", "gelu, shared heads", "swish, rotary"],
)
def test_equals_numpy_on_each_unpadded_sentence(normalize_first, arguments):
    block, x = built(normalize_first=normalize_first, **arguments), random(B, S, D)
    output, weights = block(x, mask=MASK, return_attention=True)
    assert weights.dtype == "float32"
    for row, length in enumerate(LENGTHS):
        expected, expected_weights = encoder_block(block, x[row, :length])
        np.testing.assert_allclose(output[row, :length], expected, atol=1e-4)
        np.testing.assert_allclose(weights[row, :, :length, :length], expected_weights, atol=1e-5)
        np.testing.assert_array_equal(weights[row, :, length:], np.zeros((H, S - length, S)))
        np.testing.assert_array_equal(weights[row, :, :, length:], np.zeros((H, S, S - length)))


@norms
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_pytorch_with_gradients(normalize_first, activation):
    torch = pytest.importorskip("torch")
    block, x = built(normalize_first=normalize_first, activation=activation), random(B, S, D)
    direction = random(B, S, D, seed=5) * MASK[..., None]

    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = block(inputs, mask=MASK)
        loss = ops.sum(output * direction)
    gradients = tape.gradient(loss, [inputs, *block.trainable_weights])

    other, pairs = pytorch_block(torch, block, D)
    torch_x = torch.from_numpy(x).requires_grad_()
    torch_output = other(torch_x, src_key_padding_mask=torch.from_numpy(~MASK))
    (torch_output * torch.from_numpy(direction)).sum().backward()

    np.testing.assert_allclose(np.array(output)[MASK], torch_output.detach().numpy()[MASK], atol=1e-4)
    np.testing.assert_allclose(gradients[0], torch_x.grad.numpy(), atol=1e-4)
    assert_same_gradients(block.trainable_weights, gradients[1:], pairs)


@norms
def test_padding_changes_nothing(normalize_first):
    block, x = built(normalize_first=normalize_first), random(B, S, D)
    wide = np.pad(x, [(0, 0), (0, 3), (0, 0)], constant_values=9.0)
    output = block(wide, mask=np.pad(MASK, [(0, 0), (0, 3)]))
    np.testing.assert_allclose(output[:, :S][MASK], block(x, mask=MASK)[MASK], atol=1e-5)


@norms
def test_nothing_but_padding_stays_finite(normalize_first):
    block = built(normalize_first=normalize_first)
    x = tf.constant(random(B, S, D))
    with tf.GradientTape() as tape:
        tape.watch(x)
        output, weights = block(x, mask=np.zeros((B, S), bool), return_attention=True)
        loss = ops.sum(ops.sin(output))
    np.testing.assert_array_equal(weights, np.zeros((B, H, S, S)))
    for array in (output, *tape.gradient(loss, [x, *block.trainable_weights])):
        assert np.all(np.isfinite(array))


def test_mask_of_pairs_hides_what_is_false():
    block, x = built(), random(B, S, D)
    pairs = np.tri(S, dtype=bool)[None].repeat(B, axis=0)
    output, weights = block(x, mask=pairs, return_attention=True)
    np.testing.assert_array_equal(np.array(weights) > 0, np.repeat(pairs[:, None], H, axis=1))
    assert getattr(output, "_keras_mask", None) is None  # it is none of positions


def test_mask_of_the_inputs_is_found_and_handed_on():
    block, x = built(), random(B, S, D)
    expected, expected_weights = block(x, mask=MASK, return_attention=True)
    masked = ops.convert_to_tensor(x)
    masked._keras_mask = ops.convert_to_tensor(MASK)
    output, weights = block(masked, return_attention=True)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    np.testing.assert_array_equal(output._keras_mask, MASK)
    assert getattr(weights, "_keras_mask", None) is None


def test_asking_for_attention_changes_nothing():
    rates = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3}
    for training in (False, True):
        outputs = []
        for asked in (False, True):
            keras.utils.set_random_seed(1)
            output = built(**rates)(random(B, S, D), mask=MASK, training=training, return_attention=asked)
            outputs.append(output[0] if asked else output)
        np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_is_active_in_training_only(rate):
    plain, dropping, x = built(), built(**{rate: 0.5}), random(B, S, D)
    rates = {
        "dropout": dropping.residual_dropout.rate,
        "attention_dropout": dropping.self_attention.dropout,
        "activation_dropout": dropping.feed_forward.dropout,
    }
    assert rates == {name: 0.5 if name == rate else 0.0 for name in rates}
    expected = plain(x)
    for training in (None, False):
        np.testing.assert_array_equal(dropping(x, training=training), expected)
    first, second = (np.array(dropping(x, training=True)) for _ in range(2))
    assert np.abs(first - expected).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_residual_dropout_leaves_the_input():
    """With everything dropped, a block that normalizes first adds nothing."""
    block, x = built(normalize_first=True, dropout=1.0), random(B, S, D)
    np.testing.assert_array_equal(block(x, training=True), x)


@norms
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 2e-1), ("mixed_float16", 2e-2)])
def test_half_precision_is_close(normalize_first, policy, tolerance):
    arguments, x = {"normalize_first": normalize_first, "rotary": True}, random(B, S, D)
    full, half = built(**arguments), built(**arguments, dtype=policy)
    for block in (full, half):
        block.set_weights([w / 2 for w in block.get_weights()])
    output, weights = half(x, mask=MASK, return_attention=True)
    expected, expected_weights = full(x, mask=MASK, return_attention=True)
    assert output.dtype == policy.removeprefix("mixed_")
    assert weights.dtype == "float32"
    np.testing.assert_allclose(ops.cast(output, "float32"), expected, atol=tolerance)
    np.testing.assert_allclose(weights, expected_weights, atol=tolerance)


def test_config_round_trip():
    block = TransformerEncoderBlock(**BLOCK_ARGUMENTS, name="reader", dtype="mixed_bfloat16")
    copy = config_round_trip(block, BLOCK_ARGUMENTS)
    copy.build((None, None, D))
    assert [norm.epsilon for norm in (copy.self_attention_norm, copy.feed_forward_norm)] == [1e-3] * 2
    assert (copy.self_attention.rotary, copy.self_attention.num_key_value_heads) == (True, 2)


def test_file_round_trip(tmp_path):
    x, mask = keras.Input((None, D), name="x"), keras.Input((None,), dtype="bool", name="mask")
    block = built(num_key_value_heads=2, rotary=True, normalize_first=True)
    model = keras.Model({"x": x, "mask": mask}, block(x, mask=mask, return_attention=True))
    assert [output.shape for output in model.outputs] == [(None, None, D), (None, H, None, None)]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs = {"x": random(B, S, D), "mask": MASK}
    for before, after in zip(model(inputs), loaded(inputs), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "TransformerEncoderBlock: expected num_heads of at least 1, received 0"),
        ({"feed_forward_units": 0}, "expected units of at least 1, received 0"),
        ({"num_key_value_heads": 3}, "expected num_key_value_heads to divide num_heads, received 3 and 4"),
        ({"num_key_value_heads": 0}, "expected num_key_value_heads to divide num_heads, received 0 and 4"),
        ({"activation": "rely"}, "rely"),
        ({"dropout": 1.5}, "between 0 and 1"),
        ({"activation_dropout": -0.5}, "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerEncoderBlock(**{"num_heads": 4, "feed_forward_units": UNITS, **arguments})


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"width that num_heads=3 divides, received inputs of width 8"):
        TransformerEncoderBlock(3, UNITS)(random(B, S, D))
    with pytest.raises(ValueError, match="even key_dim"):
        TransformerEncoderBlock(8, UNITS, rotary=True)(random(B, S, D))
