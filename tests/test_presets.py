import copy
import inspect

import keras
import numpy as np
import pytest

from attention_zoo import layers, models
from attention_zoo.models.presets import PRESETS, get_preset, override

RECURRENT = [name for name, preset in PRESETS.items() if preset.encoder["class"] == "RNNEncoder"]
FAMILIES = ["seq2seq", "bahdanau", "luong_dot", "luong_general", "luong_concat"]
SOURCE_WORDS, TARGET_WORDS = ["a", "b", "c"], ["x", "y"]


def default(arguments, name):
    made = getattr(models, arguments["class"])
    return arguments.get(name, inspect.signature(made).parameters[name].default)


def dense(inputs, outputs, bias=True):
    return (inputs + bias) * outputs


def gates_and_cell(cell, units):
    """Width of a cell's projected inputs, and its own parameters."""
    parts = {"gru": 3, "lstm": 4}[cell]
    return parts * units, units * parts * units + (units if cell == "gru" else 0)


def encoder_parameters(encoder, vocabulary):
    units, width = encoder["units"], encoder["embedding_dim"]
    directions = 2 if default(encoder, "bidirectional") else 1
    gates, cell = gates_and_cell(default(encoder, "cell"), units)
    total = vocabulary * width
    for _ in range(default(encoder, "layers")):
        total += directions * (dense(width, gates) + cell)
        width = directions * units
    return total, width


def attention_parameters(attention, query, key):
    kind, units = attention.get("score", "additive"), attention.get("units")
    return {
        "additive": lambda: query * units + key * units + units,
        "concat": lambda: query * units + key * units + units,
        "general": lambda: query * key,
        "dot": lambda: 0,
    }[kind]()


def decoder_parameters(decoder, vocabulary, memory):
    units, embedding, count = decoder["units"], decoder["embedding_dim"], default(decoder, "layers")
    readout = default(decoder, "readout_units") or embedding
    feeding = decoder["attention"] is not None and default(decoder, "query_state") == "current"
    cell_kind = default(decoder, "cell")
    gates, cell = gates_and_cell(cell_kind, units)
    total = vocabulary * embedding + vocabulary  # embeddings and output bias
    total += 0 if default(decoder, "tie_embeddings") else vocabulary * readout
    total += dense(embedding, gates) + dense(readout if feeding else memory, gates, bias=False)
    total += count * cell + (count - 1) * dense(units, gates)
    total += count * (2 if cell_kind == "lstm" else 1) * dense(memory, units)  # the first states
    pieces = 2 if default(decoder, "readout_activation") == "maxout" else 1
    total += dense(units + memory + (0 if feeding else embedding), pieces * readout)
    if decoder["attention"]:
        total += attention_parameters(decoder["attention"], units, memory)
    return total


@pytest.fixture
def tokenizers():
    return {
        "source_tokenizer": models.WhitespaceTokenizer(SOURCE_WORDS),
        "target_tokenizer": models.WhitespaceTokenizer(TARGET_WORDS),
    }


def build(name, tokenizers, monkeypatch, **kwargs):
    # Orthogonal matrices of the papers' sizes take seconds to draw, and their values do not matter here.
    monkeypatch.setattr(
        keras.initializers.Orthogonal,
        "__call__",
        lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype),
    )
    return models.Translator.from_preset(name, **tokenizers, **kwargs)


def test_every_family_has_a_small_and_a_paper_size():
    assert [name + size for name in FAMILIES for size in ("", "_paper")] == RECURRENT


@pytest.mark.parametrize("name", RECURRENT)
def test_preset_builds_what_it_says(name, tokenizers, monkeypatch):
    preset = PRESETS[name]
    assert preset.name == name
    model = build(name, tokenizers, monkeypatch)
    source, target = len(SOURCE_WORDS) + 4, len(TARGET_WORDS) + 4  # with the special tokens
    encoder, memory = encoder_parameters(preset.encoder, source)
    assert model.encoder.output_dim == memory
    assert model.encoder.count_params() == encoder
    assert model.decoder.count_params() == decoder_parameters(preset.decoder, target, memory)
    attention = preset.decoder["attention"]
    assert type(model.decoder.attention).__name__ == (attention["class"] if attention else "NoneType")


@pytest.mark.parametrize("name", PRESETS)
def test_every_argument_exists(name):
    """A misspelt one would only be found by who builds the preset."""
    preset = PRESETS[name]
    for arguments, home in [
        (preset.encoder, models),
        (preset.decoder, models),
        (preset.decoder.get("attention"), layers),
    ]:
        if arguments is not None:
            allowed = inspect.signature(getattr(home, arguments["class"])).parameters
            assert set(arguments) - {"class"} <= set(allowed)
    assert preset.description
    assert preset.reference


def test_arguments_can_be_changed(tokenizers, monkeypatch):
    model = build(
        "bahdanau",
        tokenizers,
        monkeypatch,
        encoder={"units": 4, "embedding_dim": 3},
        decoder={"units": 5, "embedding_dim": 6, "attention": {"units": 7}},
    )
    assert (model.encoder.units, model.encoder.embedding_dim) == (4, 3)
    assert (model.decoder.units, model.decoder.attention.units) == (5, 7)
    logits = model({"source": np.array([[4, 2]]), "target": np.array([[1, 5]])})
    assert logits.shape == (1, 2, len(TARGET_WORDS) + 4)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"expected one of seq2seq, .*received 'luong_dott'.* 'luong_dot'\?"):
        get_preset("luong_dott")
    with pytest.raises(ValueError, match=r"received 'zzz'\.$"):
        get_preset("zzz")
    assert get_preset("bahdanau") is PRESETS["bahdanau"]


def test_override_changes_a_copy():
    arguments = {"units": 4, "attention": {"class": "AdditiveAttention", "units": 5}}
    before = copy.deepcopy(arguments)
    changed = override(arguments, {"units": 6, "cell": "lstm", "attention": {"units": 7}})
    assert changed == {"units": 6, "cell": "lstm", "attention": {"class": "AdditiveAttention", "units": 7}}
    changed = override(arguments, None)
    assert changed == before
    changed["attention"]["units"] = 8
    assert arguments == before


def test_override_replaces_the_attention():
    """Its old arguments do not stay behind: LuongAttention takes no units for this score."""
    arguments = {"attention": {"class": "AdditiveAttention", "units": 5}}
    new = {"class": "LuongAttention", "score": "general"}
    assert override(arguments, {"attention": new}) == {"attention": new}
    assert override(arguments, {"attention": None}) == {"attention": None}
    assert override({"attention": None}, {"attention": new}) == {"attention": new}


def test_override_of_no_attention_must_name_a_class():
    with pytest.raises(ValueError, match='expected a "class"'):
        override({"attention": None}, {"attention": {"units": 5}})
