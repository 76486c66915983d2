"""Self-attention over feature maps, against loops over positions in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random, randomize
from keras import ops
from references import softmax

from attention_zoo.layers.conv_self_attention import ConvSelfAttention

B, H, W, C = 2, 3, 5, 6
MASK = np.array([[[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], [[1] * W] * H], bool)


def built(**kwargs):
    layer = ConvSelfAttention(**{"key_dim": 3, "value_dim": 4, **kwargs})
    layer.build((None, None, None, C))
    return randomize(layer)


def features(height=H, width=W):
    return random(B, height, width, C)


def reference(layer, x, mask=None):
    """Output and weights, image by image and position by position."""
    mask = np.ones(x.shape[:3], bool) if mask is None else mask
    weight = {w.name: w.numpy().astype("float64") for w in layer.weights}
    size = layer.downsample

    def project(z, name):
        return z @ weight[f"{name}_kernel"] + weight.get(f"{name}_bias", 0.0)

    outputs, rows = [], []
    for image, real in zip(x.astype("float64"), mask, strict=True):
        keys, values = [], []  # None for a window with nothing in it
        for top in range(0, image.shape[0], size):
            for left in range(0, image.shape[1], size):
                window = np.s_[top : top + size, left : left + size]
                seen = image[window][real[window]]
                keys.append(project(seen, "key").max(0) if len(seen) else None)
                values.append(project(seen, "value").max(0) if len(seen) else None)
        there = [s for s, key in enumerate(keys) if key is not None]
        output = np.zeros_like(image)
        for i, j in np.ndindex(*image.shape[:2]):
            query = project(image[i, j], "query")
            weights, average = np.zeros(len(keys)), np.zeros(weight["value_kernel"].shape[1])
            if there:
                scores = np.array([query @ keys[s] for s in there])
                weights[there] = softmax(scores / np.sqrt(len(query)) if layer.scale else scores)
                average = sum(weights[s] * values[s] for s in there)
            rows.append(weights)
            output[i, j] = image[i, j] + weight["gamma"] * project(average, "output")
        outputs.append(output)
    return np.array(outputs), np.array(rows).reshape(len(x), -1, len(keys))


def gradients(layer, x, mask=None, training=None):
    """Output, weights, and the gradients for the input and for each weight, by name."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, weights = layer(x, mask=mask, return_attention_scores=True, training=training)
        loss = tf.reduce_sum(tf.sin(tf.cast(y, "float32")))
    found = tape.gradient(loss, [x, *layer.trainable_weights])
    return y, weights, dict(zip(["x", *(w.name for w in layer.trainable_weights)], found, strict=True))


def test_by_hand():
    # Scores are log 3 x_i x_j. The position of 1 sees itself three times as much as that of 0.
    layer = ConvSelfAttention(key_dim=1, value_dim=1)
    layer.build((None, None, None, 1))
    weights = {
        "query_kernel": np.log(3.0),
        "key_kernel": 1,
        "value_kernel": 1,
        "output_kernel": 1,
        "gamma": 2,
    }
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, weights[weight.name]))
    y, attention = layer(np.array([[[[1.0], [0.0]]]]), return_attention_scores=True)
    np.testing.assert_allclose(attention, [[[0.75, 0.25], [0.5, 0.5]]], atol=1e-6)
    np.testing.assert_allclose(y, [[[[2.5], [1.0]]]], atol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"scale": True, "use_bias": True}, {"downsample": 2, "use_bias": True}, {"downsample": 3}],
    ids=str,
)
def test_equals_numpy(arguments, mask):
    layer = built(**arguments)
    y, weights = layer(features(), mask=mask, return_attention_scores=True)
    expected, expected_weights = reference(layer, features(), mask)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_windows_of_a_divisible_map_are_those_of_max_pooling():
    """As in the authors' code."""
    layer, x = built(downsample=2), features(4, 6)
    key, value = (
        ops.reshape(ops.max_pool(ops.matmul(x, kernel), 2, 2), (B, 6, -1))
        for kernel in (layer.key_kernel, layer.value_kernel)
    )
    query = ops.reshape(ops.matmul(x, layer.query_kernel), (B, 24, -1))
    weights = ops.softmax(ops.matmul(query, ops.swapaxes(key, 1, 2)))
    attended = ops.reshape(ops.matmul(ops.matmul(weights, value), layer.output_kernel), x.shape)
    np.testing.assert_allclose(layer(x), x + layer.gamma * attended, atol=1e-4)


def test_the_parameters_are_those_of_the_paper():
    layer = ConvSelfAttention()
    layer.build((None, 8, 8, 32))
    assert {w.name: tuple(w.shape) for w in layer.weights} == {
        "query_kernel": (32, 4),
        "key_kernel": (32, 4),
        "value_kernel": (32, 16),
        "output_kernel": (16, 32),
        "gamma": (),
    }
    narrow = ConvSelfAttention(use_bias=True)
    narrow.build((None, 8, 8, 1))
    assert {w.name: tuple(w.shape) for w in narrow.weights if "bias" in w.name} == {
        f"{name}_bias": (1,) for name in ("query", "key", "value", "output")
    }


def test_a_new_layer_passes_its_input_on():
    x = features()
    np.testing.assert_array_equal(ConvSelfAttention(use_bias=True)(x), x)


def test_gradient_at_gamma_0_reaches_only_gamma():
    layer = built()
    layer.gamma.assign(0.0)
    _, _, found = gradients(layer, features())
    assert abs(float(found.pop("gamma"))) > 1e-3
    np.testing.assert_allclose(found.pop("x"), np.cos(features()), atol=1e-6)
    assert len(found) == 4
    for gradient in found.values():
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("downsample", [1, 2])
def test_gradient_reaches_everything_when_gamma_is_not_0(downsample):
    _, _, found = gradients(built(use_bias=True, downsample=downsample), features())
    # What is added to every key moves no weight: its gradient is 0 but for rounding.
    np.testing.assert_allclose(found.pop("key_bias"), np.zeros(3), atol=1e-4)
    assert len(found) == 9
    for name, gradient in found.items():
        assert np.abs(gradient).max() > 1e-3, name


def test_gradients_are_those_of_differences():
    layer, x, step = built(downsample=2), features(2, 3), 1e-2
    found = gradients(layer, x)[2]["x"]
    for place in [(0, 0, 0, 0), (1, 1, 2, 4)]:
        moved = [x.copy(), x.copy()]
        moved[0][place] -= step
        moved[1][place] += step
        before, after = (np.sin(reference(layer, z)[0]).sum() for z in moved)
        np.testing.assert_allclose(found[place], (after - before) / (2 * step), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("downsample", [1, 2])
def test_masked_positions_are_not_seen(downsample):
    layer, x = built(downsample=downsample), features()
    y, weights = layer(x, mask=MASK, return_attention_scores=True)
    changed = np.where(MASK[..., None], x, 50.0)
    np.testing.assert_allclose(np.array(layer(changed, mask=MASK))[MASK], np.array(y)[MASK], atol=1e-5)
    np.testing.assert_allclose(np.sum(weights, -1), 1.0, atol=1e-6)
    if downsample == 1:
        hidden = np.array(weights)[np.repeat(~MASK.reshape(B, 1, -1), H * W, axis=1)]
        np.testing.assert_array_equal(hidden, np.zeros(9 * H * W))


@pytest.mark.parametrize("downsample", [1, 2, 3])
def test_padding_changes_nothing(downsample):
    layer, x = built(downsample=downsample), features()
    expected = layer(x)
    wide = np.pad(x, [(0, 0), (0, 2), (0, 1), (0, 0)], constant_values=9.0)
    mask = np.zeros(wide.shape[:3], bool)
    mask[:, :H, :W] = True
    np.testing.assert_allclose(layer(wide, mask=mask)[:, :H, :W], expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("downsample", [1, 2])
def test_an_image_of_padding_stays_as_it_is(policy, downsample):
    layer = built(dtype=policy, downsample=downsample)
    mask = np.array([np.zeros((H, W)), np.ones((H, W))], bool)
    y, weights, found = gradients(layer, features(), mask)
    np.testing.assert_array_equal(y[0], features()[0].astype(y.dtype.name))
    np.testing.assert_array_equal(weights[0], np.zeros(weights.shape[1:]))
    for gradient in found.values():
        assert np.all(np.isfinite(gradient))


def test_mask_of_the_input_is_found_and_kept():
    layer, x = built(), ops.convert_to_tensor(features())
    expected = layer(x, mask=MASK)
    x._keras_mask = ops.convert_to_tensor(MASK)
    y = layer(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(y._keras_mask, MASK)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 4e-2), ("mixed_float16", 4e-3)])
def test_half_precision_is_close(policy, tolerance):
    layer, half = built(downsample=2), built(downsample=2, dtype=policy)
    x = features() / 4
    y, weights = layer(x, mask=MASK, return_attention_scores=True)
    half_y, half_weights = half(x, mask=MASK, return_attention_scores=True)
    assert half_y.dtype.name == policy.removeprefix("mixed_")
    assert half_weights.dtype == "float32"
    np.testing.assert_allclose(ops.cast(half_y, "float32"), y, atol=tolerance * 2)
    np.testing.assert_allclose(half_weights, weights, atol=tolerance)


def test_large_half_precision_scores_stay_finite():
    """Scores beyond 65504, the end of float16."""
    y, weights, found = gradients(built(dtype="mixed_float16"), 300.0 * features())
    for x in (y, weights, *found.values()):
        assert np.all(np.isfinite(x))


def test_weights_are_those_before_dropout_and_asking_changes_nothing():
    x = features()
    y, weights = built(dropout=0.5, seed=1)(x, return_attention_scores=True)
    dropped, training_weights = built(dropout=0.5, seed=1)(x, return_attention_scores=True, training=True)
    np.testing.assert_array_equal(training_weights, weights)
    assert np.abs(dropped - y).max() > 1e-2
    np.testing.assert_array_equal(built(dropout=0.5, seed=1)(x, training=True), dropped)


def test_compiled_equals_eager_with_unknown_sizes():
    layer = built(downsample=2, use_bias=True, dropout=0.5, seed=1)
    for weight in layer.weights:  # small ones, as large gradients are less exact
        weight.assign(weight / 2)

    @tf.function(
        jit_compile=True,
        input_signature=[tf.TensorSpec((None, None, None, C)), tf.TensorSpec((None, None, None), "bool")],
    )
    def compiled(x, mask):
        return gradients(layer, x, mask, training=True)

    x = features() / 4  # gradients of sharp weights would differ in the fourth digit
    state = layer.weight_dropout.seed_generator.state
    seed = state.numpy()
    eager = gradients(layer, x, MASK, training=True)
    state.assign(seed)
    result = compiled(tf.constant(x), tf.constant(MASK))
    for expected, found in zip(tf.nest.flatten(eager), tf.nest.flatten(result), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_shapes_before_any_data():
    x, mask = keras.Input((None, None, 16)), keras.Input((None, None), dtype="bool")
    y, weights = ConvSelfAttention()(x, mask=mask, return_attention_scores=True)
    assert (y.shape, weights.shape) == ((None, None, None, 16), (None, None, None))
    y, weights = ConvSelfAttention(downsample=2)(keras.Input((5, 4, 16)), return_attention_scores=True)
    assert (y.shape, weights.shape) == ((None, 5, 4, 16), (None, 20, 6))


def test_config_holds_every_argument():
    arguments = {
        "key_dim": 2,
        "value_dim": 3,
        "scale": True,
        "downsample": 2,
        "use_bias": True,
        "dropout": 0.25,
        "seed": 3,
        "name": "look",
    }
    layer = ConvSelfAttention(**arguments)
    copy = ConvSelfAttention.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert {name: getattr(copy, name) for name in arguments} == arguments


def test_keras_file_restores_everything(tmp_path):
    x = keras.Input((None, None, C))
    layer = ConvSelfAttention(use_bias=True, downsample=2)
    model = keras.Model(x, layer(x, return_attention_scores=True))
    randomize(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    for before, after in zip(model(features()), loaded(features()), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("name", "size"),
    [("key_dim", 0), ("value_dim", -1), ("downsample", 0), ("downsample", None), ("key_dim", 1.5)],
)
def test_sizes_must_be_positive_integers(name, size):
    with pytest.raises(ValueError, match=f"expected {name} of at least 1, an integer, received {size}"):
        ConvSelfAttention(**{name: size})


@pytest.mark.parametrize("shape", [(None, 4, 8), (None, 4, 4, None)])
def test_wrong_inputs_are_refused(shape):
    with pytest.raises(ValueError, match="expected a feature map of shape"):
        ConvSelfAttention().build(shape)


@pytest.mark.parametrize("mask", [MASK.astype("float32"), MASK.reshape(B, -1), MASK.swapaxes(1, 2)])
def test_wrong_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r"expected a boolean mask \(B, H, W\)"):
        built()(features(), mask=mask)
