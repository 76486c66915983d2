"""What every attention layer must hold to: a test file subclasses the contract and makes its layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

B, T, S = 3, 4, 5


def random(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype("float32")


def randomize(layer):
    """Gives every weight a random value, those that start at zero or one too."""
    layer.set_weights([random(*w.shape, seed=7 + i) for i, w in enumerate(layer.get_weights())])
    return layer


class AttentionContract:
    """Subclass as `class TestX(AttentionContract)` and define `make(**kwargs)`."""

    query_dim = 6
    key_dim = 7
    value_dim = 8

    def make(self, **kwargs):
        raise NotImplementedError

    # What differs where weights have an axis of heads and contexts are projected.

    weights_shape = (None, None, None)

    def as_weights(self, x):
        """(B, T, S) -> the shape of the weights."""
        return x

    def nothing(self, layer):
        """The context of a query that may attend to nothing."""
        return np.zeros(self.value_dim)

    # What the tests share.

    def built(self, **kwargs):
        layer = self.make(**kwargs)
        layer.build((None, None, self.query_dim), (None, None, self.value_dim), (None, None, self.key_dim))
        return randomize(layer)

    def inputs(self):
        """Query, value and key."""
        return random(B, T, self.query_dim), random(B, S, self.value_dim), random(B, S, self.key_dim)

    def gradients(self, layer, query, value, key, **kwargs):
        """Context, weights, and the gradients for the inputs and the layer's weights."""
        inputs = [tf.convert_to_tensor(x) for x in (query, value, key)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            context, weights = layer(*inputs, return_attention_scores=True, **kwargs)
            loss = tf.reduce_sum(tf.sin(tf.cast(context, "float32")))
        return context, weights, tape.gradient(loss, inputs + layer.trainable_weights)

    # Saving.

    def test_config_holds_every_argument(self):
        layer = self.make(dropout=0.25, seed=3, name="attention")
        copy = type(layer).from_config(layer.get_config())
        assert copy.get_config() == layer.get_config()
        assert (copy.dropout, copy.seed, copy.name) == (0.25, 3, "attention")

    def test_keras_file_restores_everything(self, tmp_path):
        query, value, key = self.inputs()
        arrays = {"query": query, "value": value, "key": key}
        tensors = {name: keras.Input((None, x.shape[-1]), name=name) for name, x in arrays.items()}
        layer = self.make()
        model = keras.Model(tensors, layer(**tensors, return_attention_scores=True))
        randomize(layer)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(after, before)
        for before, after in zip(model(arrays), loaded(arrays), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-6)

    def test_layer_built_without_a_call_is_rebuilt(self):
        layer = self.built()
        copy = type(layer).from_config(layer.get_config())
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
        np.testing.assert_allclose(copy(*self.inputs()), layer(*self.inputs()), atol=1e-6)

    def test_shapes_before_any_data(self):
        query, value, key = (keras.Input((None, d)) for d in (self.query_dim, self.value_dim, self.key_dim))
        layer = self.make()
        context, weights = layer(query, value, key, return_attention_scores=True)
        assert context.shape == (None, None, self.value_dim)
        assert weights.shape == self.weights_shape

    # Masks.

    @pytest.mark.parametrize("name", ["value_mask", "key_mask", "attention_mask"])
    def test_mask_hides_what_is_false(self, name):
        layer = self.built()
        query, value, key = self.inputs()
        mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)  # (B, S)
        given = np.repeat(mask[:, None], T, axis=1) if name == "attention_mask" else mask
        context, weights = layer(query, value, key, return_attention_scores=True, **{name: given})
        weights = np.array(weights)
        np.testing.assert_array_equal(weights > 0, self.as_weights(np.repeat(mask[:, None], T, axis=1)))
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
        value, key = np.where(mask[..., None], value, 50.0), np.where(mask[..., None], key, 50.0)
        np.testing.assert_allclose(layer(query, value, key, **{name: given}), context, atol=1e-5)

    def test_attention_mask_may_differ_by_query(self):
        mask = np.random.default_rng(1).random((B, T, S)) < 0.5
        mask[:, :, 0] = True
        _, weights = self.built()(*self.inputs(), attention_mask=mask, return_attention_scores=True)
        np.testing.assert_array_equal(np.array(weights) > 0, self.as_weights(mask))

    def test_causal_mask_hides_the_future(self):
        layer = self.built()
        query, value, key = self.inputs()
        context, weights = layer(query, value, key, use_causal_mask=True, return_attention_scores=True)
        expected = self.as_weights(np.tri(T, S)[None].repeat(B, 0) > 0)
        np.testing.assert_array_equal(np.array(weights) > 0, expected)
        value[:, 2:] += 9.0
        key[:, 2:] += 9.0
        later = layer(query, value, key, use_causal_mask=True)
        np.testing.assert_allclose(later[:, :2], context[:, :2], atol=1e-5)
        assert np.abs(later[:, 2:] - context[:, 2:]).max() > 0.1

    def test_masks_are_combined(self):
        value_mask = np.array([[1, 0, 1, 1, 1]] * B, bool)
        _, weights = self.built()(
            *self.inputs(), value_mask=value_mask, use_causal_mask=True, return_attention_scores=True
        )
        expected = (np.tri(T, S) > 0) & value_mask[:, None]
        np.testing.assert_array_equal(np.array(weights) > 0, self.as_weights(expected))

    def test_masks_of_the_inputs_are_found(self):
        """Keras hands on the masks that Embedding made; the context keeps the query's."""
        layer = self.built()
        query, value, key = (ops.convert_to_tensor(x) for x in self.inputs())
        query_mask = np.array([[1, 1, 1, 0]] * B, bool)
        value_mask = np.array([[1, 1, 1, 0, 0]] * B, bool)
        expected = layer(query, value, key, query_mask=query_mask, value_mask=value_mask)
        query._keras_mask, value._keras_mask = (
            ops.convert_to_tensor(query_mask),
            ops.convert_to_tensor(value_mask),
        )
        context, weights = layer(query, value, key, return_attention_scores=True)
        np.testing.assert_allclose(context, expected, atol=1e-6)
        allowed = self.as_weights(query_mask[:, :, None] & value_mask[:, None])
        np.testing.assert_array_equal(np.array(weights) > 0, allowed)
        for row in context[:, 3]:
            np.testing.assert_array_equal(row, self.nothing(layer))
        np.testing.assert_array_equal(context._keras_mask, query_mask)

    def test_wrong_masks_are_refused(self):
        layer = self.built()
        with pytest.raises(ValueError, match="boolean"):
            layer(*self.inputs(), value_mask=np.ones((B, S), "float32"))
        with pytest.raises(ValueError, match="attention_mask"):
            layer(*self.inputs(), attention_mask=np.ones((T, S), bool))

    def test_padding_changes_nothing(self):
        layer = self.built()
        query, value, key = self.inputs()
        expected, expected_weights = layer(query, value, key, return_attention_scores=True)
        wide = [np.pad(x, [(0, 0), (0, 6), (0, 0)], constant_values=3.0) for x in (value, key)]
        mask = np.arange(S + 6)[None].repeat(B, 0) < S
        context, weights = layer(query, *wide, value_mask=mask, return_attention_scores=True)
        np.testing.assert_allclose(context, expected, atol=1e-5)
        np.testing.assert_allclose(weights[..., :S], expected_weights, atol=1e-5)

    def test_nothing_to_attend_to_gives_zeros(self):
        """In half precision too, where `keras.layers.Attention` returns NaN."""
        mask = np.array([[1] * S, [0] * S, [1] * S], bool)
        for dtype in ("float32", "mixed_float16"):
            layer = self.built(dtype=dtype)
            context, weights, gradients = self.gradients(layer, *self.inputs(), value_mask=mask)
            for row in context[1]:
                np.testing.assert_array_equal(row, self.nothing(layer))
            np.testing.assert_array_equal(weights[1], np.zeros_like(weights[1]))
            for gradient in gradients:
                assert np.all(np.isfinite(gradient))
            for gradient in gradients[:3]:
                np.testing.assert_array_equal(gradient[1], np.zeros_like(gradient[1]))

    # Numbers.

    @pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 3e-2), ("mixed_float16", 4e-3)])
    def test_half_precision_is_close(self, policy, tolerance):
        layer, half = self.built(), self.built(dtype=policy)
        inputs = [x / 2 for x in self.inputs()]
        mask = np.arange(S)[None].repeat(B, 0) < 4
        context, weights = layer(*inputs, value_mask=mask, return_attention_scores=True)
        half_context, half_weights = half(*inputs, value_mask=mask, return_attention_scores=True)
        assert half_context.dtype.name == policy.removeprefix("mixed_")
        assert half_weights.dtype == "float32"
        np.testing.assert_allclose(ops.cast(half_context, "float32"), context, atol=tolerance * 2)
        np.testing.assert_allclose(half_weights, weights, atol=tolerance)

    def test_large_half_precision_scores_stay_finite(self):
        """Scores beyond 65504, the end of float16."""
        query, value, key = self.inputs()
        context, weights, gradients = self.gradients(
            self.built(dtype="mixed_float16"), 200.0 * query, value, 200.0 * key
        )
        for x in (context, weights, *gradients):
            assert np.all(np.isfinite(x))

    def test_compiled_equals_eager(self):
        layer = self.built()
        mask = np.arange(S)[None].repeat(B, 0) < np.array([[5], [2], [0]])

        def run(*inputs):
            return self.gradients(layer, *inputs, value_mask=tf.constant(mask), use_causal_mask=True)

        eager = run(*self.inputs())
        compiled = tf.function(run, jit_compile=True)(*self.inputs())
        for x, y in zip(tf.nest.flatten(eager), tf.nest.flatten(compiled), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5)

    def test_weights_are_those_before_dropout(self):
        query, value, key = self.inputs()
        layer = self.built(dropout=0.5, seed=1)
        context, weights = layer(query, value, key, return_attention_scores=True)
        dropped, training_weights = layer(query, value, key, return_attention_scores=True, training=True)
        np.testing.assert_allclose(np.sum(weights, -1), 1.0, atol=1e-6)
        np.testing.assert_array_equal(training_weights, weights)
        assert np.abs(dropped - context).max() > 1e-2

    def test_asking_for_weights_changes_nothing(self):
        for training in (False, True):
            asked, silent = self.built(dropout=0.5, seed=1), self.built(dropout=0.5, seed=1)
            context, _ = asked(*self.inputs(), return_attention_scores=True, training=training)
            np.testing.assert_array_equal(silent(*self.inputs(), training=training), context)

    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
    def test_projected_memory_equals_call(self, policy):
        layer = self.built(dtype=policy)
        query, value, key = self.inputs()
        mask = np.arange(S)[None].repeat(B, 0) < 3
        context, weights = layer(query, value, key, value_mask=mask, return_attention_scores=True)
        memory = layer.project_memory(value, key)
        for t in range(T):  # as a decoder does: one query at a time
            step, step_weights = layer.attend(query[:, t : t + 1], memory, mask[:, None])
            assert step.dtype == context.dtype
            np.testing.assert_allclose(
                ops.cast(step, "float32"), ops.cast(context[:, t : t + 1], "float32"), atol=1e-5
            )
            np.testing.assert_allclose(step_weights, weights[..., t : t + 1, :], atol=1e-5)

    def test_wrong_shapes_are_refused(self):
        with pytest.raises(ValueError, match="expected a query of shape"):
            self.make().build((None, self.query_dim), (None, None, self.value_dim))
        with pytest.raises(ValueError, match="expected a key for each value"):
            self.make().build((B, T, self.query_dim), (B, S, self.value_dim), (B, S + 1, self.key_dim))
