import logging

import pytest

from attention_zoo.models import SentencePieceTokenizer
from attention_zoo.training import Recipe
from attention_zoo.training.recipe import SentencePiece
from attention_zoo.training.task import Task, run_in_fresh_process, train_tokenizer


class Output:
    def __init__(self, text):
        self.text = text


class Model:
    def export(self, folder, **settings):
        assert not folder.exists()
        folder.mkdir(parents=True)
        self.settings = settings


class Served(Task):
    inputs, outputs = "words", "shouts"

    def serve(self, folder, data):
        return [word.upper() for word in data]


class TestExport:
    def test_counts_what_is_the_same(self, tmp_path, caplog):
        recipe = Recipe.load("dates", [f"output={tmp_path}", "search.beams=3", "search.length_penalty=0.5"])
        (tmp_path / "model").mkdir()  # of an earlier run
        (tmp_path / "model" / "saved_model.pb").touch()
        model = Model()
        with caplog.at_level(logging.WARNING, logger="attention_zoo"):
            outputs = [Output(text) for text in ("A", "b", "C", "D")]
            assert Served(recipe).export(model, ["a", "b", "c"], outputs) == {"words": 3, "equal": 2}
        assert model.settings == {"beams": 3, "length_penalty": 0.5}
        assert "2 of 3 shouts are the same" in caplog.text

    def test_is_no_warning_if_all_are(self, tmp_path, caplog):
        recipe = Recipe.load("dates", [f"output={tmp_path}"])
        with caplog.at_level(logging.WARNING, logger="attention_zoo"):
            assert Served(recipe).export(Model(), ["a"], [Output("A")]) == {"words": 1, "equal": 1}
        assert not caplog.messages


class TestFreshProcess:
    CODE = "import json, sys\nprint('chatter')\nprint(json.dumps([sys.argv[1], json.load(sys.stdin)]))"

    def test_takes_and_gives_json(self, tmp_path):
        assert run_in_fresh_process(self.CODE, tmp_path, {"é": [1]}) == [str(tmp_path), {"é": [1]}]

    def test_what_fails_is_told(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"(?s)does not work in a fresh process.*no such thing"):
            run_in_fresh_process("raise OSError('no such thing')", tmp_path, None)


def test_tokenizer_has_its_settings():
    settings = SentencePiece(
        kind="sentencepiece", model_type="char", vocabulary_size=20, normalization="nfkc_cf"
    )
    tokenizer = train_tokenizer(settings, ["AB", "ba"])
    assert isinstance(tokenizer, SentencePieceTokenizer)
    ids = tokenizer.tokenize(["Ab"])
    assert tokenizer.detokenize(ids.to_tensor()).numpy().tolist() == [b"ab"]
