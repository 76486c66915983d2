import json
import logging

import numpy as np
import pytest
from small_recipe import load

from attention_zoo.models import Translator
from attention_zoo.models.translation import Translation
from attention_zoo.training import ParallelText, RiskBatches, TranslationBatches
from attention_zoo.training.translation_task import (
    BACK_TRANSLATIONS,
    CANDIDATES,
    Data,
    TranslationTask,
)

TARGETS = ["the cat sat on the mat", "A dog, there!"]
DATA = Data(None, None, ParallelText(["a", "b b"], TARGETS))


def make(folder, *overrides):
    return TranslationTask(load(folder, *overrides))


def translations(*texts):
    return [Translation(text, 0.0, [], []) for text in texts]


class TestData:
    def test_generated_parts_differ(self, tmp_path):
        data = make(tmp_path).read_data()
        assert [len(part) for part in data] == [200, 12, 12]
        sources = [source for part in data for source in part.sources]
        assert len(set(sources[200:])) == 24 and not set(sources[:200]) & set(sources[200:])

    def test_files(self, tmp_path):
        for name, text in (("a", "1\n2\n"), ("b", "one\ntwo\n"), ("c", "3\n"), ("d", "three\n")):
            (tmp_path / name).write_text(text)
        files = "data={kind: text_files, training: [a, b], validation: [c, d], test: [a, b]}"
        data = make(tmp_path, files, f"data.folder={tmp_path}").read_data()
        assert (data.training.targets, data.validation.sources) == (["one", "two"], ["3"])


class TestModel:
    def test_tokenizers_of_their_own(self, tmp_path):
        task = make(tmp_path)
        model = task.build_model(task.read_data())
        assert model.source_tokenizer.vocabulary_size > 16 == model.target_tokenizer.vocabulary_size
        assert (model.encoder.units, model.decoder.attention.units) == (8, 8)

    def test_joint_tokenizer_is_one_object(self, tmp_path):
        joint = "{joint: true, source: {kind: whitespace, vocabulary_size: 9}}"
        task = make(tmp_path, f"tokenizers={joint}", "model.share_embeddings=true")
        model = task.build_model(Data(ParallelText(["a b"], ["c c"]), None, None))
        assert model.source_tokenizer is model.target_tokenizer
        assert sorted(model.source_tokenizer.vocabulary) == ["a", "b", "c"]
        assert model.encoder.embedding is model.decoder.embedding

    def test_batches_are_those_that_are_asked_for(self, tmp_path):
        task = make(tmp_path)
        data = task.read_data()
        training, validation = task.batches(task.build_model(data), data)
        assert (training.batch_tokens, training.seed, training.shuffle) == (1024, 1, True)
        assert (validation.batch_tokens, validation.shuffle) == (1024, False)


class TestCandidates:
    """The preset looks for translations of its own."""

    def batches(self, folder, change=lambda text: text):
        task = make(
            folder, "model={preset: bahdanau, start: bahdanau_dates}", "training.risk=2.0",
            "training.candidates=3", "training.keep=last",
        )  # fmt: skip
        task.recipe.folder.mkdir(exist_ok=True)
        data, model = task.read_data(), Translator.from_preset("bahdanau_dates")
        data = data._replace(training=change(data.training[:6]))
        return task, model, task.batches(model, data)

    def test_they_are_the_best_of_a_search_with_their_costs(self, tmp_path):
        pytest.importorskip("sacrebleu")
        task, model, (batches, validation) = self.batches(tmp_path)
        assert task.objective() == {"risk": 2.0}
        assert isinstance(batches, RiskBatches) and isinstance(validation, TranslationBatches)
        ((inputs, labels),) = list(batches.dataset())
        assert labels.shape[:2] == (6, 4)
        texts, costs = model.target_tokenizer.texts_of(labels.numpy()), inputs["costs"].numpy()
        assert (texts[:, 0] == texts[:, 1]).all()  # it knows its dates
        assert not costs[:, 0].any() and (costs[:, 1:] > 0).all()
        assert all(len(set(row[1:])) == 3 for row in texts)
        kept = json.loads((task.recipe.folder / CANDIDATES).read_text())
        assert sorted(map(tuple, kept["candidates"])) == sorted(map(tuple, texts[:, 1:]))

    def test_they_are_found_once(self, tmp_path):
        pytest.importorskip("sacrebleu")
        (tmp_path / "run").mkdir()
        kept = {"candidates": [["2"]] * 6, "costs": [[0.5]] * 6}
        (tmp_path / "run" / CANDIDATES).write_text(json.dumps(kept))
        _, model, (batches, _) = self.batches(tmp_path)
        ((_, labels),) = list(batches.dataset())
        assert set(model.target_tokenizer.texts_of(labels.numpy())[:, 1]) == {"2"}


class TestBackTranslator:
    """The preset reads the targets, which are dates too."""

    def sources(self, folder, targets):
        task = make(folder, "training.back_translator=bahdanau_dates")
        task.recipe.folder.mkdir(exist_ok=True)
        data = task.read_data()
        data = data._replace(training=ParallelText(["a"] * len(targets), targets))
        model = task.build_model(data)
        batches, _ = task.batches(model, data)
        pairs = []
        for inputs, labels in batches.dataset():
            sources = model.source_tokenizer.texts_of(inputs["source"].numpy())
            pairs += zip(sources, model.target_tokenizer.texts_of(labels.numpy()), strict=True)
        return task, sorted(pairs)

    def test_two_sources_more_of_each_target(self, tmp_path):
        targets = [f"199{n}-05-0{n}" for n in range(4, 8)]
        task, pairs = self.sources(tmp_path, targets)
        kept = json.loads((task.recipe.folder / BACK_TRANSLATIONS).read_text())
        assert [len(made) for made in kept] == [4, 4]
        preset = Translator.from_preset("bahdanau_dates")
        assert kept[0] == [found.text for found in preset.translate(targets, beams=1)]
        drawn = preset.translate(targets, sample=True, top_p=0.95, seed=task.recipe.seed)
        assert kept[1] == [one.text for one in drawn]
        assert len(pairs) == 12

    def test_they_are_found_once_and_blank_ones_left_out(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / BACK_TRANSLATIONS).write_text(json.dumps([["b", "b"], ["", "b"]]))
        _, pairs = self.sources(tmp_path, ["1", "2"])
        assert [target for _, target in pairs].count("1") == 2
        assert [target for _, target in pairs].count("2") == 3
        assert len({source for source, _ in pairs}) == 2


class TestScore:
    def test_exact_match(self, tmp_path):
        result = make(tmp_path).score(DATA, translations("the cat sat on the mat", "no"))
        assert result == {"exact_match": 0.5}

    def test_bleu_says_how_it_was_computed(self, tmp_path):
        pytest.importorskip("sacrebleu")
        task = make(tmp_path, "evaluation={metric: bleu, tokenized: true, by_length: true}")
        result = task.score(DATA, translations(*TARGETS))
        assert result["detokenized"]["bleu"] == pytest.approx(100)
        assert "tok:13a" in result["detokenized"]["bleu_signature"]
        assert "tok:none" in result["tokenized"]["bleu_signature"]
        assert sum(row["sentences"] for row in result["bleu_by_length"]) == 2
        json.dumps(result)

    def test_detokenized_only_unless_asked(self, tmp_path):
        pytest.importorskip("sacrebleu")
        result = make(tmp_path, "evaluation.metric=bleu").score(DATA, translations(*TARGETS))
        assert set(result) == {"detokenized"}

    def test_epochs_are_compared_by_bleu_where_it_is_measured(self, tmp_path):
        assert make(tmp_path).monitored is None
        task = make(tmp_path, "evaluation={metric: bleu, tokenized: true, every_epochs: 3}")
        assert task.monitored == "val_bleu"
        callback = task.score_callback(None, DATA._replace(validation=DATA.test))
        assert (callback.every, callback.tokenized) == (3, True)


def test_samples_show_the_reference_of_a_wrong_one_only(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="attention_zoo"):
        make(tmp_path).print_samples(DATA, translations("the cat sat on the mat", "no"))
    right, wrong = caplog.messages
    assert "reference" not in right
    assert "b b  ->  no" in wrong and "A dog, there!" in wrong


class TestDraw:
    def test_a_model_without_attention_has_no_picture(self, tmp_path, caplog):
        class Model:
            class decoder:
                has_attention = False

        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            make(tmp_path).draw(Model(), DATA)
        assert "No picture" in caplog.text

    def test_every_layer_of_a_transformer_has_a_picture(self, tmp_path):
        heads = {"cross": np.full((2, 3, 2, 2), 0.5), "encoder": np.full((1, 3, 2, 2), 0.5)}

        class Model:
            class encoder:
                has_attention = True

            decoder = encoder

            def translate(self, text, beams, return_attention):
                return Translation("b", -1.0, ["b", "</s>"], ["a", "</s>"], heads["cross"][0, 0], heads=heads)

        task = make(tmp_path)
        task.draw(Model(), DATA)
        assert (task.recipe.folder / "alignment.png").is_file()
        pictures = sorted(path.name for path in (task.recipe.folder / "heads").iterdir())
        assert pictures == ["cross-1.png", "cross-2.png", "encoder-1.png"]
