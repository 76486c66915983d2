"""One device, two replicas, and micro-batches: all make the same updates."""

import distributed
import keras
import numpy as np
import pytest
import small_models
import tensorflow as tf

from attention_zoo.layers import Dropout
from attention_zoo.losses import MaskedCrossentropy
from attention_zoo.models import WhitespaceTokenizer
from attention_zoo.training import ParallelText, RiskBatches, strategies


@pytest.fixture(scope="module")
def mirrored():
    """Two replicas, on the logical devices that conftest.py makes; a process takes one such strategy."""
    strategy = strategies.strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    return strategy


class TestSameUpdates:
    @pytest.mark.parametrize("name", distributed.MODELS)
    def test_on_two_replicas(self, mirrored, name):
        """With XLA in each replica of one model, which changes nothing either, but takes long."""
        result = distributed.train(name, mirrored, xla=name in distributed.WITH_XLA, short=False)
        distributed.assert_same(result, distributed.on_one_device(name))

    def test_of_micro_batches(self):
        """The Transformer is below, on replicas."""
        result = distributed.train("captioner", micro_batches=2, short=False)
        distributed.assert_same(result, distributed.on_one_device("captioner"))


def test_candidates_on_two_replicas(mirrored):
    """Minimum risk training; a batch of seven sources, of which a replica has three and a row of padding."""
    random = np.random.default_rng(0)
    words = WhitespaceTokenizer([str(i) for i in range(5)])
    phrases = [" ".join(map(str, random.integers(0, 5, random.integers(1, 4)))) for _ in range(70)]
    text, candidates = ParallelText(phrases[:14], phrases[14:28]), np.reshape(phrases[28:], (14, 3)).tolist()
    costs = random.random((14, 3))
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        batches = RiskBatches(text, candidates, costs, words, words, batch_tokens=112, max_buckets=1)
        assert batches.shapes == [(7, 4, 4, 4)]
        with strategy.scope():
            model = small_models.make_model(risk=3.0, run_eagerly=True)
        model.fit(batches.dataset(), verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_moves_the_weights():
    """So that the comparisons say something."""
    keras.utils.set_random_seed(1)
    model = distributed.make_recurrent()
    model.build()
    before = [np.array(weight) for weight in model.weights]
    after, _ = distributed.on_one_device("recurrent")
    change = [np.abs(w - v).max() for w, v in zip(after, before, strict=True)]
    assert min(change) > 0.01


@pytest.mark.slow
def test_micro_batches_on_replicas_with_averaged_weights(mirrored):
    """What an optimizer does besides: moving averages of the weights, decay, clipping of each gradient."""

    def optimizer():
        averaging = {"use_ema": True, "ema_momentum": 0.9}
        return keras.optimizers.AdamW(0.02, epsilon=1e-4, weight_decay=0.1, clipnorm=0.05, **averaging)

    expected = distributed.train("transformer", optimizer=optimizer)
    result = distributed.train("transformer", mirrored, optimizer=optimizer, micro_batches=2)
    distributed.assert_same(result, expected)


@pytest.mark.slow
def test_mixed_precision_on_replicas(mirrored):
    """With float16, which bfloat16 is like, but for the loss, which only float16 scales."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        expected, one = distributed.train("transformer", short=False)
        weights, two = distributed.train("transformer", mirrored, short=False)
    finally:
        keras.config.set_dtype_policy(before)
    # Sums in half precision depend on how the batch is cut.
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=0.02)
    for weight, other in zip(weights, expected, strict=True):
        assert np.mean(np.abs(weight - other)) < 0.02
    assert any(np.abs(weight).max() > 0 for weight in weights)


def test_replicas_drop_different_entries(mirrored):
    with mirrored.scope():
        dropout = Dropout(0.5, seed=1)

    @tf.function
    def masks():
        draw = tf.function(lambda: dropout.mask((1000,)), jit_compile=True)
        results = mirrored.run(lambda: draw())
        return mirrored.experimental_local_results(results)

    first, second = (mask.numpy() > 0 for mask in masks())
    third, fourth = (mask.numpy() > 0 for mask in masks())
    for one, other in ((first, second), (first, third), (second, third), (second, fourth)):
        assert 0.4 < np.mean(one == other) < 0.6


class TestRefusals:
    def compile(self, strategy, optimizer=None, **arguments):
        with strategy.scope():
            model = distributed.make_recurrent()
            model.compile(optimizer or keras.optimizers.Adam(), **arguments)

    def test_an_optimizer_from_outside(self, mirrored):
        with pytest.raises(ValueError, match="expected an optimizer made in the scope"):
            self.compile(mirrored, keras.optimizers.Adam())

    @pytest.mark.parametrize(
        "arguments", [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 3}]
    )
    def test_what_the_optimizer_cannot_do(self, mirrored, arguments):
        with mirrored.scope():
            optimizer = keras.optimizers.Adam(**arguments)
        with pytest.raises(ValueError, match="expected an optimizer without"):
            self.compile(mirrored, optimizer)

    def test_several_steps_at_once(self, mirrored):
        with pytest.raises(ValueError, match="expected steps_per_execution=1"):
            with mirrored.scope():
                optimizer = keras.optimizers.Adam()
            self.compile(mirrored, optimizer, steps_per_execution=2)

    def test_a_loss_that_does_not_add_up(self, mirrored):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with pytest.raises(ValueError, match="expected a loss that is averaged over the tokens"):
            self.compile(strategies.strategy("one_device"), loss=loss, micro_batches=2)
        self.compile(strategies.strategy("one_device"), loss=loss)
        self.compile(strategies.strategy("one_device"), loss=MaskedCrossentropy(), micro_batches=2)

    def test_no_micro_batches(self):
        with pytest.raises(ValueError, match="expected micro_batches of at least 1, received 0"):
            self.compile(strategies.strategy("one_device"), micro_batches=0)


@pytest.mark.slow
def test_arrays_on_replicas(mirrored):
    """Keras cuts arrays into batches itself; the last one has a row for one replica only."""
    inputs, labels = distributed.make_batch(1)

    def fit(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = distributed.make_transformer()
            model.compile(keras.optimizers.Adam(0.02, epsilon=1e-4), jit_compile=False)
        model.fit(inputs, labels, batch_size=6, epochs=2, verbose=0, shuffle=False)
        return [np.array(weight) for weight in model.get_weights()], {}

    distributed.assert_same(fit(mirrored), fit(strategies.strategy("one_device")))
