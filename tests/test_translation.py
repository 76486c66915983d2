import dataclasses

import numpy as np
import pytest

from attention_zoo.models.translation import Translation

TOKENS, SOURCE = ["Hallo", "</s>"], ["hello", "you", "</s>"]


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

    @pytest.mark.parametrize(
        ("part", "rows", "columns"),
        [("cross", TOKENS, SOURCE), ("self", TOKENS, ["<s>", *TOKENS[:-1]]), ("encoder", SOURCE, SOURCE)],
    )
    def test_plot_heads_draws_one_layer(self, part, rows, columns):
        heads = np.random.default_rng(0).random((2, 3, len(rows), len(columns)))
        translation = Translation("x", 0.0, TOKENS, SOURCE, heads={part: heads})
        figure = translation.plot_heads(part=part, layer=-1)
        panel = figure.axes[1]
        np.testing.assert_array_equal(panel.images[0].get_array(), heads[1, 1])
        first = figure.axes[0]  # labels stand at the edges of the grid only
        assert [label.get_text() for label in first.get_yticklabels()] == rows
        assert [label.get_text() for label in first.get_xticklabels()] == columns
        assert not panel.get_yticklabels()
        assert figure.texts[0].get_text() == f"{part}, layer 2 of 2"

    def test_plot_heads_that_are_not_there(self):
        translation = Translation("x", 0.0, TOKENS, SOURCE, heads={"cross": np.ones((2, 1, 3, 2))})
        with pytest.raises(ValueError, match=r"part among .'cross'., received 'self'"):
            translation.plot_heads(part="self")
        with pytest.raises(ValueError, match="layer from 0 to 1, received 2"):
            translation.plot_heads(layer=2)
