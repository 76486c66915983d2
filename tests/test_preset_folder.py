import hashlib
import json
import subprocess

import keras
import numpy as np
import pytest

import attention_zoo as az
from attention_zoo.layers import AdditiveAttention
from attention_zoo.models import (
    Captioner,
    ImageEncoder,
    RNNDecoder,
    RNNEncoder,
    SentencePieceTokenizer,
    Translator,
    WhitespaceTokenizer,
)

SOURCE, TARGET = np.array([[4, 5, 2], [5, 2, 0]], "int32"), np.array([[1, 4], [1, 5]], "int32")


def recurrent(dropout=0.0):
    keras.utils.set_random_seed(1)
    words = WhitespaceTokenizer(["a", "b"], preparation="moses_lowercase")
    model = Translator(
        RNNEncoder(6, 4, 4, dropout=dropout),
        RNNDecoder(7, 4, 4, AdditiveAttention(3), dropout=dropout),
        words,
        WhitespaceTokenizer(["x", "y", "z"]),
        max_source_length=9,
    )
    model.build()
    return model


def transformer(dtype=None):
    tokenizer = SentencePieceTokenizer.train(["the cat sat", "the dog ran"], vocabulary_size=18)
    sizes = {"layers": 2, "units": 8, "num_heads": 2, "feed_forward_units": 8}
    return Translator.from_preset(
        "transformer_tiny",
        tokenizer,
        tokenizer,
        encoder=sizes,
        decoder=sizes,
        share_embeddings=True,
        dtype=dtype,
    )


def captioner():
    return Captioner(
        ImageEncoder("self_attention_cnn", image_size=16, widths=(4, 8), units=8),
        RNNDecoder(6, 4, 4, AdditiveAttention(3)),
        WhitespaceTokenizer(["a", "dog"]),
        max_caption_length=7,
        doubly_stochastic=0.5,
    )


def logits(model):
    images = np.arange(2 * 16 * 16 * 3, dtype="float32").reshape(2, 16, 16, 3) % 256
    source = images if isinstance(model, Captioner) else SOURCE
    return model({"source": source, "target": TARGET}, training=False).numpy()


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sign(folder):
    """Writes the checksums anew, as somebody who changes a folder on purpose can."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in contents(folder)
        if name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


@pytest.fixture
def folder(tmp_path):
    recurrent().save_preset(tmp_path / "mine")
    return tmp_path / "mine"


# === There and back ===


@pytest.mark.parametrize("make", [recurrent, transformer, captioner])
def test_what_is_read_is_what_was_written(make, tmp_path):
    model = make()
    before = logits(model)
    model.save_preset(tmp_path / "mine")
    again = type(model).from_preset(tmp_path / "mine")
    np.testing.assert_array_equal(logits(again), before)
    assert not again.compiled
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())
    for name in ("source_tokenizer", "target_tokenizer", "tokenizer"):
        if hasattr(model, name):
            texts = ["The cat ran.", "a x dog"]
            expected = getattr(model, name).tokenize(texts).to_list()
            assert getattr(again, name).tokenize(texts).to_list() == expected
    if make is transformer:
        assert again.source_tokenizer is again.target_tokenizer
        assert again.encoder.embedding is again.decoder.embedding


def test_files(folder):
    assert contents(folder) == [
        "README.md",
        "SHA256SUMS",
        "assets/layers/whitespace_tokenizer/vocabulary.txt",
        "assets/layers/whitespace_tokenizer_1/vocabulary.txt",
        "config.json",
        "weights.npz",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert (config["class"], config["weights"]) == ("Translator", "float32")
    assert config["parameters"] == recurrent().count_params()
    assert '.from_preset("FOLDER")' in (folder / "README.md").read_text()
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    assert contents(folder.parent) == [f"mine/{name}" for name in contents(folder)]  # nothing temporary


def test_the_name_may_be_a_string_or_relative(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("mine", "./mine", str(folder)):
        assert isinstance(Translator.from_preset(name), Translator)


def test_own_card(tmp_path):
    recurrent().save_preset(tmp_path / "mine", card="# Mine\n")
    assert (tmp_path / "mine" / "README.md").read_text() == "# Mine\n"
    assert isinstance(Translator.from_preset(tmp_path / "mine"), Translator)


def test_float16_stores_rounded_weights(tmp_path):
    model = recurrent()
    model.save_preset(tmp_path / "half", dtype="float16")
    with np.load(tmp_path / "half" / "weights.npz") as stored:
        assert {str(stored[name].dtype) for name in stored.files} == {"float16"}
    again = Translator.from_preset(tmp_path / "half")
    for weight, read in zip(model.get_weights(), again.get_weights(), strict=True):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, weight.astype("float16").astype("float32"))
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-3)


def test_weights_of_half_precision(tmp_path):
    model = transformer(dtype="bfloat16")
    model.save_preset(tmp_path / "mine")
    np.testing.assert_array_equal(logits(Translator.from_preset(tmp_path / "mine")), logits(model))


def test_goes_on_training(tmp_path):
    model = recurrent(dropout=0.2)
    model.compile(run_eagerly=True)
    model.fit({"source": SOURCE, "target": TARGET}, TARGET, verbose=0)
    model.save_preset(tmp_path / "mine")
    with np.load(tmp_path / "mine" / "weights.npz") as stored:
        assert not any("optimizer" in name for name in stored.files)
    assert "compile_config" not in (tmp_path / "mine" / "config.json").read_text()
    again = Translator.from_preset(tmp_path / "mine")
    np.testing.assert_array_equal(logits(again), logits(model))
    again.compile(run_eagerly=True)
    again.fit({"source": SOURCE, "target": TARGET}, TARGET, verbose=0)
    assert np.any(logits(again) != logits(model))


def test_trained_cnn_is_not_downloaded_again(tmp_path, monkeypatch):
    encoder = ImageEncoder("MobileNetV2", image_size=32, frozen=True)
    encoder.pretrained = str(tmp_path / "cnn.weights.h5")  # as if it had read that file when it was made
    model = Captioner(encoder, RNNDecoder(6, 4, 4, AdditiveAttention(3)), WhitespaceTokenizer(["a", "dog"]))
    model.save_preset(tmp_path / "mine")
    assert str(tmp_path) not in (tmp_path / "mine" / "config.json").read_text()
    monkeypatch.setattr(keras.utils, "get_file", None)
    again = Captioner.from_preset(tmp_path / "mine")
    assert again.encoder.pretrained == "cnn.weights.h5"
    assert again.encoder.frozen
    np.testing.assert_array_equal(logits(again), logits(model))


# === What is refused ===


def test_nothing_is_overwritten(folder):
    before = contents(folder)
    (folder.parent / "empty").mkdir()
    for name in ("mine", "empty"):
        with pytest.raises(FileExistsError, match="expected a folder that does not exist yet, received"):
            recurrent().save_preset(folder.parent / name)
    assert contents(folder) == before


def test_wrong_dtype(tmp_path):
    with pytest.raises(ValueError, match="expected dtype float32 or float16, received 'int8'"):
        recurrent().save_preset(tmp_path / "mine", dtype="int8")
    assert not contents(tmp_path)


def test_weight_out_of_range(tmp_path):
    model = recurrent()
    model.decoder.trainable_weights[0].assign(model.decoder.trainable_weights[0] + 1e5)
    with pytest.raises(ValueError, match=r"within the range of float16, received 1\d{5}.* take float32"):
        model.save_preset(tmp_path / "mine", dtype="float16")
    assert not contents(tmp_path)


@keras.saving.register_keras_serializable(package="elsewhere")
class Foreign(AdditiveAttention):
    pass


def test_parts_of_another_origin(tmp_path):
    model = Translator(
        RNNEncoder(6, 4, 4), RNNDecoder(6, 4, 4, Foreign(3)),
        WhitespaceTokenizer(["a", "b"]), WhitespaceTokenizer(["a", "b"]),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"nothing but classes of attention_zoo .*received .*\.Foreign"):
        model.save_preset(tmp_path / "mine")
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["README.md", "config.json", "weights.npz", "assets/layers/whitespace_tokenizer/vocabulary.txt"],
)
def test_changed_and_missing_files_are_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(
        ValueError, match=f"expected .*{name} as it was written; it was changed or is damaged"
    ):
        Translator.from_preset(folder)
    if name != "config.json":  # by which a folder is known
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"expected the file {name} in .*; it is missing"):
            Translator.from_preset(folder)


def test_what_has_no_checksum(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if "weights" not in line))
    with pytest.raises(ValueError, match=r"expected weights\.npz among the files of .*SHA256SUMS"):
        Translator.from_preset(folder)


def test_files_outside_the_folder(folder):
    (folder.parent / "secret").write_text("x")
    checksum = hashlib.sha256(b"x").hexdigest()
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{checksum}  ../secret\n")
    with pytest.raises(ValueError, match=r"expected the file \.\./secret in"):
        Translator.from_preset(folder)


@pytest.mark.parametrize(
    "part",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {}, "registered_name": None},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {}, "registered_name": None},
        {"module": "builtins", "class_name": "function", "config": "get_file", "registered_name": "function"},
        {"module": "keras.layers", "class_name": "Lambda", "registered_name": "attention_zoo>Lambda"},
        {"module": "os", "class_name": "system", "config": "true", "registered_name": None},
        {"class_name": "__lambda__", "config": {"value": "x"}},
    ],
)
def test_nothing_but_known_classes_is_made(folder, part):
    change_config(
        folder, lambda config: config["model"]["config"]["decoder"]["config"].update(attention=part)
    )
    with pytest.raises(ValueError, match="expected nothing but classes of attention_zoo"):
        Translator.from_preset(folder)


class Harmful:
    def __reduce__(self):
        return (open, ("harm_was_done", "w"))


def test_pickles_are_not_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(folder / "weights.npz", weights=np.array([Harmful()], dtype=object))
    (tmp_path / "harm_was_done").unlink(missing_ok=True)
    sign(folder)
    with pytest.raises(ValueError, match="expected a model that this version can make"):
        Translator.from_preset(folder)
    assert not (tmp_path / "harm_was_done").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(format_version=2), "expected format version 1 .*received 2; install"),
        (lambda config: config.pop("model"), "to describe a preset"),
        (
            lambda config: config["model"]["config"]["encoder"]["config"].update(units=5),
            "expected a model that this version can make",
        ),
        (
            lambda config: config["model"]["config"]["encoder"]["config"].update(more=5),
            "expected a model that this version can make",
        ),
    ],
)
def test_config_that_does_not_fit(folder, change, message):
    change_config(folder, change)
    with pytest.raises(ValueError, match=message):
        Translator.from_preset(folder)


def test_other_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a preset, found none at"):
        Translator.from_preset(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a folder written by save_preset"):
        Translator.from_preset(tmp_path)
    with pytest.raises(ValueError, match=r"expected a preset for a Captioner.*use Translator\.from_preset"):
        Captioner.from_preset(folder)


def test_nothing_can_be_changed(folder):
    words = WhitespaceTokenizer(["a", "b"])
    with pytest.raises(
        ValueError, match=r"expected no source_tokenizer, target_tokenizer with .* has weights"
    ):
        Translator.from_preset(folder, words, words)
    with pytest.raises(ValueError, match="expected no encoder with"):
        Translator.from_preset(folder, encoder={"units": 4})
    with pytest.raises(ValueError, match="expected no max_source_length with"):
        Translator.from_preset(folder, max_source_length=4)
    with pytest.raises(ValueError, match="expected no tokenizer with"):
        Captioner.from_preset(folder, words)


def test_load_reads_presets_too(folder):
    np.testing.assert_array_equal(logits(az.load(folder)), logits(recurrent()))
