import dataclasses

import numpy as np
import pytest

from attention_zoo.models.translation import Translation


def make(**changes):
    values = {
        "text": "Hallo",
        "score": -0.5,
        "tokens": ["▁Hallo", "</s>"],
        "source_tokens": ["▁hello", "▁you", "</s>"],
        "attention": np.array([[0.7, 0.2, 0.1], [0.0, 0.1, 0.9]]),
    }
    return Translation(**(values | changes))


class TestTranslation:
    def test_reads_as_its_text(self):
        assert str(make()) == "Hallo"

    def test_does_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make().text = "Tschüss"

    def test_alternatives_are_not_shared(self):
        first, second = make(), make()
        first.alternatives.append(second)
        assert second.alternatives == []

    def test_can_be_compared_and_hashed_in_spite_of_its_array(self):
        translation = make()
        assert translation == translation
        assert translation != make()
        assert len({translation, make()}) == 2

    def test_plot_draws_target_against_source(self, tmp_path):
        pytest.importorskip("matplotlib")
        figure = make().plot(tmp_path / "attention.png", title="Hello")
        axes = figure.axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["␣hello", "␣you", "</s>"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["␣Hallo", "</s>"]
        assert axes.get_title() == "Hello"
        assert (tmp_path / "attention.png").is_file()

    def test_plot_without_attention_says_what_to_do(self):
        with pytest.raises(ValueError, match=r"received None.*return_attention=True.*has attention"):
            make(attention=None).plot()
