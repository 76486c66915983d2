import json
import logging
import sys

import keras
import numpy as np
import pytest
import yaml
from rich.console import Console
from small_recipe import load

from attention_zoo.models import EncoderDecoder
from attention_zoo.models.saving import load as az_load
from attention_zoo.schedules import CooldownSchedule, InverseSquareRootSchedule
from attention_zoo.training import run
from attention_zoo.training.callbacks.resume import Resume
from attention_zoo.training.task import SAMPLES
from attention_zoo.training.text_data import ParallelText
from attention_zoo.training.translation_task import TEACHER


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder above a finished run, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run.train(load(folder))


class TestFinishedRun:
    def test_results(self, finished):
        folder, results = finished
        assert json.loads((folder / "run" / "results.json").read_text()) == results
        assert 0 <= results["scores"]["exact_match"] <= 1
        assert results["epochs_in_this_process"] == 2
        assert "XLA" in results["compilation"]
        assert results["versions"]["tensorflow"]

    def test_saved_model_agrees_in_a_fresh_process(self, finished):
        agreement = finished[1]["same_in_fresh_process"]
        assert agreement["equal"] == agreement["sentences"] == SAMPLES

    def test_files(self, finished):
        folder = finished[0] / "run"
        assert (folder / "alignment.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "model" / "saved_model.pb").is_file()
        assert not list(folder.rglob("*.partial*"))

    def test_again_trains_nothing_and_scores_the_same(self, finished):
        folder, results = finished
        again = run.train(load(folder))
        assert again["epochs_in_this_process"] == 0
        assert again["scores"] == results["scores"]

    def test_another_recipe_is_refused(self, finished):
        folder, _ = finished
        with pytest.raises(ValueError, match=r"other seed, training; start over with --fresh"):
            run.train(load(folder, "training.clip_norm=3.0", "seed=7"))


class TestStart:
    def build(self, folder, tmp_path, *overrides):
        recipe = load(tmp_path, f"model.start={folder / 'run' / 'model'}", *overrides)
        recipe.check_requirements()
        task = run.TASKS[recipe.task](recipe)
        return run.build_model(task, run.read_data(task))

    def test_weights_of_an_earlier_run(self, finished, tmp_path):
        model = self.build(finished[0], tmp_path)
        earlier = az_load(finished[0] / "run" / "model")
        for mine, its in zip(model.get_weights(), earlier.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, its)

    def test_mixed_into_the_final_weights(self, finished, tmp_path):
        model = self.build(finished[0], tmp_path)
        start = model.get_weights()
        end = [weight + 1 for weight in start]
        model.set_weights(end)
        recipe = load(tmp_path, f"model.start={finished[0] / 'run' / 'model'}", "model.start_share=0.25")
        run.mix_with_start(model, start, recipe.model)
        for before, now in zip(start, model.get_weights(), strict=True):
            np.testing.assert_allclose(now, before + 0.75, rtol=1e-6, atol=1e-6)

    def test_the_start_is_what_training_began_with(self, finished, tmp_path, monkeypatch):
        start = az_load(finished[0] / "run" / "model").get_weights()
        mixed = []

        class Stop(Exception):
            pass

        def fit(task, model, data):
            model.set_weights([weight + 1 for weight in model.get_weights()])

        def mix(model, start_weights, settings):
            mixed.extend([start_weights, settings.start_share])
            raise Stop

        monkeypatch.setattr(run, "fit", fit)
        monkeypatch.setattr(run, "mix_with_start", mix)
        with pytest.raises(Stop):
            run.train(
                load(
                    tmp_path, f"model.start={finished[0] / 'run' / 'model'}", "model.start_share=0.25",
                    f"output={tmp_path / 'other'}",
                )
            )  # fmt: skip
        assert mixed[1] == 0.25
        for before, its in zip(start, mixed[0], strict=True):
            np.testing.assert_array_equal(before, its)

    def test_a_share_of_nothing_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"expected model\.start with start_share, received start_share=0\.5"
        ):
            load(tmp_path, "model.start_share=0.5")

    def test_other_shapes_are_refused(self, finished, tmp_path):
        with pytest.raises(ValueError, match=r"model\.start: expected a Translator with .* parameters"):
            self.build(finished[0], tmp_path, "model.decoder.units=10")

    def test_other_tokens_are_refused(self, finished, tmp_path):
        size = az_load(finished[0] / "run" / "model").source_tokenizer.vocabulary_size
        other = ("tokenizers.source.model_type=unigram", f"tokenizers.source.vocabulary_size={size}")
        with pytest.raises(ValueError, match="whose tokenizers learned other pieces"):
            self.build(finished[0], tmp_path, *other)

    def test_nothing_there(self, finished, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected model\.start to be a trained model"):
            self.build(tmp_path / "nowhere", tmp_path)


class TestTeacher:
    """A preset with weights teaches: its dates are right."""

    def task(self, tmp_path, *overrides):
        recipe = load(tmp_path, "training.teacher=bahdanau_dates", *overrides)
        recipe.check_requirements()
        run.prepare_folder(recipe, fresh=False)
        task = run.TASKS[recipe.task](recipe)
        return task, run.read_data(task)

    def targets(self, batches, model):
        tokenizer = model.target_tokenizer
        return {text for _, labels in batches.dataset() for text in tokenizer.texts_of(labels.numpy())}

    def test_its_translations_are_trained_on_too(self, tmp_path):
        task, data = self.task(tmp_path)
        model = run.build_model(task, data)
        wrong = data._replace(training=ParallelText(data.training.sources, ["1"] * len(data.training)))
        batches, validation = task.batches(model, wrong)
        assert batches.summary().startswith("400 pairs")
        assert validation.summary().startswith("12 pairs")
        texts = {
            text
            for _, labels in batches.dataset()
            for text in model.target_tokenizer.texts_of(labels.numpy())
        }
        assert "1" in texts
        assert len(texts & set(data.training.targets)) > 0.9 * len(set(data.training.targets))

    def test_it_translates_once(self, tmp_path):
        task, data = self.task(tmp_path)
        model = run.build_model(task, data)
        (task.recipe.folder / TEACHER).write_text(json.dumps([["2"] * 200]))
        batches, _ = task.batches(model, data)
        texts = {
            text
            for _, labels in batches.dataset()
            for text in model.target_tokenizer.texts_of(labels.numpy())
        }
        assert "2" in texts

    def test_a_captioner_teaches_no_translator(self, tmp_path):
        task, data = self.task(tmp_path, "training.teacher=show_attend_and_tell_scenes")
        with pytest.raises(ValueError, match=r"training\.teacher: expected a Translator, .* a Captioner"):
            task.batches(run.build_model(task, data), data)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected training\.teacher .*: bahdanau_dates, "):
            self.task(tmp_path, "training.teacher=nowhere")


class TestFolder:
    def test_other_search_or_more_epochs_are_the_same_training(self, tmp_path):
        run.prepare_folder(load(tmp_path), fresh=False)
        run.prepare_folder(load(tmp_path, "search.beams=3", "training.epochs=9"), fresh=False)

    @pytest.mark.parametrize(
        "overrides",
        [
            ["training.cooldown_epochs=1"],
            ["training.cooldown_epochs=2"],
            ["training.epochs=9", "training.cooldown_epochs=5"],
            ["training.epochs=1"],
        ],
    )
    def test_epochs_and_cooldown_may_change(self, tmp_path, overrides):
        """In both directions: a cooldown may come, go or change."""
        run.prepare_folder(load(tmp_path), fresh=False)
        run.prepare_folder(load(tmp_path, *overrides), fresh=False)
        run.prepare_folder(load(tmp_path), fresh=False)

    @pytest.mark.parametrize(
        "override", ["training.micro_batches=2", "training.precision=mixed_bfloat16", "training.keep=last"]
    )
    def test_what_decides_the_weights_may_not_change(self, tmp_path, override):
        """Micro-batches do: each draws dropout masks of its own."""
        run.prepare_folder(load(tmp_path), fresh=False)
        with pytest.raises(ValueError, match="with other training; start over"):
            run.prepare_folder(load(tmp_path, override), fresh=False)

    def test_records_of_older_versions_lack_keys_that_are_null(self, tmp_path):
        recipe = load(tmp_path)
        run.prepare_folder(recipe, fresh=False)
        record = yaml.safe_load((recipe.folder / run.RECORD).read_text())
        assert record["model"]["encoder"].pop("equal_start", "absent") is None
        for name in ("clip_norm", "cooldown_epochs", "precision", "micro_batches", "backup_steps"):
            assert record["training"].pop(name, "absent") is None
        (recipe.folder / run.RECORD).write_text(yaml.safe_dump(record))
        run.prepare_folder(recipe, fresh=False)
        with pytest.raises(ValueError, match="with other model; start over"):
            run.prepare_folder(load(tmp_path, "model.encoder.dropout=0.5"), fresh=False)

    def test_fresh_deletes_what_a_run_wrote_and_nothing_else(self, tmp_path):
        recipe = load(tmp_path)
        run.prepare_folder(recipe, fresh=False)
        (recipe.folder / "backup").mkdir()
        for name in ("results.json", "alignment.png", "attention-1.png", "notes"):
            (recipe.folder / name).touch()
        run.prepare_folder(load(tmp_path, "seed=7"), fresh=True)
        assert {path.name for path in recipe.folder.iterdir()} == {"notes", run.RECORD}

    @pytest.mark.parametrize("fresh", [False, True])
    def test_folder_of_others_is_left_alone(self, tmp_path, fresh):
        recipe = load(tmp_path)
        recipe.folder.mkdir()
        (recipe.folder / "thesis.tex").touch()
        with pytest.raises(ValueError, match="which holds other things"):
            run.prepare_folder(recipe, fresh=fresh)
        assert [path.name for path in recipe.folder.iterdir()] == ["thesis.tex"]


class TestLearningRate:
    def rate(self, folder, *overrides):
        return run.learning_rate(load(folder, *overrides).training, steps_per_epoch=7)

    def test_constant(self, tmp_path):
        assert self.rate(tmp_path, "training.schedule=constant") == 0.01

    def test_schedule(self, tmp_path):
        rate = self.rate(tmp_path, "training.warmup_steps=5")
        assert isinstance(rate, InverseSquareRootSchedule)
        assert rate.get_config() == {"peak_learning_rate": 0.01, "warmup_steps": 5}

    @pytest.mark.parametrize("schedule", ["constant", "inverse_square_root"])
    def test_cooldown(self, schedule, tmp_path):
        overrides = [f"training.schedule={schedule}", "training.warmup_steps=5"]
        without = self.rate(tmp_path, *overrides)
        rate = self.rate(tmp_path, *overrides, "training.epochs=5", "training.cooldown_epochs=2")
        assert isinstance(rate, CooldownSchedule)
        assert (rate.cooldown_steps, rate.total_steps) == (2 * 7, 5 * 7)
        # Of 35 steps, the last 14 cool down; after 28 half of the rate is left.
        for step, part in {0: 1, 20: 1, 21: 1, 28: 1 / 2, 34: 1 / 14, 35: 0}.items():
            expected = part * (without if schedule == "constant" else float(without(step)))
            np.testing.assert_allclose(float(rate(step)), expected, rtol=1e-6)

    @pytest.mark.parametrize("first", [[], ["training.cooldown_epochs=1"]])
    def test_a_cooldown_may_come_and_go(self, first, tmp_path):
        """As `prepare_folder` allows."""
        second = ["training.epochs=3", *([] if first else ["training.cooldown_epochs=1"])]
        for overrides, epochs in ((first, [0, 1]), (second, [2])):
            settings = load(tmp_path, *overrides).training
            model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
            model.compile(keras.optimizers.Adam(run.learning_rate(settings, steps_per_epoch=1)), "mse")
            history = model.fit(
                np.ones([4, 2]), np.ones([4, 1]), epochs=settings.epochs, verbose=0,
                callbacks=[Resume(tmp_path / "backup")],
            )  # fmt: skip
            assert history.epoch == epochs

    def test_a_cooldown_of_a_constant_rate_may_not(self, tmp_path):
        """The optimizer has a variable for a constant rate, and none for others."""
        run.prepare_folder(load(tmp_path, "training.schedule=constant"), fresh=False)
        with pytest.raises(ValueError, match="received one with other training"):
            changed = load(tmp_path, "training.schedule=constant", "training.cooldown_epochs=1")
            run.prepare_folder(changed, fresh=False)


class TestPrecision:
    @pytest.fixture
    def policy(self):
        """One that is not the default, to see that it comes back."""
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float64")
        yield "float64"
        keras.config.set_dtype_policy(before)

    @pytest.mark.parametrize(
        ("precision", "name"),
        [
            ("float32", "float32"),
            ("bfloat16_products", "float32"),
            ("mixed_bfloat16", "mixed_bfloat16"),
            ("mixed_float16", "mixed_float16"),
        ],
    )
    def test_for_the_time_of_a_run(self, precision, name, policy):
        with run._dtype_policy(precision):
            assert keras.config.dtype_policy().name == name
            assert keras.layers.Dense(1).dtype_policy.name == name
        assert keras.config.dtype_policy().name == policy

    @pytest.mark.parametrize(
        ("precision", "dtype"), [("bfloat16_products", "bfloat16"), ("float32", None), ("null", None)]
    )
    def test_dtype_of_products(self, precision, dtype, tmp_path, monkeypatch):
        class Stop(Exception):
            pass

        def compile_model(model, **arguments):
            raise Stop(arguments["product_dtype"])

        monkeypatch.setattr(EncoderDecoder, "compile", compile_model)
        with pytest.raises(Stop) as stop:
            run.train(load(tmp_path, f"training.precision={precision}"))
        assert stop.value.args == (dtype,)

    def test_none_changes_nothing(self, policy):
        with run._dtype_policy(None):
            assert keras.config.dtype_policy().name == policy
        assert keras.config.dtype_policy().name == policy

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_comes_back_after_an_error(self, error, policy):
        with pytest.raises(error), run._dtype_policy("mixed_float16"):
            raise error
        assert keras.config.dtype_policy().name == policy


def test_log_of_a_run_is_told_once(capsys):
    root = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(root)
    try:
        with run._logging_to(Console()):
            run.logger.info("[bold] stays as it is")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr().out == "[bold] stays as it is\n"
    assert run.logger.propagate
