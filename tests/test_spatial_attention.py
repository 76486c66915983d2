import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import AttentionContract, B, T, random, randomize
from keras import ops
from references import sigmoid, softmax

from attention_zoo.layers.additive_attention import AdditiveAttention
from attention_zoo.layers.spatial_attention import SpatialAttention, doubly_stochastic_penalty
from attention_zoo.models.rnn_decoder import RNNDecoder

H, W, DQ, DV, DK = 2, 4, 6, 8, 7
MASK = np.array([[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 0, 0, 0], [0] * 4]], bool)


class TestSpatialAttention(AttentionContract):
    def make(self, **kwargs):
        return SpatialAttention(9, **kwargs)


class TestSpatialAttentionWithoutGate(AttentionContract):
    def make(self, **kwargs):
        return SpatialAttention(9, gate=False, **kwargs)


def built(**kwargs):
    layer = SpatialAttention(5, **kwargs)
    layer.build((None, None, DQ), (None, None, None, DV))
    return randomize(layer)


def inputs():
    return random(B, T, DQ), random(B, H, W, DV)


def flat(x, axis=1):
    """Makes one axis of a grid's two."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def test_by_hand():
    # tanh(10 + 10) and tanh(-10 + 10) are 1 and 0, so the scores are v = log 3 and 0; beta = 1/4.
    layer = SpatialAttention(1)
    layer.build((None, None, 1), (None, None, 1))
    weights = {"W_h": 5.0, "W_z": 10.0, "b": 5.0, "v": np.log(3.0), "w_beta": -2.0, "b_beta": 2 - np.log(3.0)}
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, weights[weight.name]))
    context, attention = layer(np.ones((1, 1, 1)), np.array([[[1.0], [-1.0]]]), return_attention_scores=True)
    np.testing.assert_allclose(attention, [[[0.75, 0.25]]], atol=1e-6)
    np.testing.assert_allclose(context, [[[0.25 * 0.5]]], atol=1e-6)


@pytest.mark.parametrize("gate", [True, False])
def test_grid_equals_numpy(gate):
    layer = built(gate=gate)
    weight = {w.name: w.numpy().astype("float64") for w in layer.weights}
    context, attention = layer(*inputs(), value_mask=MASK, return_attention_scores=True)
    for b, t in np.ndindex(B, T):
        h, grid = (x[b].astype("float64") for x in inputs())
        places = [(i, j) for i in range(H) for j in range(W) if MASK[b, i, j]]
        scores = [
            weight["v"] @ np.tanh(h[t] @ weight["W_h"] + grid[place] @ weight["W_z"] + weight["b"])
            for place in places
        ]
        expected = np.zeros((H, W))
        for place, a in zip(places, softmax(np.array(scores)), strict=True):
            expected[place] = a
        beta = sigmoid(h[t] @ weight["w_beta"] + weight["b_beta"]) if gate else 1.0
        np.testing.assert_allclose(attention[b, t], expected, atol=1e-5)
        c = beta * np.tensordot(expected, grid, axes=2)
        np.testing.assert_allclose(context[b, t], c, atol=1e-5)


def test_grid_equals_flat():
    layer = SpatialAttention(5)
    layer.build((None, None, DQ), (None, None, None, DV), (None, None, None, DK))
    randomize(layer)
    query, value = inputs()
    key = random(B, H, W, DK)
    mask = np.random.default_rng(1).random((B, T, H, W)) < 0.7
    context, weights = layer(
        query, value, key, key_mask=MASK, attention_mask=mask, return_attention_scores=True
    )
    flat_context, flat_weights = layer(
        query,
        flat(value),
        flat(key),
        key_mask=flat(MASK),
        attention_mask=flat(mask, 2),
        return_attention_scores=True,
    )
    assert (context.shape, weights.shape) == ((B, T, DV), (B, T, H, W))
    np.testing.assert_allclose(context, flat_context, atol=1e-6)
    np.testing.assert_allclose(flat(np.array(weights), 2), flat_weights, atol=1e-6)


def test_padding_of_a_grid_changes_nothing():
    layer = built()
    query, value = inputs()
    wide = np.pad(value, [(0, 0), (0, 1), (0, 2), (0, 0)], constant_values=9.0)
    mask = np.zeros(wide.shape[:3], bool)
    mask[:, :H, :W] = True
    context, weights = layer(query, wide, value_mask=mask, return_attention_scores=True)
    expected, expected_weights = layer(query, value, return_attention_scores=True)
    np.testing.assert_allclose(context, expected, atol=1e-5)
    np.testing.assert_allclose(weights[:, :, :H, :W], expected_weights, atol=1e-6)


def test_the_gate_only_weakens_the_context():
    with_gate, without = built(), built(gate=False)
    without.set_weights(with_gate.get_weights()[:4])
    query, value = inputs()
    gated, weights = with_gate(query, value, return_attention_scores=True)
    context, same = without(query, value, return_attention_scores=True)
    np.testing.assert_array_equal(weights, same)
    beta = sigmoid(query @ with_gate.w_beta.numpy() + float(with_gate.b_beta))[..., None]
    np.testing.assert_allclose(gated, beta * context, atol=1e-6)


def test_the_parameters_are_those_of_the_paper():
    shapes = {"W_h": (DQ, 5), "W_z": (DV, 5), "b": (5,), "v": (5,), "w_beta": (DQ,), "b_beta": ()}
    assert {w.name: tuple(w.shape) for w in built().weights} == shapes
    assert [w.name for w in built(gate=False).weights] == ["W_h", "W_z", "b", "v"]


def test_unknown_sizes_of_a_grid():
    layer = built()
    query, value = keras.Input((None, DQ)), keras.Input((None, None, DV))
    context, weights = layer(query, value, return_attention_scores=True)
    assert (context.shape, weights.shape) == ((None, None, DV), (None, None, None, None))

    @tf.function(input_signature=[tf.TensorSpec((None, None, DQ)), tf.TensorSpec((None, None, None, DV))])
    def traced(query, value):
        return layer(query, value, return_attention_scores=True)

    for x, y in zip(traced(*inputs()), layer(*inputs(), return_attention_scores=True), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_keras_file_restores_a_layer_on_a_grid(tmp_path):
    tensors = {"query": keras.Input((None, DQ), name="query"), "value": keras.Input((H, W, DV), name="value")}
    layer = SpatialAttention(5, gate=False)
    model = keras.Model(tensors, layer(**tensors))
    randomize(layer)
    model.save(tmp_path / "model.keras")
    arrays = dict(zip(tensors, inputs(), strict=True))
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "model.keras")(arrays),
        model(arrays),
    )


def test_config_holds_units_and_gate():
    copy = SpatialAttention.from_config(SpatialAttention(5, gate=False).get_config())
    assert (copy.units, copy.gate) == (5, False)


def test_units_must_be_positive():
    with pytest.raises(ValueError, match="units of at least 1"):
        SpatialAttention(0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("value_mask", (B, W, H)),
        ("value_mask", (B, H * W)),
        ("key_mask", (B, W, H)),
        ("attention_mask", (B, T, H * W)),
        ("attention_mask", (B, H, W)),
    ],
)
def test_masks_of_other_positions_are_refused(name, shape):
    with pytest.raises(ValueError, match=f"expected a {name} for the positions"):
        built()(*inputs(), **{name: np.ones(shape, bool)})


def test_a_grid_for_a_mask_of_flat_values_is_refused():
    """Read as (B, T, S), it would go wrong without a word."""
    query, value = inputs()
    with pytest.raises(ValueError, match="expected a value_mask for the positions"):
        built()(query, flat(value), value_mask=np.ones((B, T, H * W), bool))


def test_keys_of_another_grid_are_refused():
    query, value = inputs()
    for key in (value.swapaxes(1, 2), flat(value)):
        with pytest.raises(ValueError, match="expected a key for the positions"):
            built()(query, value, key)


# In a decoder.


@pytest.mark.parametrize("query_state", ["previous", "current"])
def test_a_decoder_steps_as_it_is_called(query_state):
    decoder = RNNDecoder(11, 3, DQ, attention=SpatialAttention(5), query_state=query_state)
    mask = flat(MASK)
    memory = {"values": flat(inputs()[1]), "mask": mask, "summary": random(B, DV)}
    target = np.array([[1, 5, 6], [1, 7, 2], [1, 3, 0]], "int32")
    decoder.build((None, None), {name: x.shape for name, x in memory.items()})
    randomize(decoder)
    logits, attention = decoder(target, memory, return_attention=True)
    np.testing.assert_array_equal(np.array(attention) > 0, np.repeat(mask[:, None], 3, axis=1))
    prepared = decoder.prepare(memory)
    state = decoder.initial_state(prepared)
    for t in range(3):
        step, state, weights = decoder.step(target[:, t : t + 1], state, prepared)
        np.testing.assert_allclose(step[:, 0], logits[:, t], atol=1e-5)
        np.testing.assert_allclose(weights[:, 0], attention[:, t], atol=1e-6)


# The penalty.


def test_penalty_by_hand():
    # Sums over the tokens: (1.5, 0.5) and (0, 2).
    attention = np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    found = doubly_stochastic_penalty(attention, strength=3.0)
    np.testing.assert_allclose(found, 3.0 * ((0.25 + 0.25) + (1.0 + 1.0)) / 2, rtol=1e-6)
    assert found.dtype == "float32"


def test_penalty_of_looking_once_at_everything_is_0():
    assert float(doubly_stochastic_penalty(np.eye(4)[None])) == 0.0


def test_padding_changes_no_penalty():
    attention = softmax(random(2, 3, 5, seed=2))
    expected = doubly_stochastic_penalty(attention)
    # Two more tokens, three more positions, and two images: without tokens, and without positions.
    padded = np.pad(attention, [(0, 2), (0, 2), (0, 3)], constant_values=7.0)
    mask, target_mask = np.zeros((4, 8), bool), np.zeros((4, 5), bool)
    mask[:3, :5], target_mask[[0, 1, 3], :3] = True, True
    np.testing.assert_allclose(doubly_stochastic_penalty(padded, mask, target_mask), expected, rtol=1e-5)


def test_penalty_counts_each_image_by_its_own_masks():
    attention = random(2, 3, 4, seed=5) ** 2
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    target_mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
    first = sum((1 - attention[0, :2, s].sum()) ** 2 for s in range(3))
    second = (1 - attention[1, :, 0].sum()) ** 2
    found = doubly_stochastic_penalty(attention, mask, target_mask)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-5)


def test_penalty_of_nothing_but_padding_is_0_with_gradient_0():
    attention = tf.constant(random(2, 3, 4))
    with tf.GradientTape() as tape:
        tape.watch(attention)
        penalty = doubly_stochastic_penalty(attention, np.zeros((2, 4), bool))
    assert float(penalty) == 0.0
    np.testing.assert_array_equal(tape.gradient(penalty, attention), np.zeros((2, 3, 4)))


def test_penalty_has_the_gradient_of_its_formula():
    attention = tf.constant(random(2, 3, 4) ** 2)
    with tf.GradientTape() as tape:
        tape.watch(attention)
        penalty = doubly_stochastic_penalty(attention)
    expected = -2 * (1 - attention.numpy().sum(1, keepdims=True)) / 2  # the same for every token
    np.testing.assert_allclose(
        tape.gradient(penalty, attention), np.broadcast_to(expected, (2, 3, 4)), rtol=1e-5
    )


def test_wrong_arguments_of_the_penalty_are_refused():
    attention = np.ones((2, 3, 4), "float32")
    with pytest.raises(ValueError, match=r"expected attention of shape \(B, T, S\), received \(2, 3, 2, 2\)"):
        doubly_stochastic_penalty(attention.reshape(2, 3, 2, 2))
    with pytest.raises(ValueError, match="expected a boolean mask of rank 2"):
        doubly_stochastic_penalty(attention, np.ones((2, 4)))
    with pytest.raises(ValueError, match="expected a boolean target_mask of rank 2"):
        doubly_stochastic_penalty(attention, target_mask=np.ones((2, 3, 1), bool))


def test_half_precision_memory_of_a_decoder():
    """The gate of a step is that of a call, although its query comes in float32."""
    layer = built(dtype="mixed_bfloat16")
    query, value = random(B, T, DQ), random(B, H * W, DV)
    expected = ops.cast(layer(query, value), "float32")
    context, _ = layer.attend(query, layer.project_memory(value))
    np.testing.assert_allclose(ops.cast(context, "float32"), expected, atol=1e-5)


def test_without_gate_it_is_additive_attention():
    layer, additive = built(gate=False), AdditiveAttention(5)
    layer.b.assign(np.zeros(5))
    query, value = random(B, T, DQ), random(B, H * W, DV)
    additive.build(query.shape, value.shape)
    additive.set_weights([layer.W_h, layer.W_z, layer.v])
    np.testing.assert_allclose(layer(query, value), additive(query, value), atol=1e-6)
