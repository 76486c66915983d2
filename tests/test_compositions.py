"""Every decoder runs on every encoder, and the presets of Transformers have the published sizes."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from attention_zoo.layers import AdditiveAttention, LuongAttention, MultiHeadAttention
from attention_zoo.models import (
    EncoderDecoder,
    RNNDecoder,
    RNNEncoder,
    TransformerDecoder,
    TransformerEncoder,
)
from attention_zoo.models.presets import get_preset
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID

V, D, UNITS, N, H, L = 9, 8, 6, 2, 2, 4
SOURCE = np.array([[5, 6, 7, 8, END_ID], [4, END_ID, 0, 0, 0], [8, 8, 5, END_ID, 0]], "int32")
TARGET = np.array([[START_ID, 5, 6, 7], [START_ID, 4, 0, 0], [START_ID, 8, 8, 5]], "int32")
LABELS = np.array([[5, 6, 7, END_ID], [4, END_ID, 0, 0], [8, 8, 5, END_ID]], "int32")
B, S, T = *SOURCE.shape, TARGET.shape[1]
TRANSFORMER = {"layers": N, "units": D, "feed_forward_units": 12, "num_heads": H, "dropout": 0.0}


def transformer_and_rnn(make_attention, query_state="previous"):
    return lambda: (
        TransformerEncoder(V, **TRANSFORMER),
        RNNDecoder(V, 5, UNITS, make_attention(), query_state=query_state),
    )


PARTS = {
    "RNN without attention over Transformer": transformer_and_rnn(lambda: None),
    **{
        f"RNN with {name} attention of the {query_state} state over Transformer": transformer_and_rnn(
            make, query_state
        )
        for name, make in {
            "additive": lambda: AdditiveAttention(4),
            "general": lambda: LuongAttention("general"),
            "multi-head": lambda: MultiHeadAttention(H, 3),
        }.items()
        for query_state in ("previous", "current")
    },
    "Transformer over RNN": lambda: (RNNEncoder(V, 5, UNITS), TransformerDecoder(V, **TRANSFORMER)),
    "Transformer over Transformer": lambda: (
        TransformerEncoder(V, **TRANSFORMER),
        TransformerDecoder(V, **TRANSFORMER),
    ),
}
HEADLESS, WITH_HEADS, TRANSFORMERS = (
    [name for name in PARTS if word in name and name.startswith(first)]
    for word, first in (("", "RNN with "), ("multi-head", ""), ("", "Transformer"))
)
HEADLESS = [name for name in HEADLESS if name not in WITH_HEADS]

compositions = pytest.mark.parametrize("name", PARTS)


def make_model(name):
    keras.utils.set_random_seed(1)
    model = EncoderDecoder(*PARTS[name]())
    model.build()
    return model


@pytest.fixture(scope="module")
def models():
    return {name: make_model(name) for name in PARTS}


def teacher_forced(model, target=TARGET, rows=slice(None)):
    memory = model.encoder(SOURCE[rows], training=False)
    return model.decoder(target, memory, return_attention=True)


@compositions
def test_step_equals_call(models, name):
    model, K = models[name], 2
    targets = np.random.default_rng(0).integers(1, V, size=(B, K, T)).astype("int32")
    prepared = model.decoder.prepare(model.encoder(SOURCE))
    state = model.decoder.initial_state(prepared, K, max_positions=T)
    expected = [teacher_forced(model, targets[:, k]) for k in range(K)]
    for t in range(T):
        logits, state, attention = model.decoder.step(targets[:, :, t], state, prepared)
        assert np.all(np.isfinite(logits))
        for k in range(K):
            np.testing.assert_allclose(logits[:, k], expected[k][0][:, t], atol=2e-5)
            pairs = zip(tf.nest.flatten(attention), tf.nest.flatten(expected[k][1]), strict=True)
            for stepped, called in pairs:
                if called is not None:
                    np.testing.assert_allclose(stepped[:, k], called[:, t], atol=1e-5)


# === Attention ===


def assert_looks_at_real_positions(alignment):
    """(B, T, S): each position spreads 1 over the real positions of the source."""
    assert alignment.shape == (B, T, S)
    np.testing.assert_allclose(np.sum(alignment, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(np.array(alignment) > 0, np.repeat(SOURCE[:, None] != 0, T, axis=1))


@pytest.mark.parametrize("name", HEADLESS)
def test_attention_of_one_head(models, name):
    decoder, (_, attention) = models[name].decoder, teacher_forced(models[name])
    assert_looks_at_real_positions(attention)
    assert decoder.alignment(attention) is attention
    heads = decoder.heads(attention)
    assert {part: x.shape for part, x in heads.items()} == {"cross": (B, T, 1, 1, S)}
    np.testing.assert_array_equal(heads["cross"][:, :, 0, 0], attention)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_attention_of_several_heads(models, name):
    decoder, (_, attention) = models[name].decoder, teacher_forced(models[name])
    assert attention.shape == (B, T, H, S)
    alignment = decoder.alignment(attention)
    assert_looks_at_real_positions(alignment)
    np.testing.assert_allclose(alignment, np.mean(attention, axis=2), atol=1e-6)
    heads = decoder.heads(attention)
    assert {part: x.shape for part, x in heads.items()} == {"cross": (B, T, 1, H, S)}
    np.testing.assert_array_equal(heads["cross"][:, :, 0], attention)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_of_several_layers(models, name):
    decoder, (_, attention) = models[name].decoder, teacher_forced(models[name])
    expected = {"cross": (B, T, N, H, S), "self": (B, T, N, H, T)}
    assert {part: x.shape for part, x in attention.items()} == expected
    assert_looks_at_real_positions(decoder.alignment(attention))
    assert decoder.heads(attention) == attention


def test_no_attention(models):
    model = models["RNN without attention over Transformer"]
    assert teacher_forced(model)[1] is None
    assert not model.decoder.has_attention


@compositions
def test_parts_say_what_attention_they_have(models, name):
    model, (_, attention) = models[name], teacher_forced(models[name])
    assert model.decoder.has_attention == (attention is not None)
    assert model.encoder.has_attention == ("attention" in model._encode(SOURCE, return_attention=True))
    if attention is not None:
        assert set(model.decoder.head_parts) == set(model.decoder.heads(attention))


# === Search ===


@pytest.fixture(scope="module")
def found(models):
    """What greedy search finds, compiled as `generate` does it, but for all models at once."""
    settings = {"max_length": L, "return_attention": True}

    def run(source):
        return {name: model.decode(settings, source) for name, model in models.items()}

    return tf.function(run, jit_compile=True, autograph=False)(tf.constant(SOURCE))


@compositions
def test_greedy_search_takes_the_most_probable_tokens(models, found, name):
    """Each is what `call` predicts for the tokens before it."""
    result = {part: x if x is None else tf.nest.map_structure(np.array, x) for part, x in found[name].items()}
    model, tokens = models[name], result["tokens"][:, 0]
    assert tokens.shape == (B, L + 1)
    target = np.concatenate([np.full((B, 1), START_ID), tokens[:, :-1]], axis=1).astype("int32")
    logits, attention = teacher_forced(model, target)
    log_probabilities = ops.convert_to_numpy(ops.log_softmax(logits))
    never = [PAD_ID, START_ID]
    for row in range(B):
        count = int(result["lengths"][row, 0])
        assert 1 <= count <= L + 1
        total = 0.0
        for t in range(min(count, L)):
            allowed = np.delete(log_probabilities[row, t], never).max()
            total += log_probabilities[row, t, tokens[row, t]]
            np.testing.assert_allclose(log_probabilities[row, t, tokens[row, t]], allowed, atol=1e-4)
        if attention is None:
            assert result["attention"] is None
        else:
            alignment = ops.convert_to_numpy(model.decoder.alignment(attention))
            t = min(count, L)
            np.testing.assert_allclose(result["alignment"][row, 0, :t], alignment[row, :t], atol=1e-5)


def test_generate_with_a_learned_table_that_is_too_short():
    """An error: once compiled, steps past it would be NaN."""
    sizes = {**TRANSFORMER, "positions": "learned", "max_positions": S}
    model = EncoderDecoder(TransformerEncoder(V, **sizes), TransformerDecoder(V, **sizes))
    model.build()
    with pytest.raises(ValueError, match=f"expected at most {S} positions, the start token's included"):
        model.generate(SOURCE, max_length=S)


# === Training ===


def losses_of_training(model, epochs, **compilation):
    model.compile(keras.optimizers.Adam(0.003), metrics=[], **compilation)
    inputs = {"source": SOURCE, "target": TARGET}
    return model.fit(inputs, LABELS, batch_size=B, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@compositions
def test_training_lowers_the_loss(name):
    losses = losses_of_training(make_model(name), epochs=2, run_eagerly=True)
    assert np.all(np.isfinite(losses))
    assert losses[1] < losses[0]


def test_compiled_training_equals_eager_training():
    name = "Transformer over RNN"
    compiled, eager = (
        losses_of_training(make_model(name), epochs=2, **compilation)
        for compilation in ({"jit_compile": True}, {"run_eagerly": True})
    )
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


# === Shared embeddings ===

SHARING = {
    "RNN over Transformer": lambda: (
        TransformerEncoder(V, **TRANSFORMER),
        RNNDecoder(V, D, UNITS, AdditiveAttention(4), tie_embeddings=True),
    ),
    "Transformer over RNN": lambda: (RNNEncoder(V, D, UNITS), TransformerDecoder(V, **TRANSFORMER)),
    "RNN over RNN": lambda: (RNNEncoder(V, D, UNITS), RNNDecoder(V, D, UNITS, AdditiveAttention(4))),
}


@pytest.mark.parametrize("name", SHARING)
def test_shared_embeddings_are_one_matrix_before_and_after_a_file(name, tmp_path):
    model = EncoderDecoder(*SHARING[name](), share_embeddings=True)
    model.build()
    apart = EncoderDecoder(*SHARING[name]())
    apart.build()
    assert apart.count_params() - model.count_params() == V * D
    model.compile(keras.optimizers.Adam(0.02), run_eagerly=True)
    inputs = {"source": SOURCE, "target": TARGET}
    before = model.encoder.embedding.embeddings.numpy()
    model.fit(inputs, LABELS, verbose=0)
    assert np.abs(model.encoder.embedding.embeddings.numpy() - before).max() > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        assert one.encoder.embedding is one.decoder.embedding
        assert one.count_params() == model.count_params()
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    loaded.fit(inputs, LABELS, verbose=0)  # with the optimizer's state, one moment for one matrix


@pytest.mark.parametrize(
    "parts",
    [
        lambda: (TransformerEncoder(V, **TRANSFORMER), RNNDecoder(V, D + 1, UNITS)),
        lambda: (RNNEncoder(V, D + 1, UNITS), TransformerDecoder(V, **TRANSFORMER)),
        lambda: (RNNEncoder(V + 1, D, UNITS), RNNDecoder(V, D, UNITS)),
    ],
)
def test_embeddings_of_different_sizes_cannot_be_shared(parts):
    with pytest.raises(ValueError, match="expected a decoder with the encoder's vocabulary, embedding width"):
        EncoderDecoder(*parts(), share_embeddings=True)


def test_embeddings_that_exist_cannot_be_shared():
    encoder, decoder = SHARING["RNN over RNN"]()
    encoder.build()
    with pytest.raises(ValueError, match="without weights"):
        EncoderDecoder(encoder, decoder, share_embeddings=True)


# === Published sizes ===

CLASSES = {"TransformerEncoder": TransformerEncoder, "TransformerDecoder": TransformerDecoder}


def parameters(size, vocabulary):
    """With one matrix for source, target and output; written out from the paper's section 3."""
    layers, d, hidden = {
        "tiny": (4, 128, 256),
        "small": (4, 256, 1024),
        "base": (6, 512, 2048),
        "big": (6, 1024, 4096),
    }[size]
    attention = 4 * (d * d + d)
    feed_forward = (d * hidden + hidden) + (hidden * d + d)
    norm = 2 * d
    encoder = layers * (attention + feed_forward + 2 * norm)
    decoder = layers * (2 * attention + feed_forward + 3 * norm)
    return vocabulary * d + encoder + decoder


def counted(size, vocabulary):
    """The weights of a preset, of one layer and the smallest vocabulary, so that no large one is made."""
    preset = get_preset(f"transformer_{size}")
    total = 0
    for arguments in (preset.encoder, preset.decoder):
        arguments = dict(arguments)
        make, layers = CLASSES[arguments.pop("class")], arguments.pop("layers")
        layer = make(1, layers=1, **arguments)
        shape = {"values": (None, None, layer.units), "mask": (None, None)}
        layer.build(*((None, shape) if "tie_embeddings" in arguments else ()))
        embeddings = layer.embedding.count_params()
        assert embeddings == layer.units
        total += layers * (layer.count_params() - embeddings)
    return total + vocabulary * layer.units


@pytest.mark.parametrize(
    ("size", "vocabulary", "published"),
    [
        ("base", 37_000, 63.1e6),  # Vaswani et al. 2017, table 3, says 65 million
        ("big", 37_000, 214e6),  # and 213 million
        ("tiny", 10_000, 2.6e6),  # Wu et al. 2021, "Good for Misconceived Reasons", table 1
    ],
)
def test_transformers_have_the_published_sizes(size, vocabulary, published):
    assert parameters(size, vocabulary) == pytest.approx(published, rel=3e-3)
    assert counted(size, vocabulary) == parameters(size, vocabulary)


def test_small_transformer_lies_between():
    assert counted("small", 10_000) == parameters("small", 10_000)
    assert parameters("tiny", 10_000) < parameters("small", 10_000) < parameters("base", 10_000)


def test_whole_preset_counts_one_embedding():
    """The same closed form for a preset that is cheap to make."""
    preset = get_preset("transformer_tiny")
    encoder, decoder = (
        CLASSES[arguments["class"]](100, **{k: v for k, v in arguments.items() if k != "class"})
        for arguments in (preset.encoder, preset.decoder)
    )
    model = EncoderDecoder(encoder, decoder, share_embeddings=True)
    model.build()
    assert model.count_params() == parameters("tiny", 100)
    assert model.count_params() == sum(math.prod(weight.shape) for weight in model.trainable_weights)
