import math
import re

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
    decode,
    draw_weights,
    pytorch_stack,
)

from attention_zoo.models import EncoderDecoder, TransformerEncoder, search
from attention_zoo.models.transformer_decoder import TransformerDecoder

B, T, S, K = 2, 4, 5, 3
V, D, DM, N, H = 11, 8, 6, 2, 2
LENGTHS = [5, 3]
TARGET = np.array([[1, 5, 6, 9], [1, 7, 0, 0]], "int32")
SIZES = {"vocabulary_size": V, "layers": N, "units": D, "feed_forward_units": 12, "num_heads": H}
VARIANTS = {
    "sinusoidal": {},
    "halves, bias": {"position_order": "halves", "max_wavelength": 300.0, "output_bias": True},
    "sinusoidal, pre-norm": {"normalize_first": True, "activation": "gelu", "tie_embeddings": False},
    "learned": {"positions": "learned", "max_positions": 8, "scale_embeddings": False},
    "learned, pre-norm": {"positions": "learned", "max_positions": 8, "normalize_first": True},
    "rotary": {"positions": "rotary", "activation": "swish", "num_key_value_heads": 1},
    "rotary, pre-norm": {"positions": "rotary", "normalize_first": True, "tie_embeddings": False},
}

variants = pytest.mark.parametrize("variant", VARIANTS)


def example_memory():
    mask = np.arange(S) < np.array(LENGTHS)[:, None]
    return {"values": random(B, S, DM), "mask": mask, "summary": random(B, DM)}


def built(variant="sinusoidal", **kwargs):
    decoder = TransformerDecoder(**{**SIZES, "dropout": 0.0, **VARIANTS[variant], **kwargs})
    decoder.build((None, None), {name: x.shape for name, x in example_memory().items()})
    return draw_weights(decoder)


@variants
def test_equals_numpy(variant):
    decoder, memory = built(variant), example_memory()
    logits, attention = decoder(TARGET, memory, return_attention=True)
    assert logits.dtype == "float32"
    assert {name: (x.shape, x.dtype) for name, x in attention.items()} == {
        "cross": ((B, T, N, H, S), "float32"),
        "self": ((B, T, N, H, T), "float32"),
    }
    for row, length in enumerate(LENGTHS):
        expected, cross, own = decode(decoder, TARGET[row], memory["values"][row, :length])
        np.testing.assert_allclose(logits[row], expected, atol=5e-5)
        np.testing.assert_allclose(attention["cross"][row, ..., :length], cross, atol=1e-5)
        assert not np.any(attention["cross"][row, ..., length:])
        np.testing.assert_allclose(attention["self"][row], own, atol=1e-5)


# === PyTorch ===


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_pytorch_with_gradients(normalize_first, activation):
    torch = pytest.importorskip("torch")
    decoder = TransformerDecoder(**SIZES, dropout=0.0, normalize_first=normalize_first, activation=activation)
    memory = {**example_memory(), "values": random(B, S, D)}  # PyTorch has one width for all
    decoder.build((None, None), {name: x.shape for name, x in memory.items()})
    draw_weights(decoder)
    direction = random(B, T, V) * (TARGET != 0)[..., None]
    values = tf.constant(memory["values"])
    with tf.GradientTape() as tape:
        tape.watch(values)
        logits = decoder(TARGET, {**memory, "values": values})
        loss = ops.sum(logits * direction)
    gradients = tape.gradient(loss, [values, *decoder.trainable_weights])

    other, embed, pairs = pytorch_stack(torch, decoder)
    torch_values = torch.from_numpy(memory["values"]).requires_grad_()
    x = other(
        embed(TARGET),
        torch_values,
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=torch.from_numpy(TARGET == 0),
        memory_key_padding_mask=torch.from_numpy(~memory["mask"]),
    )
    torch_logits = x @ pairs[0][1].T
    (torch_logits * torch.from_numpy(direction)).sum().backward()
    real = TARGET != 0
    np.testing.assert_allclose(np.array(logits)[real], torch_logits.detach().numpy()[real], atol=1e-4)
    np.testing.assert_allclose(gradients[0], torch_values.grad.numpy(), atol=1e-4, rtol=1e-4)
    assert_same_gradients(decoder.trainable_weights, map(tf.convert_to_tensor, gradients[1:]), pairs)


# === Step by step ===


def assert_step_equals_call(decoder, tolerance, reordered=True):
    """At every position hypotheses are continued, dropped and doubled, as by beam search, or go on alone."""
    memory, generator = example_memory(), np.random.default_rng(0)
    repeated = {name: np.repeat(x, K, axis=0) for name, x in memory.items()}
    prepared = decoder.prepare(memory)
    state = decoder.initial_state(prepared, K, max_positions=T + 1, reordered=reordered)
    shapes = [tuple(x.shape) for x in tf.nest.flatten(state)]
    history = np.zeros((B, K, 0), "int32")
    rows = np.arange(B)[:, None]
    for t in range(T):
        if t:
            parent = generator.integers(0, K, (B, K)) if reordered else np.tile(np.arange(K), (B, 1))
            history = history[rows, parent]
            own = {name: part for name, part in state.items() if name in ("cache", "origin")}
            state |= tf.nest.map_structure(lambda x, p=parent: np.array(x)[rows, p], own)
        token = generator.integers(1, V, (B, K)).astype("int32")
        history = np.concatenate([history, token[..., None]], axis=-1)
        logits, state, attention = decoder.step(token, state, prepared)
        assert [tuple(x.shape) for x in tf.nest.flatten(state)] == shapes
        assert logits.dtype == "float32"
        expected, weights = decoder(history.reshape(B * K, -1), repeated, return_attention=True)
        np.testing.assert_allclose(logits, expected[:, -1].numpy().reshape(B, K, V), atol=tolerance)
        for name, width in (("cross", S), ("self", t + 1)):
            last = weights[name][:, -1].numpy().reshape(B, K, N, H, width)
            np.testing.assert_allclose(attention[name][..., :width], last, atol=tolerance)
            assert attention[name].dtype == "float32"
            assert not np.any(attention[name][..., width:])
    assert attention["self"].shape == (B, K, N, H, T + 1)


@variants
@pytest.mark.parametrize("reordered", [True, False])
def test_step_equals_call(variant, reordered):
    assert_step_equals_call(built(variant), 2e-5, reordered)


@variants
def test_step_equals_call_in_half_precision(variant):
    assert_step_equals_call(built(variant, dtype="mixed_bfloat16"), 6e-2)


def test_cache_is_in_the_compute_dtype():
    decoder = built(dtype="mixed_bfloat16")
    state = decoder.initial_state(decoder.prepare(example_memory()), K, max_positions=T)
    assert {x.dtype.name for x in tf.nest.flatten(state["shared"]["cache"])} == {"bfloat16"}
    assert state["position"].dtype == "int32"


def test_shared_heads_make_the_cache_smaller():
    sizes = {}
    for heads in (None, 1):
        decoder = built(num_key_value_heads=heads)
        state = decoder.initial_state(decoder.prepare(example_memory()), K, max_positions=T)
        sizes[heads] = sum(x.numpy().size for x in tf.nest.flatten(state["shared"]["cache"]))
    assert sizes == {None: N * 2 * B * K * T * D, 1: N * 2 * B * K * T * D // H}


# === Compiled ===


@pytest.mark.parametrize(("batch", "hypotheses"), [(B, 1), (1, 1), (1, 3)])
def test_compiled_search_writes_into_the_cache(batch, hypotheses):
    """A copy of the whole cache at every position would cost more than anything else there."""
    decoder, length = built(layers=1), 7
    memory = {name: tf.constant(x[:batch]) for name, x in example_memory().items()}

    @tf.function(jit_compile=True, autograph=False)
    def run():
        prepared = decoder.prepare(memory)
        state = decoder.initial_state(prepared, hypotheses, max_positions=length)
        step = lambda token, state: decoder.step(token, state, prepared)  # noqa: E731
        settings = {"batch_size": batch, "max_length": length - 1}
        if hypotheses == 1:
            return search.greedy(step, state, **settings)["tokens"]
        return search.beam(step, state, beams=hypotheses, **settings)["tokens"]

    program = run.experimental_get_compiler_ir()(stage="optimized_hlo")
    places, width = length * hypotheses, D // H
    cache = rf"(?:{places},{width}|{width},{places})\]"  # the last axes, however the others are laid out
    writes = re.findall(rf"dynamic-update-slice[\w.]* = f32\[[\d,]*{cache}\S* fusion", program)
    assert len(writes) == 2  # one for the keys, one for the values
    assert not re.search(rf"f32\[[\d,]*{cache}\S* copy\(%get-tuple-element", program)


def test_compiled_equals_eager_with_unknown_shapes():
    """Gradients and dropout masks too, and a step; two decoders at once, as a compile takes seconds."""
    chosen = ("learned, pre-norm", "rotary")
    rates = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2}
    decoders = [built(variant, layers=1, **rates) for variant in chosen]
    weights = [weight for decoder in decoders for weight in decoder.trainable_weights]
    generators = [v for decoder in decoders for v in decoder.non_trainable_variables if "seed" in v.path]
    # On the embeddings, on what three sublayers add, in two attentions and in the hidden layer.
    assert len(generators) == 2 * 5

    def run(target, memory):
        results = []
        with tf.GradientTape() as tape:
            tape.watch(memory["values"])
            for decoder in decoders:
                results.append(decoder(target, memory, training=True, return_attention=True))
            loss = sum(ops.mean(ops.sin(logits)) for logits, _ in results)
        gradients = tape.gradient(loss, [memory["values"], *weights])
        prepared = [decoder.prepare(memory) for decoder in decoders]
        steps = []
        for decoder, one in zip(decoders, prepared, strict=True):
            state = decoder.initial_state(one, 1, max_positions=T)
            steps.append(decoder.step(target[:, :1], {**state, "position": target[0, 0]}, one))
        return results, [tf.convert_to_tensor(g) for g in gradients], steps

    memory = {name: tf.constant(x) for name, x in example_memory().items()}
    before = [v.numpy() for v in generators]
    eager = run(tf.constant(TARGET), memory)
    for variable, value in zip(generators, before, strict=True):
        variable.assign(value)
    signature = [
        tf.TensorSpec((None, None), tf.int32),
        {
            "values": tf.TensorSpec((None, None, DM)),
            "mask": tf.TensorSpec((None, None), tf.bool),
            "summary": tf.TensorSpec((None, DM)),
        },
    ]
    compiled = tf.function(run, input_signature=signature, jit_compile=True)(tf.constant(TARGET), memory)
    for x, y in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


# === Masks ===


@variants
def test_later_tokens_change_nothing_before_them(variant):
    decoder, memory = built(variant), example_memory()
    changed = TARGET.copy()
    changed[:, 2] = [9, 4]
    before, after = np.array(decoder(TARGET, memory)), np.array(decoder(changed, memory))
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert np.all(np.abs(after[:, 2:] - before[:, 2:]).max(axis=-1) > 1e-3)


@variants
def test_padding_changes_nothing(variant):
    """Neither of the memory nor behind the target; a row with nothing to attend to becomes but finite."""
    decoder, memory = built(variant), example_memory()
    expected = decoder(TARGET, memory)
    wide = {
        "values": np.pad(memory["values"], [(0, 0), (0, 3), (0, 0)], constant_values=9.0),
        "mask": np.pad(memory["mask"], [(0, 0), (0, 3)]),
        "summary": memory["summary"],
    }
    np.testing.assert_allclose(decoder(TARGET, wide), expected, atol=1e-5)
    longer = np.pad(TARGET, [(0, 0), (0, 3)])
    np.testing.assert_allclose(decoder(longer, memory)[:, :T], expected, atol=1e-5)


@variants
def test_nothing_but_padding_stays_finite(variant):
    decoder, memory = built(variant), {**example_memory(), "mask": np.zeros((B, S), bool)}
    with tf.GradientTape() as tape:
        logits = decoder(np.zeros((B, T), "int32"), memory)
        loss = ops.sum(ops.sin(logits))
    for array in (logits, *tape.gradient(loss, decoder.trainable_weights)):
        assert np.all(np.isfinite(tf.convert_to_tensor(array)))


# === Embeddings ===


def test_tied_embeddings_are_one_matrix():
    tied, apart = (built(tie_embeddings=tie) for tie in (True, False))
    assert apart.count_params() - tied.count_params() == V * D
    memory = example_memory()
    before = np.array(tied(TARGET, memory))
    embeddings = tied.embedding.embeddings.numpy()
    embeddings[10] += 1.0  # a token that the targets do not contain: only its own logit can change
    tied.embedding.embeddings.assign(embeddings)
    after = np.array(tied(TARGET, memory))
    np.testing.assert_allclose(after[..., :10], before[..., :10], atol=1e-6)
    assert np.all(np.abs(after[..., 10] - before[..., 10]) > 1e-6)


def shared_model(share_embeddings=True, **kwargs):
    sizes = {**SIZES, "layers": 1, "dropout": 0.0}
    model = EncoderDecoder(
        TransformerEncoder(**sizes, **kwargs),
        TransformerDecoder(**sizes, **kwargs),
        share_embeddings=share_embeddings,
    )
    model.build()
    return model


def test_shared_embeddings_are_one_matrix():
    shared, apart = shared_model(), shared_model(share_embeddings=False)
    assert shared.encoder.embedding is shared.decoder.embedding
    assert apart.count_params() - shared.count_params() == V * D
    assert sum("embedding" in weight.path for weight in shared.weights) == 1
    assert shared.count_params() == sum(math.prod(weight.shape) for weight in shared.trainable_weights)


def test_gradient_of_shared_embeddings_is_the_sum_of_both_uses():
    shared, apart = shared_model(), shared_model(share_embeddings=False)
    draw_weights(shared)
    for part in ("encoder", "decoder"):
        theirs, ours = (
            {w.path.split("/", 1)[1]: w for w in getattr(m, part).weights} for m in (shared, apart)
        )
        matrix = theirs.pop(next(name for name in theirs if "embeddings" in name))
        own = ours.pop(next(name for name in ours if "embeddings" in name))
        own.assign(matrix)
        assert len(theirs) == len(ours) > 0
        for source, target in zip(theirs.values(), ours.values(), strict=True):
            target.assign(source)
    inputs = {"source": np.array([[5, 6, 2], [9, 2, 0]]), "target": TARGET}

    def gradients(model):
        embeddings = {
            id(part.embedding): part.embedding.embeddings for part in (model.encoder, model.decoder)
        }
        with tf.GradientTape() as tape:
            logits = model(inputs)
            loss = ops.sum(ops.sin(logits))
        found = tape.gradient(loss, list(embeddings.values()))
        return logits, [tf.convert_to_tensor(gradient) for gradient in found]

    logits, (gradient,) = gradients(shared)
    expected_logits, (source, target) = gradients(apart)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-6)
    assert min(np.abs(source).max(), np.abs(target).max()) > 1e-2
    np.testing.assert_allclose(gradient, source + target, atol=1e-5)


@pytest.mark.parametrize("normalize_first", [False, True])
def test_shared_model_equals_pytorch_with_gradients(normalize_first):
    """One matrix in three places: source, target and output."""
    torch = pytest.importorskip("torch")
    model = draw_weights(shared_model(normalize_first=normalize_first))
    source = np.array([[5, 6, 2], [9, 2, 0]])
    direction = random(B, T, V) * (TARGET != 0)[..., None]
    with tf.GradientTape() as tape:
        logits = model({"source": source, "target": TARGET})
        loss = ops.sum(logits * direction)
    gradients = tape.gradient(loss, model.trainable_weights)

    encoder, embed, pairs = pytorch_stack(torch, model.encoder)
    decoder, _, decoder_pairs = pytorch_stack(torch, model.decoder)  # its embedding is not used
    padding = torch.from_numpy(source == 0)
    x = decoder(
        embed(TARGET),
        encoder(embed(source), src_key_padding_mask=padding),
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        memory_key_padding_mask=padding,
    )
    torch_logits = x @ pairs[0][1].T
    (torch_logits * torch.from_numpy(direction)).sum().backward()
    real = TARGET != 0
    np.testing.assert_allclose(np.array(logits)[real], torch_logits.detach().numpy()[real], atol=1e-4)
    gradients = map(tf.convert_to_tensor, gradients)
    assert_same_gradients(model.trainable_weights, gradients, pairs + decoder_pairs[1:])


def test_shared_embeddings_survive_a_file(tmp_path):
    model = shared_model(positions="learned", max_positions=6)
    inputs = {"source": np.array([[5, 6, 2]]), "target": np.array([[1, 7]])}
    expected = model(inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.encoder.embedding is loaded.decoder.embedding
    assert loaded.count_params() == model.count_params()
    np.testing.assert_array_equal(loaded(inputs), expected)


@pytest.mark.parametrize(
    "changes", [{"units": 4}, {"vocabulary_size": 12}, {"scale_embeddings": False}], ids=str
)
def test_embeddings_that_differ_cannot_be_shared(changes):
    with pytest.raises(ValueError, match="expected a decoder with the encoder's vocabulary, embedding width"):
        EncoderDecoder(
            TransformerEncoder(**SIZES), TransformerDecoder(**{**SIZES, **changes}), share_embeddings=True
        )


# === Attention, dropout, saving, errors ===


def test_asking_for_attention_changes_nothing():
    decoder, memory = built(), example_memory()
    logits, _ = decoder(TARGET, memory, return_attention=True)
    np.testing.assert_allclose(decoder(TARGET, memory), logits, atol=1e-6)


def test_alignment_is_the_mean_of_the_heads_of_the_last_layer_but_one():
    for layers, chosen in ((1, 0), (2, 0), (3, 1)):
        decoder = built(layers=layers)
        _, attention = decoder(TARGET, example_memory(), return_attention=True)
        alignment = decoder.alignment(attention)
        assert alignment.shape == (B, T, S)
        np.testing.assert_allclose(alignment, np.mean(attention["cross"][:, :, chosen], axis=2), atol=1e-6)
        assert decoder.heads(attention) is attention
        assert set(decoder.head_parts) == set(attention)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_dropout_is_active_in_training_only(rate):
    plain, dropping, memory = built(), built(**{rate: 0.5}), example_memory()
    expected = plain(TARGET, memory)
    for training in (None, False):
        np.testing.assert_array_equal(dropping(TARGET, memory, training=training), expected)
    first, second = (np.array(dropping(TARGET, memory, training=True)) for _ in range(2))
    assert np.abs(first - expected).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


@variants
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 3e-1), ("mixed_float16", 4e-2)])
def test_half_precision_is_close(variant, policy, tolerance):
    full, half, memory = built(variant), built(variant, dtype=policy), example_memory()
    expected, weights = full(TARGET, memory, return_attention=True)
    logits, half_weights = half(TARGET, memory, return_attention=True)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, expected, atol=tolerance)
    for name in ("cross", "self"):
        assert half_weights[name].dtype == "float32"
        np.testing.assert_allclose(half_weights[name], weights[name], atol=tolerance)


def test_config_round_trip():
    arguments = {**STACK_ARGUMENTS, "tie_embeddings": False, "output_bias": True}
    decoder = TransformerDecoder(**arguments, name="writer", dtype="mixed_bfloat16")
    config_round_trip(decoder, arguments)
    arguments = {**SIZES, **VARIANTS["halves, bias"]}
    config_round_trip(TransformerDecoder(**arguments), arguments)


def test_configurations_from_before_positions_and_bias():
    expected = TransformerDecoder(**SIZES).get_config()
    new = ("position_order", "max_wavelength", "output_bias")
    config = {name: value for name, value in expected.items() if name not in new}
    assert TransformerDecoder.from_config(config).get_config() == expected


@pytest.mark.parametrize("variant", ["halves, bias", "learned, pre-norm", "rotary, pre-norm"])
def test_file_round_trip(variant, tmp_path):
    memory = example_memory()
    inputs = {
        name: keras.Input((None, *x.shape[2:]), dtype=x.dtype.name, name=name) for name, x in memory.items()
    }
    inputs["summary"] = keras.Input((DM,), name="summary")
    target = keras.Input((None,), dtype="int32", name="target")
    decoder = built(variant)
    model = keras.Model({"target": target, **inputs}, decoder(target, inputs, return_attention=True))
    logits, attention = model.output
    assert logits.shape == (None, None, V)
    assert {name: x.shape for name, x in attention.items()} == dict.fromkeys(
        ("cross", "self"), (None, None, N, H, None)
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    pairs = [model({"target": TARGET, **memory}) for model in (model, loaded)]
    for x, y in zip(*map(tf.nest.flatten, pairs), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "TransformerDecoder: expected units of at least 1, received 0"),
        ({"num_heads": 3}, "TransformerDecoder: expected num_heads to divide units, received 3 and 8"),
        ({"positions": "random"}, "TransformerDecoder: expected positions among .*, received 'random'"),
        ({"positions": "learned"}, 'expected max_positions with positions="learned"'),
        ({"max_positions": 9}, "received max_positions=9 and positions='sinusoidal'"),
        ({"dropout": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerDecoder(**{**SIZES, **arguments})


def test_sentence_longer_than_the_learned_positions_is_refused():
    decoder, memory = built("learned"), example_memory()
    with pytest.raises(ValueError, match="expected at most 8 positions, received 9"):
        decoder(np.ones((B, 9), "int32"), memory)
    prepared = decoder.prepare(memory)
    decoder.initial_state(prepared, max_positions=8)
    with pytest.raises(ValueError, match="expected at most 8 positions, the start token's included"):
        decoder.initial_state(prepared, max_positions=9)


def test_state_needs_a_size():
    decoder = built()
    with pytest.raises(ValueError, match="expected max_positions, the size of the cache, received None"):
        decoder.initial_state(decoder.prepare(example_memory()))
