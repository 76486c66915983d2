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


# The same for captioning.
SCENES = """
name: small_scenes
description: For the tests
data: {kind: generated_scenes, training_count: 100, held_out_count: 10}
tokenizers: {captions: {kind: whitespace, vocabulary_size: 50}}
model: {preset: show_attend_and_tell}
training: {epochs: 2, batch_size: 64, peak_learning_rate: 0.001}
evaluation: {metric: exact_match}
"""

FLICKR = "data={kind: captioned_images, images: photos, training: {captions: all.txt, names: train.txt}, \
validation: {captions: all.txt, names: dev.txt}}"
COCO = "data={kind: coco, training: {images: train, captions: train.json}, \
validation: {images: val, captions: val.json}}"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(TEXT)
    return str(file)


@pytest.fixture
def scenes(tmp_path):
    file = tmp_path / "small_scenes.yaml"
    file.write_text(SCENES)
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
        ("training.cooldown_epochs=0", "training.cooldown_epochs: expected greater than 0, received 0"),
        (
            "training.cooldown_epochs=3",
            "training: expected cooldown_epochs of at most epochs=2, received 3; train for longer",
        ),
        ("training.precision=float16", "expected 'float32', 'bfloat16_products', 'mixed_bfloat16' or"),
        ("training.micro_batches=0", "training.micro_batches: expected greater than 0, received 0"),
        ("training.backup_steps=0", "training.backup_steps: expected greater than 0, received 0"),
        ("data.kind=text_fils", "or coco, received 'text_fils'. Did you mean 'text_files'?"),
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
        ("training.risk=2.0", "training: expected risk and candidates, or neither, received risk=2.0 and"),
        ("training.risk=0", "training.risk: expected greater than 0, received 0"),
    ],
)
def test_wrong_value(path, override, message):
    assert message in load_error(path, override)


def test_risk_needs_a_start_and_is_alone(path):
    risk = ["training.risk=2.0", "training.candidates=4"]
    assert Recipe.load(path, [*risk, "model.start=somewhere"]).training.candidates == 4
    with pytest.raises(ValueError, match=r"model\.start: expected a trained model, .* training\.risk=2\.0"):
        Recipe.load(path, risk)
    with pytest.raises(ValueError, match=r"training: expected risk without r_drop, received risk=2\.0 and"):
        Recipe.load(path, [*risk, "model.start=somewhere", "training.r_drop=5.0"])
    with pytest.raises(ValueError, match=r"expected risk without back_translator, received risk=2\.0 and"):
        Recipe.load(path, [*risk, "model.start=somewhere", "training.back_translator=somewhere"])


def test_cooldown_over_all_epochs(path):
    assert Recipe.load(path, ["training.cooldown_epochs=2"]).training.cooldown_epochs == 2
    loaded = Recipe.load(path, ["training.epochs=3", "training.cooldown_epochs=3"])
    assert (loaded.training.epochs, loaded.training.cooldown_epochs) == (3, 3)


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
    assert used == {*recipe.PART_ARGUMENTS, "ImageEncoder"}


def test_image_encoder_keys_are_its_arguments():
    from attention_zoo.models import ImageEncoder

    assert set(recipe.ImagePart.model_fields) == parameters(ImageEncoder)


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


class TestCaptioning:
    def test_the_data_says_what_is_trained(self, path, scenes):
        assert Recipe.load(path).task == "translation"
        assert Recipe.load(scenes).task == "captioning"
        assert Recipe.load(scenes, [FLICKR]).task == Recipe.load(scenes, [COCO]).task == "captioning"

    def test_defaults(self, scenes):
        loaded = Recipe.load(scenes)
        assert loaded.data.image_size == 64
        assert loaded.training.captions == "one"
        assert loaded.model.doubly_stochastic is None
        assert Recipe.load(scenes, [FLICKR]).data.test is None

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("model.preset=bahdanau", "expected a preset for captioning"),
            (
                "tokenizers.source={kind: whitespace, vocabulary_size: 9}",
                "tokenizers: unknown key for captioning: expected one of captions, received 'source'",
            ),
            ("training.batch_tokens=64", "training: unknown key for captioning"),
            ("model.share_embeddings=true", "model: unknown key for captioning"),
            ("evaluation.metric=bleu", "evaluation.metric: expected 'exact_match' or 'captions'"),
            ("evaluation.by_length=true", "evaluation: unknown key for captioning"),
            ("training.captions=two", "training.captions: expected 'one' or 'all', received 'two'"),
            ("data.image_size=47", "data.image_size: expected greater than or equal to 48, received 47"),
            ("model.doubly_stochastic=-0.5", "model.doubly_stochastic: expected greater than or equal to 0"),
            ("model={preset: show_and_tell, doubly_stochastic: 1.0}", "expected no doubly_stochastic"),
            ("model.encoder.patch_siz=8", "Did you mean 'patch_size'?"),
            ("model.encoder.positions=rotary", "model.encoder.positions: expected a valid boolean"),
            ("model.decoder.num_heads=8", "unknown key in decoder, a RNNDecoder"),
            ("model.decoder.attention={gates: true}", "Did you mean 'gate'?"),
            ("data.features=kept", "data: unknown key"),
        ],
    )
    def test_wrong_value(self, scenes, override, message):
        assert message in load_error(scenes, override)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("model.preset=show_and_tell", "expected a preset for translation"),
            (
                "tokenizers.captions={kind: whitespace, vocabulary_size: 9}",
                "tokenizers: unknown key for translation: expected one of joint, source, target",
            ),
            ("training.batch_size=64", "training: unknown key for translation"),
            ("model.doubly_stochastic=1.0", "model: unknown key for translation"),
            ("evaluation.metric=captions", "evaluation.metric: expected 'exact_match' or 'bleu'"),
        ],
    )
    def test_captioning_keys_are_refused_in_translation(self, path, override, message):
        assert message in load_error(path, override)

    def test_changes_of_the_model_are_those_that_are_set(self, scenes):
        changes = [
            "model.encoder={backbone: patches, image_size: [48, 64], pretrained: null, frozen: false}",
            "model.decoder.attention={units: 8, gate: false}",
            "model.doubly_stochastic=0.0",
        ]
        loaded = Recipe.load(scenes, changes).model
        assert loaded.encoder.model_dump(exclude_unset=True) == {
            "backbone": "patches", "image_size": (48, 64), "pretrained": None, "frozen": False
        }  # fmt: skip
        assert loaded.decoder.attention == {"units": 8, "gate": False}
        assert loaded.doubly_stochastic == 0

    def test_features_need_a_frozen_network(self, scenes):
        overrides = [FLICKR, "data.features=kept"]
        assert Recipe.load(scenes, overrides).data.features == "kept"  # the preset's network is frozen
        assert "data.features: expected null" in load_error(scenes, *overrides, "model.encoder.frozen=false")
        message = load_error(scenes, *overrides, "model={preset: vit_captioner}")
        assert "set model.encoder.frozen to true" in message

    def test_paths_of_a_part(self, scenes):
        flickr = Recipe.load(scenes, [FLICKR, "data.folder=at", "data.test={captions: others.txt}"]).data
        assert flickr.paths("training") == ("at/photos", "at/all.txt", "at/train.txt")
        assert flickr.paths("test") == ("at/photos", "at/others.txt", None)
        coco = Recipe.load(scenes, [COCO, "data.folder=at"]).data
        assert coco.paths("validation") == ("at/val", "at/val.json")

    def test_missing_files_and_folders(self, tmp_path, scenes):
        for name in ("photos", "all.txt", "train"):
            (tmp_path / name).touch()
        (tmp_path / "val").mkdir()
        for data, expected in (
            (FLICKR, ["train.txt", "dev.txt", "photos"]),  # a file is no folder
            (COCO, ["train.json", "val.json", "train"]),
        ):
            with pytest.raises(FileNotFoundError) as caught:
                Recipe.load(scenes, [data, f"data.folder={tmp_path}"]).check_requirements()
            missing = ", ".join(str(tmp_path / name) for name in expected)
            assert f"received missing: {missing}. Paths" in str(caught.value)

    def test_what_scoring_needs_is_looked_for(self, monkeypatch, scenes):
        monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: name == "matplotlib" or None)
        Recipe.load(scenes).check_requirements()
        with pytest.raises(ImportError, match="expected sacrebleu"):
            Recipe.load(scenes, ["evaluation.metric=captions"]).check_requirements()
        monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
        Recipe.load(scenes, ["model.preset=show_and_tell"]).check_requirements()  # nothing to draw
        with pytest.raises(ImportError, match="expected matplotlib"):
            Recipe.load(scenes).check_requirements()
