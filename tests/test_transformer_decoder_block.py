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
    decoder_block,
    pytorch_block,
)

from attention_zoo.layers import TransformerDecoderBlock

B, T, S, K, D, DM, H, UNITS = 2, 4, 5, 3, 8, 6, 4, 6
LENGTHS = [5, 3]
MASK = np.arange(S) < np.array(LENGTHS)[:, None]  # of the memory
X_MASK = np.arange(T) < np.array([4, 2])[:, None]

norms = pytest.mark.parametrize("normalize_first", [False, True], ids=["post-norm", "pre-norm"])
VARIANTS = [
    {},
    {"activation": "gelu", "num_key_value_heads": 2, "normalize_first": True},
    {"activation": "swish", "rotary": True},
    {"rotary": True, "num_key_value_heads": 1, "normalize_first": True},
]
variants = pytest.mark.parametrize(
    "arguments", VARIANTS, ids=["relu", "gelu, shared heads", "swish, rotary", "rotary, one key head"]
)


def built(memory_dim=DM, **kwargs):
    block = TransformerDecoderBlock(**{"num_heads": H, "feed_forward_units": UNITS, **kwargs})
    block.build((None, None, D), (None, None, memory_dim))
    return randomize(block)


def inputs():
    return random(B, T, D), random(B, S, DM)


@variants
def test_equals_numpy(arguments):
    block, (x, memory) = built(**arguments), inputs()
    output, weights = block(x, memory, memory_mask=MASK, return_attention=True)
    assert {name: (w.shape, w.dtype) for name, w in weights.items()} == {
        "self": ((B, H, T, T), "float32"),
        "cross": ((B, H, T, S), "float32"),
    }
    for row, length in enumerate(LENGTHS):
        expected, own, cross = decoder_block(block, x[row], memory[row, :length])
        np.testing.assert_allclose(output[row], expected, atol=1e-4)
        np.testing.assert_allclose(weights["self"][row], own, atol=1e-5)
        np.testing.assert_allclose(weights["cross"][row, :, :, :length], cross, atol=1e-5)
        np.testing.assert_array_equal(weights["cross"][row, :, :, length:], np.zeros((H, T, S - length)))


@norms
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_pytorch_with_gradients(normalize_first, activation):
    torch = pytest.importorskip("torch")
    block = built(
        memory_dim=D, normalize_first=normalize_first, activation=activation
    )  # PyTorch's has one width
    x, memory = random(B, T, D), random(B, S, D)
    direction = random(B, T, D, seed=5) * X_MASK[..., None]

    tensors = [tf.constant(x), tf.constant(memory)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = block(*tensors, memory_mask=MASK, x_mask=X_MASK)
        loss = ops.sum(output * direction)
    gradients = tape.gradient(loss, [*tensors, *block.trainable_weights])

    other, pairs = pytorch_block(torch, block, D)
    torch_x, torch_memory = (torch.from_numpy(array).requires_grad_() for array in (x, memory))
    torch_output = other(
        torch_x,
        torch_memory,
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=torch.from_numpy(~X_MASK),
        memory_key_padding_mask=torch.from_numpy(~MASK),
    )
    (torch_output * torch.from_numpy(direction)).sum().backward()

    np.testing.assert_allclose(np.array(output)[X_MASK], torch_output.detach().numpy()[X_MASK], atol=1e-4)
    np.testing.assert_allclose(gradients[0], torch_x.grad.numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(gradients[1], torch_memory.grad.numpy(), atol=1e-4, rtol=1e-4)
    assert_same_gradients(block.trainable_weights, gradients[2:], pairs)


@variants
@pytest.mark.parametrize("together", [False, True])
def test_step_equals_call(arguments, together):
    """Three hypotheses per memory, which is neither repeated nor projected again; with one cache or three."""
    block, memory = built(**arguments), random(B, S, DM)
    xs = random(B, K, T, D)
    prepared = block.prepare(memory)
    cache = block.empty_cache(B, T + 2, K) if together else block.empty_cache(B * K, T + 2)
    assert all(len(x) == B for x in tf.nest.flatten(prepared))
    # Nobody moves: each sees what it wrote itself.
    origin = np.tile(np.arange(K)[:, None], (B, 1, T + 2)) if together else None
    outputs, own, cross = [], [], []
    for t in range(T):
        x = xs[:, :, t].reshape(B * K, 1, D)
        output, weights, cache = block.step(x, cache, t, prepared, MASK, hypotheses=K, origin=origin)
        assert output.shape == (B * K, 1, D)
        outputs.append(np.reshape(output, (B, K, D)))
        own.append(np.reshape(weights["self"], (B, K, H, T + 2)))
        cross.append(np.transpose(weights["cross"], (0, 2, 1, 3)))  # (B, K, H, S)
    for k in range(K):
        expected, weights = block(xs[:, k], memory, memory_mask=MASK, return_attention=True)
        for t in range(T):
            np.testing.assert_allclose(outputs[t][:, k], expected[:, t], atol=1e-4)
            np.testing.assert_allclose(own[t][:, k, :, :T], weights["self"][:, :, t], atol=1e-5)
            np.testing.assert_array_equal(own[t][:, k, :, t + 1 :], np.zeros((B, H, T + 1 - t)))
            np.testing.assert_allclose(cross[t][:, k], weights["cross"][:, :, t], atol=1e-5)


@variants
def test_later_positions_change_nothing_before_them(arguments):
    block, (x, memory) = built(**arguments), inputs()
    before, weights = block(x, memory, return_attention=True)
    np.testing.assert_array_equal(np.triu(weights["self"], 1), np.zeros((B, H, T, T)))
    x[:, 2] *= -1.0
    after = np.array(block(x, memory))
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert np.all(np.abs(after[:, 2:] - before[:, 2:]).max(axis=-1) > 1e-3)


@norms
def test_padding_changes_nothing(normalize_first):
    block, (x, memory) = built(normalize_first=normalize_first), inputs()
    wide = np.pad(memory, [(0, 0), (0, 3), (0, 0)], constant_values=9.0)
    expected = block(x, memory, memory_mask=MASK)
    output = block(x, wide, memory_mask=np.pad(MASK, [(0, 0), (0, 3)]))
    np.testing.assert_allclose(output, expected, atol=1e-5)
    # Behind the target it needs no mask, and before the target it needs one.
    behind = np.pad(x, [(0, 0), (0, 3), (0, 0)], constant_values=9.0)
    np.testing.assert_allclose(block(behind, memory, memory_mask=MASK)[:, :T], expected, atol=1e-5)
    before = np.pad(x, [(0, 0), (3, 0), (0, 0)], constant_values=9.0)
    real = np.arange(T + 3)[None].repeat(B, axis=0) >= 3
    output = block(before, memory, memory_mask=MASK, x_mask=real)
    np.testing.assert_allclose(output[:, 3:], expected, atol=1e-5)


@norms
def test_nothing_to_attend_to_stays_finite(normalize_first):
    block = built(normalize_first=normalize_first)
    x, memory = (tf.constant(array) for array in inputs())
    with tf.GradientTape() as tape:
        tape.watch([x, memory])
        output, weights = block(x, memory, memory_mask=np.zeros((B, S), bool), return_attention=True)
        loss = ops.sum(ops.sin(output))
    np.testing.assert_array_equal(weights["cross"], np.zeros((B, H, T, S)))
    gradients = tape.gradient(loss, [x, memory, *block.trainable_weights])
    np.testing.assert_array_equal(gradients[1], np.zeros((B, S, DM)))
    for array in (output, *gradients):
        assert np.all(np.isfinite(array))


def test_memory_mask_may_differ_by_position():
    block, (x, memory) = built(), inputs()
    pairs = np.tri(T, S, dtype=bool)[None].repeat(B, axis=0)
    _, weights = block(x, memory, memory_mask=pairs, return_attention=True)
    np.testing.assert_array_equal(np.array(weights["cross"]) > 0, np.repeat(pairs[:, None], H, axis=1))


def test_masks_of_the_inputs_are_found_and_handed_on():
    block, (x, memory) = built(), inputs()
    expected, expected_weights = block(x, memory, memory_mask=MASK, x_mask=X_MASK, return_attention=True)
    x, memory = ops.convert_to_tensor(x), ops.convert_to_tensor(memory)
    x._keras_mask, memory._keras_mask = ops.convert_to_tensor(X_MASK), ops.convert_to_tensor(MASK)
    output, weights = block(x, memory, return_attention=True)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    for name in ("self", "cross"):
        np.testing.assert_allclose(weights[name], expected_weights[name], atol=1e-6)
        assert getattr(weights[name], "_keras_mask", None) is None
    np.testing.assert_array_equal(np.array(weights["cross"]).any(axis=(1, 3)), X_MASK)
    np.testing.assert_array_equal(output._keras_mask, X_MASK)


def test_asking_for_attention_changes_nothing():
    rates = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3}
    for training in (False, True):
        outputs = []
        for asked in (False, True):
            keras.utils.set_random_seed(1)
            output = built(**rates)(*inputs(), memory_mask=MASK, training=training, return_attention=asked)
            outputs.append(output[0] if asked else output)
        np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_is_active_in_training_only(rate):
    plain, dropping, (x, memory) = built(), built(**{rate: 0.5}), inputs()
    rates = {
        "dropout": dropping.residual_dropout.rate,
        "attention_dropout": dropping.cross_attention.dropout,
        "activation_dropout": dropping.feed_forward.dropout,
    }
    assert rates == {name: 0.5 if name == rate else 0.0 for name in rates}
    expected = plain(x, memory)
    for training in (None, False):
        np.testing.assert_array_equal(dropping(x, memory, training=training), expected)
    first, second = (np.array(dropping(x, memory, training=True)) for _ in range(2))
    assert np.abs(first - expected).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2
    cache = dropping.empty_cache(B, T)
    output, _, _ = dropping.step(x[:, :1], cache, 0, dropping.prepare(memory))
    np.testing.assert_allclose(output, expected[:, :1], atol=1e-5)


def test_config_round_trip():
    block = TransformerDecoderBlock(**BLOCK_ARGUMENTS, name="writer", dtype="mixed_bfloat16")
    copy = config_round_trip(block, BLOCK_ARGUMENTS)
    copy.build((None, None, D), (None, None, DM))
    assert copy.cross_attention_norm.epsilon == 1e-3
    assert (copy.self_attention.rotary, copy.cross_attention.rotary) == (True, False)
    assert copy.cross_attention.num_key_value_heads == 2


def test_file_round_trip(tmp_path):
    tensors = {
        "x": keras.Input((None, D), name="x"),
        "memory": keras.Input((None, DM), name="memory"),
        "memory_mask": keras.Input((None,), dtype="bool", name="memory_mask"),
    }
    block = built(num_key_value_heads=2, normalize_first=True)
    model = keras.Model(tensors, block(**tensors, return_attention=True))
    output, weights = model.output
    assert output.shape == (None, None, D)
    assert {name: x.shape for name, x in weights.items()} == dict.fromkeys(
        ("self", "cross"), (None, H, None, None)
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    arrays = dict(zip(tensors, (*inputs(), MASK), strict=True))
    pairs = zip(tf.nest.flatten(model(arrays)), tf.nest.flatten(loaded(arrays)), strict=True)
    for before, after in pairs:
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "TransformerDecoderBlock: expected num_heads of at least 1, received 0"),
        ({"feed_forward_units": 0}, "expected units of at least 1, received 0"),
        ({"num_key_value_heads": 3}, "expected num_key_value_heads to divide num_heads, received 3 and 4"),
        ({"attention_dropout": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerDecoderBlock(**{"num_heads": 4, "feed_forward_units": UNITS, **arguments}).build(
            (None, None, D), (None, None, DM)
        )


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"width that num_heads=3 divides, received inputs of width 8"):
        TransformerDecoderBlock(3, UNITS)(*inputs())
