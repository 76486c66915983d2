import re

import pytest
import yaml

from attention_zoo.training.model_card import Card, command, model_card, without_paths
from attention_zoo.training.recipe import Recipe, built_in_recipes

CARD = Card(data="Made of air.", use="To breathe.", limits="Not under water.", example="Hello, you.")
RESULTS = {
    "scores": {
        "tokenized": {"bleu": 41.237, "bleu_signature": "tok:none|a", "chrf": 60.5, "chrf_signature": "nc:6"},
        "bleu_by_length": [{"shortest": 0, "bleu": 1.0}],
    },
    "seed": 3,
    "epochs": 20,
    "epochs_in_this_process": 5,
    "seconds": {"training": 1234.5, "total": 2000.0},
    "parameters": 456789,
    "processors": 2,
    "date": "2026-11-21T16:25:25+00:00",
    "versions": {"attention-zoo": "0.1.0", "keras": "3.15.1"},
}


def record(name, *overrides):
    return Recipe.load(name, overrides).model_dump(mode="json")


def test_translator():
    recipe = record("multi30k_en_de_bahdanau", "data.folder=/secret/place", "training.epochs=20", "seed=3")
    text = model_card("parrot", without_paths(recipe), RESULTS, CARD, "float16", ["one tokenizer"])
    assert text.startswith("# parrot\n\nMulti30k English to German")
    for part in (
        'az.models.Translator.from_preset("parrot")',
        'model.translate("Hello, you.", beams=5, length_penalty=1.2)',
        "composition `bahdanau`: bidirectional GRU",
        "456,789 parameters, stored as float16",
        "- one tokenizer\n",
        "Made of air.",
        "`test_2016_flickr.lc.norm.tok.en.gz`",
        "before these were rounded",
        "- BLEU, on the tokens between spaces: 41.24 (`tok:none|a`)",
        "- chrF2, on the tokens between spaces: 60.5 (`nc:6`)",
        "To breathe.",
        "Not under water.",
        "seed 3, 20 epochs",
        "1,234 seconds of training for the last 5 epochs",
        "keras 3.15.1",
        "attention-zoo train multi30k_en_de_bahdanau data.folder=FOLDER seed=3 training.epochs=20\n",
    ):
        assert part in text
    assert "secret" not in text
    assert "by length" not in text


def test_captioners():
    scores = {"exact_match": 0.5, "pointing": {"words": 7, "share": 0.25, "chance": None}}
    results = {**RESULTS, "scores": scores, "epochs_in_this_process": 20, "devices": "2 replicas on 1 worker"}
    text = model_card("parrot", record("scenes"), results, CARD, "float32", [])
    assert 'model = az.models.Captioner.from_preset("parrot")\nprint(model.caption(scene.image, ' in text
    assert "- exact match: 50.0 %\n- words that name an object: 7\n" in text
    assert "On 500 generated examples" in text
    assert "rounded" not in text
    assert "for all epochs, 2 replicas on 1 worker" in text
    photos = model_card("parrot", record("flickr8k"), results, CARD, "float32", [])
    assert 'model.caption("photo.jpg", ' in photos
    coco = model_card("parrot", record("coco"), results, CARD, "float32", [])
    assert "On the validation part, as the data has no other." in coco


def test_lines_are_short():
    text = model_card("parrot", record("dates"), RESULTS, CARD, "float16", ["a word " * 40])
    assert max(map(len, text.splitlines())) <= 100
    assert "\n\n\n" not in text


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipes_have_cards(name):
    card = Card.load(None, name)
    assert all(len(text) > 80 for text in (card.data, card.use, card.limits))
    assert command(record(name)).startswith(f"attention-zoo train {name}")


@pytest.mark.parametrize("name", built_in_recipes())
def test_command_gives_the_recipe_back(name):
    changed = record(name, "training.patience=7", "training.clip_norm=null", "model.decoder.units=8")
    words = command(changed).split()
    assert [word for word in words[3:] if not word.startswith("data.folder")]
    again = record(name, *(word for word in words[3:] if not word.startswith("data.folder")))
    assert again == changed


def test_command_of_another_recipe():
    other = {**record("dates"), "name": "mine"}
    assert command(other) is None
    text = model_card("parrot", other, RESULTS, CARD, "float16", [])
    assert "To train it again" not in text
    card = CARD.model_copy(update={"reproduce": "train it well"})
    assert "To train it again:\n\n```console\ntrain it well\n```\n" in model_card(
        "parrot", other, RESULTS, card, "float16", []
    )


def test_settings_that_the_record_does_not_know():
    """Keys that came after the training are no change."""
    older = record("dates")
    del older["training"]["cooldown_epochs"], older["model"]["share_embeddings"]
    assert command(older) == "attention-zoo train dates"


def test_without_paths():
    settings = {"output": "runs/x", "a": ["/x/y/z.gz", "y/z.gz"], "b": {"c": "/x/y"}, "d": 1}
    assert without_paths(settings) == {"a": ["z.gz", "y/z.gz"], "b": {"c": "y"}, "d": 1}


def test_own_card(tmp_path):
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump({"data": "a", "use": "b", "limits": "c"}))
    assert Card.load(file, "mine") == Card(data="a", use="b", limits="c")
    file.write_text(yaml.safe_dump({"data": "a", "use": 3}))
    with pytest.raises(ValueError, match=r"card\.yaml: expected the keys of a card.*use: .*limits: "):
        Card.load(file, "mine")
    with pytest.raises(FileNotFoundError, match="expected a YAML file, found none at"):
        Card.load(tmp_path / "nothing.yaml", "mine")
    with pytest.raises(ValueError, match=re.escape("expected one for the recipe 'mine', as there is")):
        Card.load(None, "mine")
