import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from attention_zoo.models import Captioner, Translator, WhitespaceTokenizer, trained_preset
from attention_zoo.models.presets import PRESETS, get_preset
from attention_zoo.models.trained_preset import TrainedPreset, find_folder, trained_presets

BLEU = {"bleu": 41.237, "bleu_signature": "x", "chrf": 60.0, "chrf_signature": "y"}


def write(folder, model="Translator", **results):
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"class": model, "description": "Says things", "parameters": 1234})
    )
    (folder / "weights.npz").write_bytes(b"\0" * 2_500_000)
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two presets that are as good as installed."""
    write(tmp_path / "bahdanau_parrots", scores={"exact_match": 0.5})
    write(tmp_path / "show_and_tell_parrots", "Captioner")
    monkeypatch.setattr(trained_preset, "FOLDER", tmp_path)
    trained_presets.cache_clear()
    yield tmp_path
    trained_presets.cache_clear()


def test_facts(installed):
    preset = trained_presets()["bahdanau_parrots"]
    assert (preset.name, preset.task, preset.description) == (
        "bahdanau_parrots",
        "translation",
        "Says things",
    )
    assert preset.parameters == 1234
    assert preset.megabytes == pytest.approx(2.5, abs=0.01)
    assert trained_presets()["show_and_tell_parrots"].task == "captioning"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"exact_match": 0.9876, "new_captions": 4}, "exact match 98.8 %"),
        ({"detokenized": BLEU}, "BLEU 41.24 (tok:13a)"),
        ({"detokenized": BLEU, "tokenized": {**BLEU, "bleu": 42.0}}, "BLEU 42.00 (tok:none)"),
        ({"captions": {"bleu_4": 16.79, "cider_d": 0.3922}}, "BLEU-4 16.8, CIDEr-D 0.392"),
        ({"other": 1}, ""),
    ],
)
def test_headline(tmp_path, scores, expected):
    assert TrainedPreset.read(write(tmp_path / "preset", scores=scores)).headline == expected
    assert TrainedPreset.read(write(tmp_path / "without")).headline == ""


def test_find_folder(installed, tmp_path, monkeypatch):
    assert find_folder("bahdanau_parrots") == installed / "bahdanau_parrots"
    for name in ("bahdanau", "bahdanau_parots", "mine"):
        assert find_folder(name) is None
    assert find_folder("some/where") == pathlib.Path("some/where")
    assert find_folder(pathlib.Path("mine")) == pathlib.Path("mine")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine")
    assert find_folder("mine") == pathlib.Path("mine")


def test_unknown_names_are_answered_with_the_nearest_of_both_kinds(installed):
    with pytest.raises(ValueError, match=r"with weights bahdanau_parrots; .*mean 'bahdanau_parrots'\?"):
        Translator.from_preset("bahdanau_parot")
    with pytest.raises(ValueError, match=r"Did you mean 'luong_dot'\?"):
        get_preset("luong_dott")
    with pytest.raises(ValueError, match="or with weights bahdanau_parrots, show_and_tell_parrots; received"):
        get_preset("zzz")


def test_compositions_need_tokenizers():
    with pytest.raises(ValueError, match="expected source_tokenizer and target_tokenizer with 'bahdanau'"):
        Translator.from_preset("bahdanau")
    with pytest.raises(ValueError, match="expected target_tokenizer with 'bahdanau'"):
        Translator.from_preset("bahdanau", WhitespaceTokenizer(["a"]))
    with pytest.raises(ValueError, match="expected tokenizer with 'vit_captioner', a composition without"):
        Captioner.from_preset("vit_captioner")


def test_needs_no_tensorflow():
    code = (
        "import sys; from attention_zoo.models.trained_preset import trained_presets; trained_presets(); "
        "print('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# === Those that are installed ===


@pytest.mark.parametrize("name", trained_presets())
def test_installed_presets_load(name):
    preset = trained_presets()[name]
    model_class = Translator if preset.task == "translation" else Captioner
    model = model_class.from_preset(name)
    assert model.count_params() == preset.parameters
    other = Captioner if model_class is Translator else Translator
    with pytest.raises(ValueError, match=rf"use {model_class.__name__}\.from_preset"):
        other.from_preset(name)


@pytest.mark.parametrize("name", trained_presets())
def test_installed_presets_are_described(name):
    preset = trained_presets()[name]
    assert name not in PRESETS
    assert name.startswith(tuple(PRESETS))
    assert preset.headline
    assert preset.megabytes < 8
    card = (preset.folder / "README.md").read_text(encoding="utf-8")
    for title in (name, "How to use it", "Data and terms", "Scores", "Limits", "Training"):
        assert f"# {title}\n" in card
    assert "attention-zoo train " in card
    for file in ("README.md", "config.json", "results.json", "trained_recipe.yaml"):
        text = (preset.folder / file).read_text(encoding="utf-8")
        assert not any(place in text for place in ("/tmp", "/work", "/home", "/root")), file


def test_dates_are_right():
    model = Translator.from_preset("bahdanau_dates")
    best = model.translate("le dimanche 3 mai 1998", beams=1, return_attention=True)
    assert best.text == "1998-05-03"
    assert best.attention.shape == (len(best.tokens), len(best.source_tokens))
    np.testing.assert_allclose(best.attention.sum(axis=1), 1.0, atol=1e-4)
