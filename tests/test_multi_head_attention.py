import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import AttentionContract, B, S, T, random
from contracts import randomize as randomize_widely
from keras import ops

from attention_zoo.layers import multi_head_attention
from attention_zoo.layers.multi_head_attention import MultiHeadAttention

H = 2
QUERY, VALUE, KEY = (B, T, 6), (B, S, 8), (B, S, 7)
PADDING = np.arange(S)[None] < np.array([[5], [2], [4]])  # (B, S)
SOME = np.random.default_rng(1).random((B, H, T, S)) < 0.6
SOME[..., 0] = True  # no query without a key


def randomize(layer):
    """Weights around those of Glorot: two products of larger ones would make outputs of 40, and so errors."""
    randomize_widely(layer).set_weights([weight / 2 for weight in layer.get_weights()])
    return layer


def randomize_built(layer, *shapes):
    layer.build(*shapes)
    return randomize(layer)


class TestMultiHeadAttention(AttentionContract):
    weights_shape = (None, H, None, None)

    def make(self, **kwargs):
        return MultiHeadAttention(H, 3, output_shape=self.value_dim, **kwargs)

    def built(self, **kwargs):
        return randomize(super().built(**kwargs))

    def as_weights(self, x):
        return np.repeat(x[:, None], H, axis=1)

    def nothing(self, layer):
        return ops.cast(layer.output_bias, layer.compute_dtype)


class TestSharedGatedHeads(TestMultiHeadAttention):
    def make(self, **kwargs):
        return super().make(value_dim=5, num_key_value_heads=1, use_gate=True, **kwargs)


def tensors(*shapes):
    return [tf.convert_to_tensor(random(*shape, seed=i)) for i, shape in enumerate(shapes)]


def with_gradients(layer, inputs, **kwargs):
    """Output, weights, the inputs' gradients and those of the layer's weights, by name."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        results = layer(*inputs, **kwargs)
        output, weights = results if isinstance(results, tuple) else (results, None)
        loss = tf.reduce_sum(tf.sin(output))
    gradients = tape.gradient(loss, [inputs, layer.trainable_weights])
    return output, weights, gradients[0], dict(zip(names_of(layer), gradients[1], strict=True))


def names_of(layer):
    """The names of the weights as our layer has them: query_kernel and so on."""
    paths = [weight.path.split("/")[-2:] for weight in layer.trainable_weights]
    parts = {"query", "key", "value", "gate", "attention_output"}
    return [
        f"{part}_{name}".replace("attention_output", "output") if part in parts else name
        for part, name in paths
    ]


def twins(shapes, **kwargs):
    """Keras' layer and ours with the same weights."""
    reference = keras.layers.MultiHeadAttention(H, 3, **kwargs)
    layer = MultiHeadAttention(H, 3, **kwargs)
    for x in (reference, layer):
        x.build(*shapes)
    randomize(reference)
    for name, weight in zip(names_of(reference), reference.trainable_weights, strict=True):
        getattr(layer, name).assign(np.reshape(weight, getattr(layer, name).shape))
    return reference, layer


def assert_equal(results, expected, atol=1e-5):
    """Of two `with_gradients`; our kernels are matrices."""
    output, weights, inputs, own = results
    np.testing.assert_allclose(output, expected[0], atol=atol)
    if weights is not None and expected[1] is not None:
        np.testing.assert_allclose(weights, expected[1], atol=atol)
    for gradient, other in zip(inputs, expected[2], strict=True):
        np.testing.assert_allclose(gradient, other, atol=atol)
    assert sorted(own) == sorted(expected[3])
    for name, gradient in own.items():
        np.testing.assert_allclose(gradient, np.reshape(expected[3][name], gradient.shape), atol=atol)


# The same as Keras.


def test_arguments_stand_where_those_of_keras_stand():
    ours = inspect.signature(MultiHeadAttention).parameters.values()
    theirs = inspect.signature(keras.layers.MultiHeadAttention).parameters.values()
    expected = [(p.name, p.default) for p in theirs if p.name != "kwargs"]
    assert [(p.name, p.default) for p in ours if p.kind == p.POSITIONAL_OR_KEYWORD] == expected


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({}, {}),
        ({}, {"use_causal_mask": True}),
        ({}, {"value_mask": PADDING, "key_mask": PADDING}),
        ({}, {"attention_mask": SOME[:, 0]}),
        ({}, {"attention_mask": PADDING[:, None]}),
        ({}, {"attention_mask": SOME}),
        ({}, {"attention_mask": SOME[:, 0], "value_mask": PADDING, "use_causal_mask": True}),
        ({"value_dim": 5, "use_bias": False}, {}),
        ({"output_shape": 9, "use_gate": True}, {}),
        ({"output_shape": (2, 3), "attention_axes": 1}, {}),
        ({"sliding_window": 2}, {}),
        ({"sliding_window": 2}, {"use_causal_mask": True, "attention_mask": SOME}),
    ],
)
def test_equals_keras(arguments, call):
    reference, layer = twins((QUERY, VALUE, KEY), **arguments)
    inputs = tensors(QUERY, VALUE, KEY)
    expected = with_gradients(reference, inputs, return_attention_scores=True, **call)
    assert_equal(with_gradients(layer, inputs, return_attention_scores=True, **call), expected)


def test_self_attention_equals_keras():
    reference, layer = twins((QUERY, QUERY), value_dim=5)
    (x,) = tensors(QUERY)
    assert_equal(with_gradients(layer, [x, x]), with_gradients(reference, [x, x]))


TILES, OTHER = (2, 3, 2, 5), (2, 3, 4, 5)  # B, height, width, D


@pytest.mark.parametrize(
    ("axes", "shapes", "mask", "call"),
    [
        (None, (TILES, (2, 2, 2, 5)), None, {}),
        (None, (TILES, TILES), (2, 3, 2, 3, 2), {}),
        (None, (TILES, TILES), (2, H, 3, 2, 3, 2), {}),
        (None, (TILES, TILES), (2, 1, 1, 3, 2), {}),
        ((2, 1), (TILES, (2, 2, 4, 5)), (2, 2, 3, 4, 2), {}),
        (1, (TILES, TILES), None, {"use_causal_mask": True}),
        (-2, (TILES, OTHER), (2, 2, 4), {}),
        (2, (TILES, OTHER), (2, 3, 2, 4), {}),
        (2, (TILES, OTHER), (2, 3, H, 2, 4), {}),
        ((3, 1), ((2, 3, 2, 4, 5), (2, 3, 2, 2, 5)), (2, 2, 1, 4, 3, 2, 3), {}),
    ],
)
def test_grids_equal_keras(axes, shapes, mask, call):
    reference, layer = twins(shapes, attention_axes=axes, output_shape=(2, 3))
    if mask is not None:
        mask = np.random.default_rng(2).random(mask) < 0.6
        mask[..., 0] = True
    inputs = tensors(*shapes)
    call = {"attention_mask": mask, "return_attention_scores": True, **call}
    assert_equal(with_gradients(layer, inputs, **call), with_gradients(reference, inputs, **call))


def test_regularizers_and_constraints_equal_those_of_keras():
    arguments = {
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "bias_regularizer": keras.regularizers.L1(0.2),
        "kernel_constraint": "non_neg",
        "bias_constraint": keras.constraints.NonNeg(),
    }
    reference, layer = twins((QUERY, VALUE, KEY), **arguments)
    np.testing.assert_allclose(sum(layer.losses), sum(reference.losses), rtol=1e-6)
    for x in (reference, layer):
        gradients = with_gradients(x, tensors(QUERY, VALUE, KEY))[3]
        keras.optimizers.SGD(0.1).apply(gradients.values(), x.trainable_weights)
    assert np.min(layer.query_kernel) == np.min(layer.query_bias) == 0
    for name, weight in zip(names_of(reference), reference.trainable_weights, strict=True):
        own = getattr(layer, name)
        np.testing.assert_allclose(own, np.reshape(weight, own.shape), atol=1e-5)


# Not the same as Keras: positions of a grid count row by row, masked queries attend to nothing.


@pytest.mark.parametrize("arguments", [{}, {"sliding_window": 3, "rotary": True}])
def test_a_grid_is_a_sequence_row_by_row(arguments):
    layer = randomize_built(MultiHeadAttention(H, 4, **arguments), TILES, TILES)
    (x,) = tensors(TILES)
    mask = np.arange(12).reshape(2, 3, 2) % 5 != 1
    output, weights = layer(
        x, x, query_mask=mask, value_mask=mask, use_causal_mask=True, return_attention_scores=True
    )
    flat, flat_mask = ops.reshape(x, (2, 6, 5)), mask.reshape(2, 6)
    expected, expected_weights = layer(
        flat, flat, query_mask=flat_mask, value_mask=flat_mask, use_causal_mask=True,
        return_attention_scores=True,
    )  # fmt: skip
    np.testing.assert_allclose(output, np.reshape(expected, TILES), atol=1e-6)
    np.testing.assert_allclose(weights, np.reshape(expected_weights, (2, H, 3, 2, 3, 2)), atol=1e-6)
    assert np.any(np.array(expected_weights) == 0)


def test_axes_that_are_not_covered_are_like_examples():
    layer = randomize_built(MultiHeadAttention(H, 4, attention_axes=2), TILES, TILES)
    (x,) = tensors(TILES)
    mask = np.arange(12).reshape(2, 3, 2) % 5 != 1
    output, weights = layer(x, x, value_mask=mask, use_causal_mask=True, return_attention_scores=True)
    for row in range(3):
        expected, expected_weights = layer(
            x[:, row], x[:, row], value_mask=mask[:, row], use_causal_mask=True, return_attention_scores=True
        )
        np.testing.assert_allclose(output[:, row], expected, atol=1e-6)
        np.testing.assert_allclose(weights[:, row], expected_weights, atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "weights_shape"), [(None, (None, H, None, 3, None, 3)), (2, (None, None, H, 3, 3))]
)
def test_shapes_of_grids_before_any_data(axes, weights_shape):
    x = keras.Input((None, 3, 5))
    layer = MultiHeadAttention(H, 4, attention_axes=axes, output_shape=(2, 7))
    output, weights = layer(x, x, return_attention_scores=True)
    assert output.shape == (None, None, 3, 2, 7)
    assert weights.shape == weights_shape


def test_compiled_grid_equals_eager():
    layer = randomize_built(MultiHeadAttention(H, 4, attention_axes=(2,)), TILES, TILES)
    (x,) = tensors(TILES)
    compiled = tf.function(lambda x: with_gradients(layer, [x, x], use_causal_mask=True), jit_compile=True)
    assert_equal(compiled(x), with_gradients(layer, [x, x], use_causal_mask=True))


def test_activity_regularizer_sees_the_output():
    layer = MultiHeadAttention(H, 3, activity_regularizer=keras.regularizers.L1(0.5))
    output = layer(*tensors(QUERY, VALUE))
    np.testing.assert_allclose(layer.losses, [0.5 * np.abs(output).sum() / B], rtol=1e-5)


# The same as PyTorch.


@pytest.mark.parametrize("own", [True, False])
def test_equals_torch(own):
    torch = pytest.importorskip("torch")
    width = 8
    shapes = [(B, T, width)] * 3 if own else [(B, T, width), (B, S, 5), (B, S, 7)]
    reference = torch.nn.MultiheadAttention(
        width, H, kdim=shapes[2][-1], vdim=shapes[1][-1], batch_first=True
    )
    layer = randomize_built(MultiHeadAttention(H, width // H), *shapes)
    parts = ("query", "key", "value")
    kernels = [torch.tensor(np.transpose(getattr(layer, f"{part}_kernel"))) for part in parts]
    biases = [torch.tensor(np.array(getattr(layer, f"{part}_bias"))) for part in parts]
    with torch.no_grad():
        if own:
            reference.in_proj_weight.copy_(torch.cat(kernels))
        else:
            for part, kernel in zip("qkv", kernels, strict=True):
                getattr(reference, f"{part}_proj_weight").copy_(kernel)
        reference.in_proj_bias.copy_(torch.cat(biases))
        reference.out_proj.weight.copy_(torch.tensor(np.transpose(layer.output_kernel)))
        reference.out_proj.bias.copy_(torch.tensor(np.array(layer.output_bias)))

    source = shapes[1][1]
    padding = PADDING[:, :source]
    query, value, key = tensors(shapes[0]) * 3 if own else tensors(*shapes)
    theirs = [torch.tensor(x.numpy(), requires_grad=True) for x in (query, value, key)]
    expected, expected_weights = reference(
        theirs[0], theirs[2], theirs[1],
        key_padding_mask=torch.tensor(~padding), attn_mask=torch.tensor(np.tri(T, source) == 0),
    )  # fmt: skip
    torch.sin(expected).sum().backward()

    # As different tensors: the gradient of one that is all three would be the sum of theirs.
    output, weights, gradients, own_gradients = with_gradients(
        layer, [query, tf.identity(value), tf.identity(key)],
        value_mask=padding, use_causal_mask=True, return_attention_scores=True,
    )  # fmt: skip
    np.testing.assert_allclose(output, expected.detach(), atol=1e-4)
    np.testing.assert_allclose(np.mean(weights, axis=1), expected_weights.detach(), atol=1e-4)
    for gradient, x in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(gradient, x.grad, atol=1e-4)
    if own:
        kernel_gradients = reference.in_proj_weight.grad.split(width)
    else:
        kernel_gradients = [getattr(reference, f"{part}_proj_weight").grad for part in "qkv"]
    for part, gradient in zip(parts, kernel_gradients, strict=True):
        np.testing.assert_allclose(own_gradients[f"{part}_kernel"], gradient.T, atol=1e-4)
    np.testing.assert_allclose(own_gradients["output_bias"], reference.out_proj.bias.grad, atol=1e-4)


# By hand.


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def reference_heads(layer, x, turn=lambda vector, position: vector):
    """Causal self-attention of one sequence (T, D), position by position and head by head."""
    kernels = {part: np.array(getattr(layer, f"{part}_kernel")) for part in ("query", "key", "value")}
    biases = {part: np.array(getattr(layer, f"{part}_bias")) for part in kernels}
    projected = {part: x @ kernels[part] + biases[part] for part in kernels}
    d, output = layer.key_dim, []
    for t in range(len(x)):
        heads = []
        for head in range(layer.num_heads):
            shared = head * layer.num_key_value_heads // layer.num_heads
            part, own = slice(head * d, head * d + d), slice(shared * d, shared * d + d)
            query = turn(projected["query"][t, part], t)
            e = [query @ turn(projected["key"][s, own], s) / np.sqrt(d) for s in range(t + 1)]
            heads.append(softmax(np.array(e)) @ projected["value"][: t + 1, own])
        output.append(np.concatenate(heads) @ layer.output_kernel + layer.output_bias)
    return np.array(output)


def rotated(vector, position):
    """Neighbours are the real and the imaginary part of a number."""
    number = vector[0::2] + 1j * vector[1::2]
    number = number * np.exp(1j * position / 10000 ** (np.arange(len(number)) / len(number)))
    return np.stack([number.real, number.imag], axis=-1).ravel()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rotary_by_hand(groups):
    layer = MultiHeadAttention(4, 6, num_key_value_heads=groups, rotary=True)
    randomize_built(layer, QUERY, QUERY)
    (x,) = tensors(QUERY)
    expected = [reference_heads(layer, sequence, rotated) for sequence in x.numpy()]
    np.testing.assert_allclose(layer(x, x, use_causal_mask=True), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_heads_equal_repeated_ones(groups):
    layer = randomize_built(MultiHeadAttention(4, 3, num_key_value_heads=groups), QUERY, VALUE)
    repeated = MultiHeadAttention(4, 3)
    repeated.build(QUERY, VALUE)
    for name in names_of(layer):
        weight = np.array(getattr(layer, name))
        if name.startswith(("key", "value")):
            weight = np.reshape(weight, (*weight.shape[:-1], groups, 3))
            weight = np.repeat(weight, 4 // groups, axis=-2)
        getattr(repeated, name).assign(np.reshape(weight, getattr(repeated, name).shape))
    inputs = tensors(QUERY, VALUE)
    call = {"value_mask": PADDING, "attention_mask": SOME[:, [0, 1, 1, 0]], "return_attention_scores": True}
    output, weights, gradients, own = with_gradients(layer, inputs, **call)
    expected, expected_weights, expected_gradients, theirs = with_gradients(repeated, inputs, **call)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5)
    summed = np.sum(np.reshape(theirs["key_kernel"], (8, groups, 4 // groups, 3)), axis=2)
    np.testing.assert_allclose(own["key_kernel"], np.reshape(summed, (8, -1)), atol=1e-5)


def test_one_sequence_is_projected_at_once_with_the_same_result():
    layer = randomize_built(MultiHeadAttention(H, 3, value_dim=5, use_gate=True), QUERY, QUERY)
    (x,) = tensors(QUERY)
    calls = []
    original = layer._projected
    layer._projected = lambda x, *names: calls.append(names) or original(x, *names)
    together = with_gradients(layer, [x, x], return_attention_scores=True)
    assert ("query", "key", "value") in calls
    calls.clear()
    apart = with_gradients(layer, [x, tf.identity(x)], return_attention_scores=True)
    assert ("query",) in calls
    np.testing.assert_allclose(together[0], apart[0], atol=1e-6)
    np.testing.assert_allclose(together[1], apart[1], atol=1e-6)
    np.testing.assert_allclose(together[2][0], apart[2][0] + apart[2][1], atol=1e-5)
    for name, gradient in together[3].items():
        np.testing.assert_allclose(gradient, apart[3][name], atol=1e-5)


def test_equal_shapes_start_with_different_weights():
    layer = MultiHeadAttention(H, 3)
    layer.build(QUERY, QUERY)
    kernels = [np.array(weight) for weight in layer.trainable_weights[0:8:2]]
    for i, kernel in enumerate(kernels):
        assert kernel.shape == (6, 6)
        assert all(np.abs(kernel - other).max() > 0.1 for other in kernels[:i])


# Token by token.


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "num_key_value_heads": 1,
            "rotary": True,
            "sliding_window": 2,
            "use_gate": True,
        },
        {"output_shape": (2, 3)},
    ],
)
def test_steps_equal_call(policy, tolerance, arguments):
    layer = MultiHeadAttention(H, 4, value_dim=3, dtype=policy, **arguments)
    randomize_built(layer, QUERY, QUERY)
    x = ops.cast(tensors(QUERY)[0] / 2, policy)
    expected, expected_weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    cache = layer.empty_cache(B, T)
    for t in range(T):
        output, weights, cache = layer.step(x[:, t : t + 1], cache, t)
        assert output.dtype == expected.dtype
        assert cache["key"].dtype == policy
        output, whole = (ops.cast(y, "float32") for y in (output, expected[:, t : t + 1]))
        np.testing.assert_allclose(output, whole, atol=tolerance * 2)
        np.testing.assert_allclose(weights, expected_weights[:, :, t : t + 1], atol=tolerance)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_key_value_heads": 1, "rotary": True, "sliding_window": 2, "use_gate": True}],
)
def test_hypotheses_side_by_side(arguments):
    """They are reordered at every position, and their keys and values are not."""
    layer = randomize_built(MultiHeadAttention(H, 4, value_dim=3, **arguments), QUERY, QUERY)
    random, hypotheses, rows = np.random.default_rng(0), 3, np.arange(B)[:, None]
    cache = layer.empty_cache(B, T, hypotheses)
    origin = np.zeros((B, hypotheses, T), int)
    said = np.zeros((B, hypotheses, T, QUERY[-1]), "float32")
    for t in range(T):
        parent = random.integers(0, hypotheses, (B, hypotheses))
        origin, said = origin[rows, parent], said[rows, parent]
        origin[:, :, t] = np.arange(hypotheses)
        said[:, :, t] = random.normal(size=said[:, :, t].shape)
        output, weights, cache = layer.step(said[:, :, t], cache, t, origin)
        for k in range(hypotheses):
            expected, looks = layer(
                *[said[:, k, : t + 1]] * 2, use_causal_mask=True, return_attention_scores=True
            )
            np.testing.assert_allclose(output[:, k], expected[:, t], atol=1e-5)
            np.testing.assert_allclose(weights[:, :, k, : t + 1], looks[:, :, t], atol=1e-5)
            assert not np.any(weights[:, :, k, t + 1 :])
    with pytest.raises(ValueError, match=r"expected the origin of what 3 hypotheses .* received None"):
        layer.step(said[:, :, 0], cache, 0)


def test_mask_by_head_is_combined_with_the_others():
    layer = randomize_built(MultiHeadAttention(H, 3, sliding_window=3), QUERY, VALUE)
    _, weights = layer(
        *tensors(QUERY, VALUE),
        query_mask=PADDING[:, :T],
        value_mask=PADDING,
        attention_mask=SOME,
        use_causal_mask=True,
        return_attention_scores=True,
    )
    target, source = np.arange(T)[:, None], np.arange(S)
    near = (source <= target) & (target - source < 3)
    allowed = SOME & near & PADDING[:, None, None] & PADDING[:, None, :T, None]
    np.testing.assert_array_equal(np.array(weights) > 0, allowed)


def test_attend_takes_a_mask_by_head():
    layer = randomize_built(MultiHeadAttention(H, 3), QUERY, VALUE)
    query, value = tensors(QUERY, VALUE)
    expected = layer(query, value, attention_mask=SOME, return_attention_scores=True)
    output, weights = layer.attend(query, layer.project_memory(value), SOME)
    np.testing.assert_allclose(output, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1], atol=1e-6)


ENOUGH = B * S  # of units in a head, for a memory to take in the matrices


@pytest.mark.parametrize("mask", [None, PADDING[:, None], SOME], ids=["none", "padding", "by head"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_bias": False, "value_dim": ENOUGH + 1}, {"num_key_value_heads": 1, "output_shape": (2, 3)}],
    ids=["plain", "no bias", "shared heads"],
)
def test_a_short_memory_takes_in_the_matrices_and_changes_nothing(arguments, mask):
    layer = randomize_built(MultiHeadAttention(H, ENOUGH, **arguments), QUERY, VALUE)
    query, value = tensors(QUERY, VALUE)
    prepared = layer.prepare(value)
    assert "output_kernel" in prepared
    expected = layer(query, value, attention_mask=mask, return_attention_scores=True)
    for count in (1, T):
        some = None if mask is None else mask[..., :count, :]
        output, weights = layer.attend(query[:, :count], prepared, some)
        np.testing.assert_allclose(output, expected[0][:, :count], atol=1e-4)
        np.testing.assert_allclose(weights, expected[1][:, :, :count], atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"key_dim": ENOUGH - 1},
        {"value_dim": ENOUGH - 1},
        {"use_gate": True},
        {"rotary": True, "key_dim": ENOUGH + 1},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_other_memories_stay_as_they_are(arguments):
    layer = randomize_built(MultiHeadAttention(H, **{"key_dim": ENOUGH, **arguments}), QUERY, VALUE)
    assert set(layer.prepare(*tensors(VALUE))) == {"key", "value"}


def test_a_memory_of_unknown_length_stays_as_it_is():
    layer = randomize_built(MultiHeadAttention(H, ENOUGH), QUERY, VALUE)
    prepare = tf.function(layer.prepare, input_signature=[tf.TensorSpec((B, None, VALUE[-1]))])
    assert set(prepare(*tensors(VALUE))) == {"key", "value"}


# Without the matrix of the weights.


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({}, {"use_causal_mask": True, "value_mask": PADDING}),
        ({"num_key_value_heads": 1, "value_dim": 5, "use_gate": True}, {"attention_mask": SOME}),
        ({"sliding_window": 2}, {"query_mask": PADDING[:, :T], "attention_mask": SOME[:, 0]}),
        ({"dropout": 0.4, "seed": 3}, {"training": True, "use_causal_mask": True}),
        ({"dropout": 0.4, "seed": 3, "num_key_value_heads": 1}, {"training": True, "value_mask": PADDING}),
        ({"dropout": 0.4, "seed": 3}, {"training": False}),
    ],
)
def test_flash_attention_equals_weights(arguments, call):
    whole, pieces = (
        with_gradients(
            randomize_built(MultiHeadAttention(H, 3, flash_attention=flash, **arguments), QUERY, VALUE, KEY),
            tensors(QUERY, VALUE, KEY),
            **call,
        )
        for flash in (False, True)
    )
    assert_equal(pieces, whole)


def test_dropout_differs_from_call_to_call_with_flash_attention():
    layer = randomize_built(MultiHeadAttention(H, 3, dropout=0.5, flash_attention=True), QUERY, VALUE)
    inputs = tensors(QUERY, VALUE)
    first, second = (layer(*inputs, training=True) for _ in range(2))
    assert np.abs(first - second).max() > 1e-2


def test_flash_attention_of_a_grid():
    whole, pieces = (
        with_gradients(
            randomize_built(MultiHeadAttention(H, 4, attention_axes=2, flash_attention=flash), TILES, OTHER),
            tensors(TILES, OTHER),
            attention_mask=np.arange(16).reshape(2, 2, 4) % 3 != 1,
        )
        for flash in (False, True)
    )
    assert_equal(pieces, whole)


@pytest.fixture
def pieces(monkeypatch):
    """What the chunked attention is called with."""
    calls = []
    original = multi_head_attention.chunked_attention.attend_in_chunks

    def recorded(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(multi_head_attention.chunked_attention, "attend_in_chunks", recorded)
    return calls


def test_flash_attention_makes_no_mask_for_every_pair(pieces):
    layer = MultiHeadAttention(H, 3, flash_attention=True)
    layer(*tensors(QUERY, VALUE), use_causal_mask=True, query_mask=PADDING[:, :T])
    layer(*tensors(QUERY, VALUE), use_causal_mask=True, value_mask=PADDING)
    assert [call["causal"] for call in pieces] == [True, True]
    assert pieces[0]["mask"] is None
    assert pieces[1]["mask"].shape == (B, 1, 1, S)


def test_flash_attention_compiles(pieces):
    arguments = {"dropout": 0.4, "seed": 3, "num_key_value_heads": 1}
    layers = [
        randomize_built(MultiHeadAttention(H, 3, flash_attention=flash, **arguments), QUERY, QUERY)
        for flash in (False, True)
    ]
    (x,) = tensors(QUERY)
    call = {"training": True, "use_causal_mask": True, "value_mask": tf.constant(PADDING[:, :T])}
    compiled = tf.function(lambda x: with_gradients(layers[1], [x, x], **call), jit_compile=True)
    assert_equal(compiled(x), with_gradients(layers[0], [x, x], **call))
    assert len(pieces) == 1


def test_long_sequences_are_done_in_pieces_unless_weights_are_wanted(pieces, monkeypatch):
    monkeypatch.setattr(multi_head_attention.chunked_attention, "AUTOMATIC_LENGTH", 4)
    layer, never = MultiHeadAttention(H, 3), MultiHeadAttention(H, 3, flash_attention=False)
    (x,) = tensors((1, 4, 6))
    layer(x, x, return_attention_scores=True)
    never(x, x)
    layer(x[:, :3], x)
    assert not pieces
    layer(x, x)
    assert len(pieces) == 1


def test_unknown_lengths_keep_their_weights(pieces, monkeypatch):
    monkeypatch.setattr(multi_head_attention.chunked_attention, "AUTOMATIC_LENGTH", 0)
    layer = randomize_built(MultiHeadAttention(H, 3), QUERY, QUERY)
    lengths = tf.function(lambda x: layer(x, x), input_signature=[tf.TensorSpec((None, None, 6))])
    (x,) = tensors(QUERY)
    output = lengths(x)
    assert not pieces
    np.testing.assert_allclose(output, layer(x, x), atol=1e-6)
    assert len(pieces) == 1


# Saving.


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_shape": 9, "attention_axes": 1, "sliding_window": 2, "flash_attention": False},
        {"output_shape": [2, 3], "attention_axes": [-2, 1], "use_gate": True, "num_key_value_heads": 1},
        {
            "kernel_initializer": keras.initializers.HeNormal(seed=1),
            "bias_initializer": "ones",
            "kernel_regularizer": "l2",
            "bias_regularizer": keras.regularizers.L1(0.2),
            "activity_regularizer": "l1",
            "kernel_constraint": keras.constraints.MaxNorm(2.0),
            "bias_constraint": "non_neg",
            "rotary": True,
            "use_bias": False,
            "value_dim": 5,
        },
    ],
)
def test_file_restores_arguments_and_weights(arguments, tmp_path):
    x = keras.Input((3, 2, 5))
    layer = MultiHeadAttention(H, 4, name="attention", **arguments)
    model = keras.Model(x, layer(x, x))
    randomize(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("attention").get_config() == layer.get_config()
    (x,) = tensors(TILES)
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


@pytest.mark.parametrize(("given", "kept"), [(None, None), (9, (9,)), ([2, 3], (2, 3)), ((2, 3), (2, 3))])
def test_config_holds_shapes_and_axes_as_tuples(given, kept):
    config = MultiHeadAttention(H, 4, output_shape=given, attention_axes=given).get_config()
    assert (config["output_shape"], config["attention_axes"]) == (kept, kept)
    assert MultiHeadAttention.from_config(config).get_config() == config


def test_summary_of_a_model_that_holds_a_layer():
    """Keras takes an attribute `output_shape` for the whole shape, and fails where it is None."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = MultiHeadAttention(H, 4)
            self.attention.build(QUERY, QUERY)

    lines = []
    Model().summary(print_fn=lambda line, **_: lines.append(line))
    assert "multi_head_attention" in "".join(lines)


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads of at least 1.*received 0"),
        ({"num_heads": 2.0}, "num_heads.*an integer, received 2.0"),
        ({"key_dim": -1}, "key_dim.*received -1"),
        ({"value_dim": 0}, "value_dim.*received 0"),
        ({"output_shape": 0}, "output_shape.*received 0"),
        ({"output_shape": ()}, "output_shape.*received 0"),
        ({"sliding_window": 0}, "sliding_window.*received 0"),
        ({"num_key_value_heads": 3}, "divide num_heads, received 3 and 2"),
        ({"key_dim": 3, "rotary": True}, "even key_dim"),
        ({"attention_axes": ()}, "at least one axis"),
        ({"dropout": 1.5}, "1.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"num_heads": H, "key_dim": 4, **arguments})


@pytest.mark.parametrize(
    ("axes", "shapes", "message"),
    [
        ((1, 2), (QUERY, QUERY), r"attention_axes.*received \(1, 2\) for inputs of rank 3"),
        (0, (TILES, TILES), "attention_axes"),
        ((1, -3), (TILES, TILES), "each once"),
        (None, (TILES, QUERY), "inputs of one rank"),
        (2, (TILES, (2, 4, 2, 5)), "equal axes"),
        (None, (TILES, TILES, OTHER), "a key for each value"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(axes, shapes, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(H, 4, attention_axes=axes).build(*shapes)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        (QUERY, {"attention_mask": np.ones((B, 3, T, T), bool)}, r"\(B, 2, T, S\), received \(3, 3, 4, 4\)"),
        (QUERY, {"attention_mask": np.ones((B, H, T, T), "int32")}, "boolean attention_mask"),
        (TILES, {"attention_mask": np.ones((2, 6, 6), bool)}, "rank 5 to 6"),
        (TILES, {"value_mask": np.ones((2, 6), bool)}, "all axes of these but the last"),
    ],
)
def test_masks_that_do_not_fit_are_refused(shape, mask, message):
    layer = randomize_built(MultiHeadAttention(H, 4), shape, shape)
    (x,) = tensors(shape)
    with pytest.raises(ValueError, match=message):
        layer(x, x, **mask)


def test_flash_attention_has_no_weights_to_return():
    layer = randomize_built(MultiHeadAttention(H, 4, flash_attention=True), QUERY, QUERY)
    (x,) = tensors(QUERY)
    with pytest.raises(ValueError, match="no return_attention_scores with flash_attention=True"):
        layer(x, x, return_attention_scores=True)


def test_kernels_of_equal_shape_start_equal_when_asked():
    for equal_start in (False, True):
        layer = MultiHeadAttention(2, 4, equal_start=equal_start)
        layer.build((None, None, 8), (None, None, 8))
        kernels = [layer.query_kernel, layer.key_kernel, layer.value_kernel, layer.output_kernel]
        for other in kernels[1:]:
            assert np.array_equal(kernels[0].numpy(), other.numpy()) == equal_start
    other = MultiHeadAttention(2, 4, equal_start=True)
    other.build((None, None, 8), (None, None, 8))
    assert not np.array_equal(other.query_kernel.numpy(), layer.query_kernel.numpy())  # each layer its own
