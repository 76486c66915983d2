import pytest

from attention_zoo.models.translation import Translation
from attention_zoo.training.callbacks.sample_translations import SampleTranslations


class Shouter:
    """Stands in for a Translator."""

    def translate(self, texts, beams):
        assert beams == 1
        return [Translation(text.upper(), 0.0, [], []) for text in texts]


def printed(capsys, *arguments, **options):
    callback = SampleTranslations(*arguments, **options)
    callback.set_model(Shouter())
    callback.on_epoch_end(0, {})
    return capsys.readouterr().out


class TestSampleTranslations:
    def test_prints_source_translation_and_reference(self, capsys):
        output = printed(capsys, ["one", "two"], ["eins", "zwei"])
        assert "epoch 1" in output
        words = [line.split() for line in output.splitlines()[1:]]
        assert words[:3] == [["source", "one"], ["translation", "ONE"], ["reference", "eins"]]
        assert ["reference", "zwei"] in words

    def test_prints_as_many_as_asked(self, capsys):
        output = printed(capsys, ["one", "two", "three"], count=2)
        assert "TWO" in output
        assert "THREE" not in output
        assert "reference" not in output

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"sources": []}, "at least one source"),
            ({"sources": ["a"], "references": []}, r"one reference per source \(1\), received 0"),
            ({"sources": ["a"], "count": 0}, "count of at least 1, received 0"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SampleTranslations(**arguments)
