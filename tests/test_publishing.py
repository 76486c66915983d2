import json
import re

import numpy as np
import pytest
import yaml

from attention_zoo.models import Translator, WhitespaceTokenizer
from attention_zoo.models.saving import KERAS_FILE
from attention_zoo.models.trained_preset import TrainedPreset
from attention_zoo.training import publishing
from attention_zoo.training.publishing import publish
from attention_zoo.training.recipe import Recipe
from attention_zoo.training.run import RECORD

RESULTS = {
    "recipe": "multi30k_en_de_bahdanau",
    "scores": {"tokenized": {"bleu": 41.2, "bleu_signature": "tok:none"}},
    "seed": 1,
    "epochs": 2,
    "epochs_in_this_process": 2,
    "seconds": {"training": 10.0, "total": 20.0},
    "parameters": 1,
    "command": "/secret/place/attention-zoo train",
    "processors": 2,
    "date": "2026-11-21T16:25:25+00:00",
    "versions": {"keras": "3"},
}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    monkeypatch.setattr(publishing, "CALLS", 2)


def finished_run(folder, target_words=("ein", "hund"), **changes):
    """What a training leaves behind, but no SavedModel."""
    folder.mkdir()
    sizes = {"embedding_dim": 4, "units": 4}
    words = WhitespaceTokenizer(["a", "dog", "."])
    model = Translator.from_preset(
        "seq2seq", words, WhitespaceTokenizer(target_words), encoder=sizes, decoder=sizes
    )
    file = folder / "model" / KERAS_FILE
    file.parent.mkdir(parents=True)
    model.save(file)
    record = Recipe.load("multi30k_en_de_bahdanau", ["data.folder=/secret/place", "output=/secret/runs"])
    (folder / RECORD).write_text(yaml.safe_dump({**record.model_dump(mode="json"), **changes}))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder, model


def test_publish(tmp_path):
    run, model = finished_run(tmp_path / "run", target_words=("ein", "Hund"))
    publish(run, tmp_path / "parrot")
    again = Translator.from_preset(tmp_path / "parrot")
    for weight, stored in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(stored, weight.astype("float16").astype("float32"))
    # What is written in lower case reads any text; the tokens of the target have a capital letter.
    assert again.source_tokenizer.preparation == "moses_lowercase"
    assert again.target_tokenizer.preparation is None
    card = (tmp_path / "parrot" / "README.md").read_text()
    assert card.startswith("# parrot\n")
    assert "`WhitespaceTokenizer` of 7 tokens for the source, which brings text into lower case" in card
    assert "`WhitespaceTokenizer` of 6 tokens for the target\n" in card
    assert re.search(r"speed, after the first call, for 'A man\s+rides a bike\.': [\d.]+ ms, \d+ x ", card)
    preset = TrainedPreset.read(tmp_path / "parrot")
    assert preset.headline == "BLEU 41.20 (tok:none)"
    assert preset.description.startswith("Multi30k English to German")
    for name in ("README.md", "config.json", "results.json", RECORD):
        assert "secret" not in (tmp_path / "parrot" / name).read_text()


def test_float32_and_own_card(tmp_path):
    text = {"data": "Made of air", "use": "To breathe", "limits": "None"}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(text))
    run, model = finished_run(tmp_path / "run", name="mine", evaluation={"metric": "bleu"})
    publish(run, tmp_path / "parrot", dtype="float32", card=tmp_path / "card.yaml")
    again = Translator.from_preset(tmp_path / "parrot")
    for weight, stored in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(stored, weight)
    assert again.source_tokenizer.preparation is None
    assert "Made of air" in (tmp_path / "parrot" / "README.md").read_text()


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"finished training, with trained_recipe\.yaml in it"):
        publish(tmp_path, tmp_path / "parrot")
    run, _ = finished_run(tmp_path / "run", name="mine")
    with pytest.raises(ValueError, match="expected one for the recipe 'mine'"):
        publish(run, tmp_path / "parrot")
    (run / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"with results\.json in it"):
        publish(run, tmp_path / "parrot")
    assert not (tmp_path / "parrot").exists()
