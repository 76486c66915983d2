import keras
import numpy as np
import pytest
import tensorflow as tf
from distributed import V
from small_models import make_batch

from attention_zoo.layers import AdditiveAttention
from attention_zoo.models import (
    Captioner,
    EncoderDecoder,
    ImageEncoder,
    RNNDecoder,
    RNNEncoder,
    TransformerDecoder,
    TransformerEncoder,
    WhitespaceTokenizer,
    parallel_rows,
)
from attention_zoo.models.halves import DropoutStates, can_be_halved

SIZES = {"layers": 1, "units": 8, "num_heads": 2, "feed_forward_units": 12, "dropout": 0.3}


@pytest.fixture
def set_cores(monkeypatch):
    return lambda count: monkeypatch.setattr(parallel_rows, "parts_at_once", lambda: count)


def make_transformer():
    return EncoderDecoder(TransformerEncoder(V, **SIZES), TransformerDecoder(V, **SIZES))


def make_recurrent():
    """With dropout between layers, whose mask the steps of a loop share."""
    decoder = RNNDecoder(V, 5, 6, AdditiveAttention(4), layers=2, dropout=0.3)
    return EncoderDecoder(RNNEncoder(V, 5, 4, layers=2, dropout=0.3), decoder)


def make_captioner():
    encoder = ImageEncoder("self_attention_cnn", image_size=8, widths=[4], attention_stages=1, dropout=0.3)
    decoder = RNNDecoder(V, 5, 6, AdditiveAttention(4), dropout=0.3)
    words = WhitespaceTokenizer([f"w{number}" for number in range(V - 4)])
    return Captioner(encoder, decoder, words, doubly_stochastic=1.0)


def batch_of(make, rows, seed):
    inputs, labels = make_batch(rows, seed, vocabulary_size=V)
    if make is make_captioner:
        inputs["source"] = np.random.default_rng(seed).integers(0, 256, (rows, 8, 8, 3)).astype("float32")
    return inputs, labels


@pytest.mark.parametrize("make", [make_transformer, make_recurrent, make_captioner])
def test_halves_train_as_the_whole_does(make, set_cores):
    """The masks of dropout are the same, too. The row without another has one of padding beside it."""
    set_cores(2)
    weights, losses, draws = [], [], []
    for eager in (True, False):  # what runs eagerly is not halved
        keras.utils.set_random_seed(3)
        model = make()
        model.compile(keras.optimizers.SGD(0.5), run_eagerly=eager)
        losses.append([model.train_on_batch(*batch_of(make, 5, seed))[0] for seed in range(2)])
        weights.append(model.get_weights())
        draws.append([generator.state.numpy().tolist() for generator in model._dropout_generators()])
    assert can_be_halved(model, 5)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for whole, halves in zip(*weights, strict=True):
        np.testing.assert_allclose(whole, halves, atol=2e-5)
    assert draws[0] == draws[1]
    assert sum(number for _, number in draws[0]) > 5


def calls(model):
    """Where a step of training calls the compiled function of forward and backward."""
    inputs, labels = keras.tree.map_structure(tf.constant, batch_of(None, 4, 0))
    step = tf.function(lambda: model.train_step((inputs, labels)), autograph=False)
    graph = step.get_concrete_function().graph
    calls = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    return [op for op in calls if "_gradients" in op.get_attr("f").name]


def ancestors(op):
    found, waiting = set(), [op]
    while waiting:
        op = waiting.pop()
        before = {*op.control_inputs, *(x.op for x in op.inputs)} - found
        found |= before
        waiting += before
    return found


def test_no_half_waits_for_the_other(set_cores):
    set_cores(2)
    model = make_transformer()
    model.compile(keras.optimizers.SGD(0.5))
    halves = calls(model)
    assert len(halves) == 2
    assert not {*halves} & {*ancestors(halves[0]), *ancestors(halves[1])}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"micro_batches": 2}, 2),  # one after the other, to save memory
        ({"jit_compile": False}, 0),
        ({"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}, 1),  # no mean over tokens
    ],
)
def test_who_asks_for_another_way_gets_it(set_cores, arguments, count):
    set_cores(2)
    model = make_transformer()
    model.compile(keras.optimizers.SGD(0.5), **arguments)
    found = calls(model)
    assert len(found) == count
    assert all(found[0] in ancestors(other) for other in found[1:])


def test_what_can_be_halved(set_cores):
    model = make_recurrent()
    set_cores(2)
    assert can_be_halved(model, 2)
    assert can_be_halved(model, None)
    assert not can_be_halved(model, 1)
    set_cores(1)
    assert not can_be_halved(model, 2)


@pytest.mark.parametrize("layer", [keras.layers.BatchNormalization, lambda: keras.layers.Dropout(0.1)])
def test_layers_that_a_step_changes_get_the_whole_batch(set_cores, layer):
    set_cores(2)
    model = make_recurrent()
    assert can_be_halved(model, 2)
    model.encoder.extra = layer()
    model.encoder.extra.build((None, 4))
    assert not can_be_halved(model, 2)


def test_a_model_without_dropout():
    states = DropoutStates(EncoderDecoder(RNNEncoder(V, 5, 4), RNNDecoder(V, 5, 6)))
    assert states.read().shape == (0, 2)
    states.advance(tf.zeros(0, "uint32"))
