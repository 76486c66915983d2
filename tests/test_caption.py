import dataclasses

import numpy as np
import pytest

from attention_zoo.models.caption import Caption

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")


def make(tokens=("▁a", "▁dog", "</s>"), **changes):
    attention = np.random.default_rng(1).random((len(tokens), 2, 3))
    values = {"text": "a dog", "score": -0.5, "tokens": list(tokens), "attention": attention, "image": IMAGE}
    return Caption(**(values | changes))


def names(*tokens):
    return [word for word, _ in make(tokens).words()]


class TestCaption:
    def test_reads_as_its_text(self):
        assert str(make()) == "a dog"

    def test_does_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make().text = "a cat"

    def test_alternatives_and_heads_are_not_shared(self):
        first, second = make(), make()
        first.alternatives.append(second)
        first.heads["cross"] = np.ones((1, 1, 3, 6))
        assert second.alternatives == []
        assert second.heads == {}

    def test_can_be_compared_and_hashed_in_spite_of_its_arrays(self):
        caption = make()
        assert caption == caption
        assert caption != make()
        assert len({caption, make()}) == 2


class TestWords:
    @pytest.mark.parametrize(
        ("tokens", "words"),
        [
            (["▁a", "▁skate", "board", "er", "▁jump", "s", "</s>"], ["a", "skateboarder", "jumps"]),
            (["▁a", "▁dog"], ["a", "dog"]),  # cut off before its end
            (["a", "dog", ".", "</s>"], ["a", "dog", "."]),  # without marks every token is a word
            (["a", "<unk>", "</s>"], ["a", "<unk>"]),
            (["▁a", "▁", "<unk>", "▁dog", "</s>"], ["a", "<unk>", "dog"]),
            (["<unk>", "s", "▁dog", "</s>"], ["<unk>s", "dog"]),
            (["▁a", "▁", "▁", "dog", "▁", "</s>"], ["a", "dog"]),  # spaces without a word
            (["▁the", "▁dog", "s", ".", "</s>"], ["the", "dogs", "."]),
            (["▁wait", ".", ".", "▁no", "!", "</s>"], ["wait", "..", "no", "!"]),
            (["▁.", ".", "▁.", "</s>"], ["..", "."]),
            (["▁ice", "-", "cream", "</s>"], ["ice-cream"]),
            (["▁don", "'", "t", "</s>"], ["don't"]),
            (["▁dog", "▁.", "</s>"], ["dog", "."]),
            (["▁dog", "▁", ".", "</s>"], ["dog", "."]),
            (["▁New▁York", "</s>"], ["New York"]),
            (["</s>"], []),
            (["▁", "</s>"], []),
        ],
    )
    def test_pieces_make_words(self, tokens, words):
        assert names(*tokens) == words

    def test_attention_of_a_word_is_the_mean_of_its_pieces(self):
        caption = make(["▁a", "▁skate", "board", ".", "▁", "x", "▁", "!", "</s>"])
        weights = caption.attention
        expected = [weights[0], (weights[1] + weights[2]) / 2, weights[3], (weights[4] + weights[5]) / 2]
        expected.append((weights[6] + weights[7]) / 2)
        grids = [grid for _, grid in caption.words()]
        np.testing.assert_allclose(grids, expected, rtol=1e-12)

    def test_without_attention_says_what_to_do(self):
        with pytest.raises(ValueError, match=r"received None.*return_attention=True.*has attention"):
            make(attention=None).words()


class TestPlot:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_draws_every_word_on_the_image(self, tmp_path):
        caption = make(["▁a", "▁skate", "board", "</s>"])
        figure = caption.plot(tmp_path / "caption.png", title="Look")
        assert [axes.get_title() for axes in figure.axes] == ["", "a", "skateboard"]
        assert figure.texts[0].get_text() == "Look"
        assert (tmp_path / "caption.png").is_file()
        from attention_zoo.models.image_plotting import plot_attention_on_image

        grids = [caption.attention[0], caption.attention[1:3].mean(axis=0)]
        expected = plot_attention_on_image(IMAGE, np.array(grids), ["a", "skateboard"])
        for axes, other in zip(figure.axes, expected.axes, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), other.images[0].get_array())

    def test_draws_on_another_image(self):
        other = np.full((20, 30, 3), 255, "uint8")
        for caption in (make(), make(image=None)):
            figure = caption.plot(image=other)
            assert (figure.axes[0].images[0].get_array() == 255).all()

    def test_what_is_missing_is_named(self):
        with pytest.raises(ValueError, match=r"received None.*return_attention=True"):
            make(attention=None).plot()
        with pytest.raises(ValueError, match=r"expected an image, received None.*plot\(image=...\)"):
            make(image=None).plot()
        with pytest.raises(ValueError, match="expected a caption with words, received ''"):
            make(["</s>"], text="").plot()
