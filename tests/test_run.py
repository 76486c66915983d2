import json
import logging
import sys

import numpy as np
import pytest
from rich.console import Console

from attention_zoo.models.translation import Translation
from attention_zoo.training import Recipe, run

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
        assert agreement["equal"] == agreement["sentences"] == run.SAMPLES

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

    def test_saved_model_that_does_not_load(self, tmp_path):
        with pytest.raises(RuntimeError, match="does not work in a fresh process"):
            run.translate_in_fresh_process(tmp_path, ["a"])


class TestFolder:
    def test_other_search_or_more_epochs_are_the_same_training(self, tmp_path):
        run.prepare_folder(load(tmp_path), fresh=False)
        run.prepare_folder(load(tmp_path, "search.beams=3", "training.epochs=9"), fresh=False)

    def test_fresh_deletes_what_a_run_wrote_and_nothing_else(self, tmp_path):
        recipe = load(tmp_path)
        run.prepare_folder(recipe, fresh=False)
        (recipe.folder / "backup").mkdir()
        (recipe.folder / "results.json").touch()
        (recipe.folder / "notes").touch()
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


class Text:
    sources, targets = ("a", "b b"), ("the cat sat on the mat", "A dog, there!")

    def __len__(self):
        return 2


def translations(*texts):
    return [Translation(text, 0.0, [], []) for text in texts]


class TestScore:
    def test_exact_match(self, tmp_path):
        result = run.score(load(tmp_path), Text(), translations("the cat sat on the mat", "no"))
        assert result == {"exact_match": 0.5}

    def test_bleu_says_how_it_was_computed(self, tmp_path):
        pytest.importorskip("sacrebleu")
        recipe = load(tmp_path, "evaluation={metric: bleu, tokenized: true, by_length: true}")
        result = run.score(recipe, Text(), translations(*Text.targets))
        assert result["detokenized"]["bleu"] == pytest.approx(100)
        assert "tok:13a" in result["detokenized"]["bleu_signature"]
        assert "tok:none" in result["tokenized"]["bleu_signature"]
        assert sum(row["sentences"] for row in result["bleu_by_length"]) == 2
        json.dumps(result)

    def test_detokenized_only_unless_asked(self, tmp_path):
        pytest.importorskip("sacrebleu")
        result = run.score(load(tmp_path, "evaluation.metric=bleu"), Text(), translations(*Text.targets))
        assert set(result) == {"detokenized"}


def test_samples_show_the_reference_of_a_wrong_one_only(caplog):
    with caplog.at_level(logging.INFO, logger="attention_zoo"):
        run.print_samples(Text(), translations("the cat sat on the mat", "no"))
    right, wrong = caplog.messages
    assert "reference" not in right
    assert "b b  ->  no" in wrong and "A dog, there!" in wrong


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


def test_a_model_without_attention_has_no_picture(tmp_path, caplog):
    class Model:
        class decoder:
            has_attention = False

    with caplog.at_level(logging.INFO, logger="attention_zoo"):
        run.draw(load(tmp_path), Model(), Text())
    assert "No picture" in caplog.text


def test_every_layer_of_a_transformer_has_a_picture(tmp_path):
    heads = {"cross": np.full((2, 3, 2, 2), 0.5), "encoder": np.full((1, 3, 2, 2), 0.5)}

    class Model:
        class encoder:
            has_attention = True

        decoder = encoder

        def translate(self, text, beams, return_attention):
            return Translation("b", -1.0, ["b", "</s>"], ["a", "</s>"], heads["cross"][0, 0], heads=heads)

    recipe = load(tmp_path)
    run.draw(recipe, Model(), Text())
    assert (recipe.folder / "alignment.png").is_file()
    pictures = sorted(path.name for path in (recipe.folder / "heads").iterdir())
    assert pictures == ["cross-1.png", "cross-2.png", "encoder-1.png"]
