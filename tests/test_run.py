import json
import logging
import sys

import pytest
import yaml
from rich.console import Console

from attention_zoo.training import Recipe, run
from attention_zoo.training.task import SAMPLES

# Two epochs of almost nothing: it learns no dates, but passes through every part of a run.
TEXT = """
name: tiny
description: For the tests
data: {kind: generated_dates, training_count: 200, held_out_count: 12}
tokenizers:
  source: {kind: sentencepiece, model_type: char, vocabulary_size: 200}
  target: {kind: sentencepiece, model_type: char, vocabulary_size: 16, normalization: identity}
model:
  preset: bahdanau
  encoder: {embedding_dim: 8, units: 8}
  decoder: {embedding_dim: 8, units: 8, attention: {units: 8}}
training: {epochs: 2, batch_tokens: 1024, peak_learning_rate: 0.01, keep: average, average_last: 2}
evaluation: {metric: exact_match}
"""


def load(folder, *overrides):
    file = folder / "tiny.yaml"
    file.write_text(TEXT)
    return Recipe.load(str(file), [f"output={folder / 'run'}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder above a finished run, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run.train(load(folder))


@pytest.mark.slow
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


class TestFolder:
    def test_other_search_or_more_epochs_are_the_same_training(self, tmp_path):
        run.prepare_folder(load(tmp_path), fresh=False)
        run.prepare_folder(load(tmp_path, "search.beams=3", "training.epochs=9"), fresh=False)

    def test_records_of_older_versions_lack_keys_that_are_null(self, tmp_path):
        recipe = load(tmp_path)
        run.prepare_folder(recipe, fresh=False)
        record = yaml.safe_load((recipe.folder / run.RECORD).read_text())
        assert record["model"]["encoder"].pop("equal_start", "absent") is None
        assert record["training"].pop("clip_norm", "absent") is None
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
