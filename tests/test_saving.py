import json
import math
import pathlib
import shutil
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_texts

import attention_zoo as az
from attention_zoo.metrics import TokenAccuracy
from attention_zoo.models import SentencePieceTokenizer, Translator, WhitespaceTokenizer
from attention_zoo.models.saving import KERAS_FILE, written_whole

TEXTS = ["ba do", "", "fi ge ku la mo", "  ", "mo 😀 日本", "ni", *["ba ba ni"] * 34]

# Knows nothing of this library: what serving needs. Prints the outputs for the first n texts, for every n.
SERVE = """
import json, sys
import tensorflow as tf
import tensorflow_text
folder, counts, texts, long = json.load(sys.stdin)
serve = tf.saved_model.load(folder).signatures["serving_default"]
results = []
for count in counts:
    outputs = serve(texts=tf.constant(texts[:count], tf.string, [count]))
    results.append({name: x.numpy().tolist() for name, x in outputs.items()})
try:
    serve(texts=tf.constant([long]))
    error = ""
except tf.errors.InvalidArgumentError as caught:
    error = str(caught)
assert "attention_zoo" not in sys.modules
print(json.dumps([results, error], default=bytes.decode))
"""


def small_model(words=("a", "b", "c", "d"), dropout=0.3, seed=1, compiled=True):
    keras.utils.set_random_seed(seed)
    sizes = {"embedding_dim": 4, "units": 4, "dropout": dropout}
    # Two tokenizers; that of the exported folder has one in both places.
    model = Translator.from_preset(
        "bahdanau",
        WhitespaceTokenizer(words),
        WhitespaceTokenizer([word.upper() for word in words]),
        encoder=sizes,
        decoder={**sizes, "attention": {"units": 3}},
    )
    if compiled:
        model.compile(
            keras.optimizers.Adam(0.02, global_clipnorm=1.0, name="adam"),
            loss=az.losses.MaskedCrossentropy(label_smoothing=0.2),
            metrics=[TokenAccuracy(), "accuracy"],
            run_eagerly=True,  # costs no tracing
        )
    return model


def batch():
    labels = np.array([[4, 5, 6, 2], [7, 4, 2, 0], [5, 2, 0, 0]] * 4, "int32")
    target = np.array([[1, 4, 5, 6], [1, 7, 4, 0], [1, 5, 0, 0]] * 4, "int32")
    return {"source": labels, "target": target}, labels


def fit(model, epochs, initial_epoch=0):
    model.fit(*batch(), batch_size=6, epochs=epochs, initial_epoch=initial_epoch, shuffle=False, verbose=0)


def assert_equal_state(model, other):
    pairs = zip(
        [*model.variables, *model.optimizer.variables],
        [*other.variables, *other.optimizer.variables],
        strict=True,
    )
    for variable, expected in pairs:
        np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=variable.path)


def contents(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder that a model with one sub-word tokenizer in both places was exported to, and translations."""
    tokenizer = SentencePieceTokenizer.train(random_texts(100, seed=1), vocabulary_size=24)
    sizes = {"embedding_dim": 8, "units": 8}
    model = Translator.from_preset(
        "luong_general", tokenizer, tokenizer, encoder=sizes, decoder=sizes, max_source_length=40
    )
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.compile(run_eagerly=True)
    model.export(folder, beams=2)
    translations = model.translate(TEXTS, beams=2, return_attention=True, batch_size=8)
    return folder, translations, tokenizer.model


# === .keras files ===


def test_interrupted_training_equals_the_uninterrupted_one(tmp_path):
    uninterrupted = small_model()
    fit(uninterrupted, epochs=3)
    first = small_model()
    fit(first, epochs=1)
    first.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)  # nothing may come from the global generators
    second = az.load(tmp_path / "model.keras")
    assert_equal_state(second, first)
    fit(second, epochs=3, initial_epoch=1)
    assert_equal_state(second, uninterrupted)


def test_compile_settings_come_back(tmp_path):
    small_model().save(tmp_path / "model.keras")
    model = az.load(tmp_path / "model.keras")
    assert model.get_compile_config() == small_model().get_compile_config()
    assert model.compilation == small_model().compilation
    assert [metric.name for metric in model.metrics if metric.name.endswith("accuracy")] == ["token_accuracy"]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
    assert model.optimizer.global_clipnorm == 1.0


def test_model_that_is_not_compiled(tmp_path):
    small_model(compiled=False).save(tmp_path / "model.keras")
    model = az.load(str(tmp_path / "model.keras"))
    assert model.built
    assert not model.compiled
    model.compile(run_eagerly=True)
    fit(model, epochs=1)


def test_tokenizers_and_settings_come_back(tmp_path):
    small_model(words=("ü", "日本", "😀")).save(tmp_path / "model.keras")
    model = az.load(tmp_path / "model.keras")
    assert model.source_tokenizer.vocabulary == ("ü", "日本", "😀")
    assert model.target_tokenizer.vocabulary == ("Ü", "日本", "😀")
    assert model.max_source_length == small_model().max_source_length


# === Folders ===


def test_folder_loads_as_a_model_to_train_and_export(exported, tmp_path):
    folder, expected, sub_words = exported
    model = az.load(folder)
    assert model.compiled
    assert model.source_tokenizer is model.target_tokenizer
    assert model.source_tokenizer.model == sub_words
    again = model.translate(TEXTS[0], beams=2, return_attention=True)
    assert (again.text, again.tokens) == (expected[0].text, expected[0].tokens)
    before = model.get_weights()
    model.fit(*batch(), verbose=0)
    assert any(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))
    model.export(tmp_path / "again", beams=1)
    for old, new in zip(model.get_weights(), az.load(tmp_path / "again").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_served_in_a_fresh_process_equals_translate(exported, tmp_path):
    folder, expected, _ = exported
    moved = tmp_path / "moved" / "here"
    shutil.copytree(folder, moved)
    counts = [0, 1, 3, 9, 40]
    process = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=json.dumps([str(moved), counts, TEXTS, "do " * 10_000]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    served, error = json.loads(process.stdout.splitlines()[-1])
    assert "expected texts of at most 40 tokens; translate sentence by sentence" in error
    for count, outputs in zip(counts, served, strict=True):
        assert outputs["text"] == [t.text for t in expected[:count]]
        np.testing.assert_allclose(outputs["score"], [t.score for t in expected[:count]], atol=1e-5)
        for row, translation in enumerate(expected[:count]):
            tokens, sources = outputs["tokens"][row], outputs["source_tokens"][row]
            length, source_length = len(translation.tokens), len(translation.source_tokens)
            assert tokens == translation.tokens + [""] * (len(tokens) - length)
            assert sources == translation.source_tokens + [""] * (len(sources) - source_length)
            attention = np.reshape(outputs["attention"][row], (len(tokens), len(sources)))
            np.testing.assert_allclose(attention[:length, :source_length], translation.attention, atol=1e-5)
            assert not attention[length:].any()
            assert not attention[:, source_length:].any()


def test_every_weight_is_exported_once(exported):
    folder, *_ = exported
    variables = tf.train.load_checkpoint(folder / "variables" / "variables")
    sizes = [math.prod(shape) for shape in variables.get_variable_to_shape_map().values()]
    model = az.load(folder)
    assert model.count_params() <= sum(sizes) < 1.1 * model.count_params()


def test_model_without_attention_is_served(tmp_path):
    words = WhitespaceTokenizer(["a", "b"])
    sizes = {"embedding_dim": 4, "units": 4}
    model = Translator.from_preset("seq2seq", words, words, encoder=sizes, decoder=sizes)
    with pytest.raises(ValueError, match="expected a model with attention for coverage_penalty"):
        model.export(tmp_path / "model", coverage_penalty=0.1)
    assert contents(tmp_path) == []
    model.export(tmp_path / "model", beams=1)
    signatures = tf.saved_model.load(tmp_path / "model").signatures
    assert "heads" not in signatures
    outputs = signatures["serving_default"](texts=tf.constant(["a b"]))
    assert set(outputs) == {"text", "score", "tokens", "source_tokens"}
    assert outputs["text"].numpy()[0].decode() == model.translate("a b", beams=1).text


def test_export_does_not_touch_what_is_there(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="expected a folder that does not exist yet or is empty"):
            small_model().export(tmp_path / name)
    assert contents(tmp_path) == ["file", "full"]
    assert contents(tmp_path / "full") == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"beams": 0}, ValueError), ({"beams": "4"}, TypeError), ({"length_penalty": -1}, ValueError)],
)
def test_export_with_wrong_settings(tmp_path, settings, error):
    with pytest.raises(error, match=f"{next(iter(settings))}: expected a"):
        small_model().export(tmp_path / "model", **settings)
    assert contents(tmp_path) == []


def test_failing_export_leaves_nothing(tmp_path, monkeypatch):
    def save(module, folder, **kwargs):
        (pathlib.Path(folder) / "saved_model.pb").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(tf.saved_model, "save", save)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(OSError, match="no space left"):
            small_model().export(tmp_path / name)
    assert contents(tmp_path) == ["empty"]
    assert contents(tmp_path / "empty") == []


def test_written_whole_takes_the_place_of_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "new/below"):
        with written_whole(folder) as temporary:
            assert not (tmp_path / folder).exists() or contents(folder) == []
            (temporary / "file").write_text("whole")
        assert contents(folder) == ["file"]
    assert contents(tmp_path) == ["empty", "new"]
    assert contents(tmp_path / "new") == ["below"]


# === What cannot be loaded ===


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    small_model().save(path)
    return path


def rewritten(path, to, change):
    """A copy of a .keras file whose members went through `change(name, data)`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_missing_path(tmp_path):
    for name in ("nothing", "nothing.keras"):
        with pytest.raises(FileNotFoundError, match=f"found nothing at .*{name}"):
            az.load(tmp_path / name)


def test_folders_of_another_origin(tmp_path):
    tf.saved_model.save(tf.Module(), tmp_path / "foreign")
    (tmp_path / "empty").mkdir()
    for name in ("foreign", "empty"):
        with pytest.raises(ValueError, match=r"expected a folder written by export\(\)"):
            az.load(tmp_path / name)


def test_files_that_are_no_model(saved, tmp_path):
    (tmp_path / "text.keras").write_text("Dear reader")
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "truncated.keras").write_bytes(saved.read_bytes()[:-500])
    for name in ("text", "empty", "truncated"):
        with pytest.raises(ValueError, match=r"to be a whole \.keras file"):
            az.load(tmp_path / f"{name}.keras")


def test_model_of_another_origin(tmp_path):
    keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    with pytest.raises(ValueError, match="expected a model of this library, received a Sequential"):
        az.load(tmp_path / "dense.keras")


@pytest.mark.parametrize("part", ["config.json", "vocabulary.txt", "model.weights.h5"])
def test_damaged_part(saved, tmp_path, part):
    damages = {
        "overwritten": lambda data: b"\xff\x00" * (len(data) // 2),
        "empty": lambda data: b"",
        "cut": lambda data: data[: len(data) // 2],
    }
    if part == "vocabulary.txt":
        damages |= {"repeated": lambda data: data + b"\n" + data, "longer": lambda data: data + b"\nmore"}
    for name, damage in damages.items():
        path = tmp_path / f"{name}.keras"
        rewritten(
            saved, path, lambda name, data, damage=damage: damage(data) if name.endswith(part) else data
        )
        with pytest.raises(ValueError, match="to hold a model of this library; it is damaged"):
            az.load(path)


def test_damaged_sentencepiece_model(exported, tmp_path):
    path = tmp_path / "model.keras"
    rewritten(
        exported[0] / KERAS_FILE,
        path,
        lambda name, data: data[:100] if name.endswith("sentencepiece.model") else data,
    )
    with pytest.raises(ValueError, match=r"(?s)it is damaged.*SentencePieceTokenizer"):
        az.load(path)


def test_bytes_changed_on_disk(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(255 - byte for byte in data[middle : middle + 50])
    (tmp_path / "model.keras").write_bytes(data)
    with pytest.raises(ValueError, match="it is damaged"):
        az.load(tmp_path / "model.keras")


# === Noise ===


def test_ordinary_use_is_silent(exported, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras's and NumPy's; Python does not show them
        model = az.load(exported[0])
        model.compile(jit_compile=False)
        model.fit({"source": np.array([[4, 2]]), "target": np.array([[1, 4]])}, np.array([[4, 2]]), verbose=0)
        model.save(tmp_path / "model.keras")
        az.load(tmp_path / "model.keras")
    assert "arning" not in capfd.readouterr().err
