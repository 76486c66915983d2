import inspect
import re
import subprocess
import sys

import pydantic
import pytest
import yaml

from attention_zoo.models.presets import PRESETS
from attention_zoo.training import recipe
from attention_zoo.training.recipe import Recipe, built_in_recipes

# A recipe in a file of its own, so that the tests do not depend on what the built-in ones say.
TEXT = """
name: small
description: For the tests
data: {kind: generated_dates, training_count: 100, held_out_count: 10}
tokenizers: {source: {kind: whitespace, vocabulary_size: 50}}
model: {preset: bahdanau}
training: {epochs: 2, batch_tokens: 64, peak_learning_rate: 0.001}
evaluation: {metric: exact_match}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(TEXT)
    return str(file)


def load_error(path, *overrides):
    with pytest.raises(ValueError) as caught:
        Recipe.load(path, overrides)
    return str(caught.value)


def test_defaults(path):
    loaded = Recipe.load(path)
    assert loaded.training.schedule == "inverse_square_root"
    assert loaded.tokenizers.target is None
    assert str(loaded.folder) == "runs/small"


def test_is_frozen(path):
    loaded = Recipe.load(path)
    with pytest.raises(pydantic.ValidationError):
        loaded.seed = 3


def test_overrides(path):
    loaded = Recipe.load(
        path,
        [
            "training.epochs=7",
            "training.peak_learning_rate=1e-3",  # YAML 1.1 would read a string
            "output=/elsewhere",
            "search.beams=3",  # the whole part is absent from the file
            "tokenizers.target={kind: whitespace, vocabulary_size: 9}",
            "training.clip_norm=null",
        ],
    )
    assert loaded.training.epochs == 7
    assert loaded.training.peak_learning_rate == 0.001
    assert str(loaded.folder) == "/elsewhere"
    assert loaded.search.beams == 3
    assert loaded.tokenizers.target.vocabulary_size == 9
    assert loaded.training.clip_norm is None


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training.epochs 3"])
def test_override_without_equals(path, override):
    assert "expected key=value" in load_error(path, override)


def test_override_below_a_value(path):
    assert "training.epochs is a single value" in load_error(path, "training.epochs.more=3")


def test_override_that_is_no_yaml(path):
    assert "expected YAML" in load_error(path, "training.epochs=[1")


def test_wrong_key_names_the_allowed_and_the_nearest(path):
    message = load_error(path, "training.epocs=3")
    assert "training: unknown key" in message
    assert "batch_tokens" in message and "patience" in message
    assert "received 'epocs'. Did you mean 'epochs'?" in message


def test_wrong_key_in_a_union_member(path):
    message = load_error(path, "data.trainin_count=3")
    assert "data: unknown key" in message and "Did you mean 'training_count'?" in message
    assert "validation" not in message  # the keys of text_files do not belong here


def test_wrong_top_level_key(path):
    assert "Did you mean 'seed'?" in load_error(path, "sed=3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=three", "training.epochs: expected a valid integer, received 'three'"),
        ("training.epochs=0", "training.epochs: expected greater than 0, received 0"),
        ("training.epochs=true", "training.epochs: expected a valid integer, received True"),
        ("training.schedule=constan", "Did you mean 'constant'?"),
        ("data.kind=text_fils", "expected kind: generated_dates or text_files, received 'text_fils'"),
        ("data=null", "data: expected"),
        ("data={}", "data: expected the key 'kind'"),
        ("training={}", "training.epochs: expected a value, received none"),
        ("model.preset=badanau", "Did you mean 'bahdanau'?"),
        ("model.encoder.unitz=3", "model.encoder: unknown key"),
        ("model.decoder.cell=rnn", "model.decoder.cell: expected 'gru' or 'lstm', received 'rnn'"),
        ("model.decoder.attention={unit: 3}", "Did you mean 'units'?"),
        ("model={preset: seq2seq, decoder: {attention: {units: 3}}}", "'seq2seq' has no attention"),
        ("evaluation.metric=blue", "Did you mean 'bleu'?"),
        ("name=../up", "name: expected"),
    ],
)
def test_wrong_value(path, override, message):
    assert message in load_error(path, override)


def test_all_mistakes_are_told_at_once(path):
    message = load_error(path, "training.epochs=0", "search.beams=0")
    assert "training.epochs" in message and "search.beams" in message


def test_joint_has_no_separate_target(path):
    message = load_error(
        path, "tokenizers.joint=true", "tokenizers.target={kind: whitespace, vocabulary_size: 9}"
    )
    assert message.count("tokenizers") and "joint: true" in message


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "name: a\nname: b"])
def test_file_that_is_no_recipe(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert "broken.yaml" in load_error(str(file))


def test_unknown_recipe():
    with pytest.raises(FileNotFoundError, match=r"(?s)multi30k_en_de_seq2seq.*Did you mean 'dates'"):
        Recipe.load("datez")


def test_missing_data_files(tmp_path, path):
    (tmp_path / "here").write_text("a\n")
    data = "{kind: text_files, training: [here, gone], validation: [here, here], test: [here, lost]}"
    loaded = Recipe.load(path, [f"data={data}", f"data.folder={tmp_path}"])
    with pytest.raises(FileNotFoundError) as caught:
        loaded.check_requirements()
    message = str(caught.value)
    assert (
        f"{tmp_path}/gone" in message
        and f"{tmp_path}/lost" in message
        and "here" not in message.split("Paths")[0]
    )


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipe_is_valid(name):
    loaded = Recipe.load(name)
    assert loaded.name == name
    assert loaded.description


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipe_comments_every_key(name):
    for line in built_in_recipes()[name].splitlines():
        if line.strip() and not line.startswith("#"):
            assert re.search(r"\S\s+# \S", line), f"no comment: {line!r}"


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipe_writes_every_key(name):
    # Defaults are for other people's recipes; ours show what there is to set.
    def missing(settings, values, where):
        for key in type(settings).model_fields:
            value = getattr(settings, key)
            if key not in values:
                yield f"{where}{key}"
            elif where == "model.":
                continue  # what a preset leaves open is a list of its own
            elif isinstance(value, pydantic.BaseModel):
                yield from missing(value, values[key], f"{where}{key}.")

    absent = set(missing(Recipe.load(name), yaml.safe_load(built_in_recipes()[name]), ""))
    assert absent <= {"output", "tokenizers.target"}


def test_needs_no_tensorflow():
    code = (
        "import sys; from attention_zoo.training import Recipe; "
        "Recipe.load('dates'); print('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def parameters(layer):
    return set(inspect.signature(layer).parameters) - {"vocabulary_size", "kwargs"}


@pytest.mark.parametrize("part", recipe.PART_ARGUMENTS)
def test_model_keys_are_the_arguments_of_the_layers(part):
    # The recipe must not import TensorFlow, so it repeats their names.
    from attention_zoo import models

    assert set(recipe.PART_ARGUMENTS[part]) == parameters(getattr(models, part))


def test_every_model_key_is_an_argument_of_a_part():
    keys = {key for arguments in recipe.PART_ARGUMENTS.values() for key in arguments}
    assert set(recipe.Part.model_fields) == keys
    used = {part["class"] for preset in PRESETS.values() for part in (preset.encoder, preset.decoder)}
    assert used == set(recipe.PART_ARGUMENTS)


def test_keys_of_another_part_are_refused(path):
    message = load_error(path, "model.encoder.num_heads=2")
    assert "RNNEncoder" in message and "embedding_dim" in message and "num_heads" in message
    message = load_error(path, "model.preset=transformer_tiny", "model.decoder.cell=gru")
    assert "TransformerDecoder" in message and "feed_forward_units" in message
    settings = Recipe.load(path, ["model.preset=transformer_tiny", "model.encoder.normalize_first=true"])
    assert settings.model.encoder.model_dump(exclude_unset=True) == {"normalize_first": True}


def test_attention_keys_are_the_arguments_of_the_layers():
    from attention_zoo import layers

    for name, keys in recipe.ATTENTION_ARGUMENTS.items():
        assert set(keys) == parameters(getattr(layers, name))
    used = {
        preset.decoder["attention"]["class"] for preset in PRESETS.values() if preset.decoder.get("attention")
    }
    assert used == set(recipe.ATTENTION_ARGUMENTS)
