import functools
import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import attention_zoo as az
from attention_zoo.models.caption import Caption
from attention_zoo.training import Recipe, cli, run
from attention_zoo.training.captioning_task import PICTURES, CaptioningTask, Data
from attention_zoo.training.generated_scenes import training_and_held_out
from attention_zoo.training.image_data import CaptionedImages

# One epoch of almost nothing: it learns no captions, but passes through every part of a run.
SCENES = """
name: tiny
description: For the tests
data: {kind: generated_scenes, training_count: 24, held_out_count: 10, image_size: 48}
tokenizers: {captions: {kind: whitespace, vocabulary_size: 40}}
model:
  preset: show_attend_and_tell
  encoder: {backbone: patches, patch_size: 16, image_size: 48, pretrained: null, frozen: true, units: 8}
  decoder: {embedding_dim: 8, units: 8, attention: {units: 8}}
training: {epochs: 1, batch_size: 16, peak_learning_rate: 0.01, keep: best}
search: {length_penalty: 1.0}
evaluation: {metric: exact_match}
"""

PHOTOS = (
    "data={kind: captioned_images, images: photos, training: {captions: captions.txt, names: train.txt}, "
    "validation: {captions: captions.txt, names: dev.txt}}"
)


def make_recipe(folder, *overrides):
    file = folder / "tiny.yaml"
    file.write_text(SCENES)
    return Recipe.load(str(file), [f"output={folder / 'run'}", *overrides])


def make(folder, *overrides):
    return CaptioningTask(make_recipe(folder, *overrides))


def captions(*texts, attention=None):
    return [Caption(text, 0.0, [*text.split(), "</s>"], attention) for text in texts]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder in the layout of Flickr8k: 24 + 10 scenes as PNG files, with two captions each."""
    folder = tmp_path_factory.mktemp("flickr")
    (folder / "photos").mkdir()
    lines, names = [], []
    for number, scene in enumerate(training_and_held_out(34, 1, image_size=48)[0]):
        names.append(f"{number:03d}.png")
        (folder / "photos" / names[-1]).write_bytes(tf.io.encode_png(scene.image).numpy())
        lines += [f"{names[-1]}#0\t{scene.caption}", f"{names[-1]}#1\tthere is {scene.caption}"]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    (folder / "train.txt").write_text("\n".join(names[:24]) + "\n")
    (folder / "dev.txt").write_text("\n".join(names[24:]) + "\n")
    return folder


def photo_overrides(photos):
    return [
        PHOTOS, f"data.folder={photos}", f"data.features={photos / 'features'}", "evaluation.metric=captions",
        "training.captions=all",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(photos):
    """The results of a run on the photos."""
    pytest.importorskip("sacrebleu")
    return run.train(make_recipe(photos, *photo_overrides(photos)))


@pytest.fixture(scope="module")
def loaded(photos, finished):
    return az.load(photos / "run" / "model")


class TestFinishedRun:
    def test_results(self, photos, finished):
        assert json.loads((photos / "run" / "results.json").read_text()) == finished
        assert 0 <= finished["scores"]["captions"]["cider_d"] <= 10
        assert "images:10|nrefs:2" in finished["scores"]["captions"]["signature"]
        assert finished["epochs_in_this_process"] == 1

    def test_encoded_files_get_the_same_captions_in_a_fresh_process(self, finished):
        assert finished["same_in_fresh_process"] == {"images": 8, "equal": 8}

    def test_files(self, photos, finished):
        folder = photos / "run"
        assert 0 < len(list(folder.glob("attention-*.png"))) <= PICTURES
        assert not list(folder.rglob("*.partial*"))
        assert len(list((photos / "features").glob("*.npy"))) == 2  # test is validation

    def test_resumes(self, photos, finished, caplog):
        task = make(photos, *photo_overrides(photos))
        run.prepare_folder(task.recipe, fresh=False)
        data = task.read_data()
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            history = run.fit(task, run.build_model(task, data), data)
        assert history.epoch == []
        assert "complete after 1 epochs" in caplog.text

    def test_another_recipe_is_refused(self, photos, finished):
        with pytest.raises(ValueError, match="other training; start over with --fresh"):
            run.prepare_folder(make_recipe(photos, *photo_overrides(photos), "training.captions=one"), False)

    def test_scenes_are_captioned_and_served_as_arrays(self, tmp_path, photos, loaded):
        task = make(tmp_path)
        data = task.read_data()
        outputs = task.predict(loaded, data)
        assert outputs[0].attention.shape == (len(outputs[0].tokens), 3, 3)
        assert {"exact_match", "pointing"} <= set(task.score(data, outputs))
        assert task.serve(photos / "run" / "model", data) == [output.text for output in outputs[:8]]

    def test_commands(self, tmp_path, photos, finished, monkeypatch):
        monkeypatch.setattr(cli, "_load", functools.cache(cli._load))  # each model compiles its own searches

        def command(*arguments):
            arguments = [arguments[0], "--model", photos / "run" / "model", *arguments[1:]]
            return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

        photo, broken = photos / "photos" / "024.png", tmp_path / "broken.jpg"
        result = command("caption", photo, "--beams", 1)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{cli._load(photos / 'run' / 'model').caption(photo, beams=1).text}\n"
        broken.write_bytes(photo.read_bytes()[:100])
        for arguments in (("caption", photo, broken), ("plot", broken, "-o", tmp_path / "a.png")):
            result = command(*arguments)
            assert result.exit_code == 2
            assert str(broken) in result.stderr and result.stderr.count("\n") == 1
        data = ("--images", photos / "photos", "--captions", photos / "captions.txt")
        result = command("evaluate", *data, "--names", photos / "dev.txt", "--beams", 1)
        assert result.exit_code == 0, result.output
        cider_d = finished["scores"]["captions"]["cider_d"]
        assert f"CIDEr-D  {cider_d:7.3f}" in result.stdout


class TestData:
    def test_scenes(self, tmp_path):
        data = make(tmp_path).read_data()
        assert [len(part) for part in data] == [24, 10, 10, 10]
        assert data.test.images.shape == (10, 48, 48, 3)
        for number, scene in enumerate(data.scenes):
            assert data.test.captions[number] == [scene.caption]
            np.testing.assert_array_equal(data.test.images[number], scene.image)
        assert not np.array_equal(data.validation.images, data.test.images)

    def test_photos(self, tmp_path, photos):
        data = make(tmp_path, *photo_overrides(photos)).read_data()
        assert data.test is data.validation
        assert [path.name for path in data.validation.images[:2]] == ["024.png", "025.png"]
        test = f"data.test={{captions: {photos / 'captions.txt'}, names: {photos / 'train.txt'}}}"
        assert len(make(tmp_path, *photo_overrides(photos), test).read_data().test) == 24

    def test_coco(self, tmp_path, photos):
        for part, names in (("train", ["000.png", "001.png"]), ("val", ["002.png"])):
            content = {
                "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
                "annotations": [{"image_id": i, "caption": f"{part} {i}"} for i in range(len(names))],
            }
            (photos / f"{part}.json").write_text(json.dumps(content))
        parts = (
            "training: {images: photos, captions: train.json}",
            "validation: {images: photos, captions: val.json}",
        )
        data = make(tmp_path, f"data={{kind: coco, folder: {photos}, {', '.join(parts)}}}").read_data()
        assert data.training.captions == [["train 0"], ["train 1"]]
        assert data.test.captions == [["val 0"]]


class TestModel:
    def test_settings_reach_it(self, tmp_path):
        task = make(tmp_path, "model.doubly_stochastic=0.25", "model.decoder.attention.gate=false")
        model = task.build_model(task.read_data())
        assert (model.encoder.backbone, model.encoder.grid, model.encoder.units) == ("patches", (3, 3), 8)
        assert (model.decoder.units, model.decoder.attention.gate) == (8, False)
        assert model.doubly_stochastic == 0.25
        assert {"circle", "left", "a"} <= set(model.tokenizer.vocabulary)

    @pytest.mark.parametrize(("setting", "penalty"), [("null", 1.0), ("0.0", 0.0)])
    def test_the_penalty_is_the_preset_s_unless_set(self, tmp_path, setting, penalty):
        task = make(tmp_path, f"model.doubly_stochastic={setting}")
        assert task.build_model(task.read_data()).doubly_stochastic == penalty

    def test_batches_are_those_that_are_asked_for(self, tmp_path, photos):
        task = make(tmp_path, *photo_overrides(photos), f"data.features={tmp_path / 'features'}")
        data = task.read_data()
        training, validation = task.batches(task.build_model(data), data)
        assert (training.captions, training.steps_per_epoch, training.seed) == ("all", 3, 1)
        assert (validation.captions, validation.shuffle) == ("all", False)
        inputs, _ = next(iter(training.dataset()))
        assert inputs["source"].shape == (16, 3, 3, 3 * 16**2)  # features
        task = make(tmp_path, "training.captions=one", *photo_overrides(photos)[:2])
        inputs, _ = next(iter(task.batches(task.build_model(data), data)[0].dataset()))
        assert inputs["source"].shape == (12, 48, 48, 3)  # images, spread evenly

    def test_mirrored_photos_and_their_features(self, tmp_path, photos):
        overrides = ["training.mirror=true", *photo_overrides(photos)]
        task = make(tmp_path, *overrides, f"data.features={tmp_path / 'features'}")
        data = task.read_data()
        training, validation = task.batches(task.build_model(data), data)
        assert training.mirror.shape == (len(data.training), 3, 3, 3 * 16**2)
        assert validation.mirror is False
        assert len(list((tmp_path / "features").glob("*.npy"))) == 3
        task = make(tmp_path, *overrides, "data.features=null")
        assert task.batches(task.build_model(data), data)[0].mirror is True

    def test_scenes_keep_left_and_right(self, tmp_path):
        with pytest.raises(ValueError, match=r"training\.mirror: expected null for generated scenes"):
            make(tmp_path, "training.mirror=true")


class TestScore:
    def test_exact_match_and_that_of_new_captions(self, tmp_path):
        images = np.zeros((3, 8, 8, 3), "uint8")
        training = CaptionedImages(images[:1], ["a cat"])
        test = CaptionedImages(images, [["a cat", "it"], ["a dog", "it sits"], ["a bird"]])
        result = make(tmp_path).score(Data(training, None, test), captions("a cat", "it sits", "a cat"))
        assert result == {
            "exact_match": pytest.approx(2 / 3), "exact_match_new_captions": 0.5, "new_captions": 2
        }  # fmt: skip
        test = CaptionedImages(images[:1], ["a cat"])
        result = make(tmp_path).score(Data(training, None, test), captions("a dog"))
        assert result == {"exact_match": 0.0, "exact_match_new_captions": None, "new_captions": 0}

    def test_scenes_are_pointed_at(self, tmp_path):
        task = make(tmp_path)
        data = task.read_data()
        everywhere = np.ones((20, 1, 1))
        said = captions(*(scene.caption for scene in data.scenes), attention=everywhere)
        result = task.score(data, said)
        assert result["exact_match"] == 1
        assert result["pointing"]["words"] == sum(len(scene.objects) for scene in data.scenes)
        json.dumps(result)
        without = task.score(data, captions(*(scene.caption for scene in data.scenes)))
        assert "pointing" not in without

    def test_epochs_are_compared_by_cider_where_it_is_measured(self, tmp_path):
        assert make(tmp_path).monitored is None
        task = make(tmp_path, "evaluation={metric: captions, every_epochs: 3}")
        data = task.read_data()
        assert task.monitored == "val_cider_d"
        callback = task.score_callback(None, data)
        assert callback.every == 3 and callback.data is data.validation


class TestSamples:
    def test_scenes_have_numbers(self, tmp_path, caplog):
        task = make(tmp_path)
        data = task.read_data()
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            task.print_samples(data, captions(data.scenes[0].caption, *["a"] * 9))
        assert len(caplog.messages) == 8
        assert caplog.messages[0] == f"  scene 1  ->  {data.scenes[0].caption}"
        assert caplog.messages[1] == f"  scene 2  ->  a    (reference: {data.scenes[1].caption})"

    def test_photos_have_names_and_any_reference_is_right(self, tmp_path, photos, caplog):
        task = make(tmp_path, *photo_overrides(photos))
        data = task.read_data()
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            task.print_samples(data, captions(data.test.captions[0][1], "a"))
        right, wrong = caplog.messages
        assert right.startswith("  024.png  ->  there is a") and "reference" not in right
        assert wrong == f"  025.png  ->  a    (reference: {data.test.captions[1][0]})"


class TestDraw:
    def test_a_model_without_attention_has_no_picture(self, tmp_path, caplog):
        class Model:
            class decoder:
                has_attention = False

        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            make(tmp_path).draw(Model(), None)
        assert "No picture" in caplog.text

    def test_an_empty_caption_has_no_picture(self, tmp_path, caplog):
        class Model:
            class decoder:
                has_attention = True

            def caption(self, image, beams, return_attention):
                return Caption("", 0.0, ["</s>"], np.ones((1, 2, 2)), image=image)

        task = make(tmp_path)
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            task.draw(Model(), task.read_data())
        assert caplog.text.count("whose caption is empty") == PICTURES
