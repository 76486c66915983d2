import itertools
import math
import sys

import numpy as np
import pytest

from attention_zoo.models import image_plotting
from attention_zoo.models.image_plotting import _spread, plot_attention_on_image

matplotlib_image = pytest.importorskip("matplotlib.image")

WHITE = np.full((40, 60, 3), 255, "uint8")
DARK = 50 + 0.25 * 255  # what white is where nothing is looked at

# Matplotlib must have nothing to complain about, neither as a warning nor in its log.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def silent_log(caplog):
    yield
    assert not [record for record in caplog.get_records("call") if record.name.startswith("matplotlib")]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")


def draw(words, image=WHITE, path=None, **options):
    attention = np.random.default_rng(1).random((len(words), 2, 3))
    return plot_attention_on_image(image, attention, words, path, **options)


def panels(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def panel(attention, image=WHITE):
    """The picture of one word, float."""
    return panels(plot_attention_on_image(image, np.array([attention]), ["x"]))[1].astype("float64")


class TestSpread:
    @pytest.mark.parametrize(("cells", "pixels"), [((7, 7), (50, 50)), ((2, 3), (40, 31)), ((1, 1), (5, 4))])
    def test_matches_sums_in_loops(self, cells, pixels):
        weights = np.random.default_rng(0).random(cells)
        expected = np.zeros(pixels)
        for y, x in np.ndindex(pixels):
            total = 0.0
            for row, column in np.ndindex(cells):
                down = (y + 0.5) / pixels[0] * cells[0] - (row + 0.5)
                right = (x + 0.5) / pixels[1] * cells[1] - (column + 0.5)
                share = math.exp(-(down**2 + right**2) / (2 * 0.5**2))
                expected[y, x] += share * weights[row, column]
                total += share
            expected[y, x] /= total
        np.testing.assert_allclose(_spread(weights, *pixels), expected, rtol=1e-12)

    def test_keeps_a_uniform_map(self):
        np.testing.assert_allclose(_spread(np.full((7, 5), 0.3), 60, 40), 0.3, rtol=1e-12)

    def test_stays_between_the_weights(self):
        weights = np.random.default_rng(0).random((7, 7))
        spread = _spread(weights, 70, 70)
        assert weights.min() < spread.min() and spread.max() < weights.max()

    def test_neighbours_are_alike(self):
        weights = np.zeros((7, 7))
        weights[3, 3] = 1
        spread = _spread(weights, 70, 70)
        assert np.abs(np.diff(spread)).max() < 0.15 * spread.max()

    def test_largest_weight_is_in_its_cell(self):
        for row, column in np.ndindex(3, 4):
            weights = np.zeros((3, 4))
            weights[row, column] = 1
            y, x = np.unravel_index(_spread(weights, 30, 60).argmax(), (30, 60))
            assert (y // 10, x // 15) == (row, column)

    def test_is_symmetric(self):
        weights = np.random.default_rng(0).random((4, 6))
        spread = _spread(weights, 33, 50)
        np.testing.assert_allclose(_spread(weights[::-1, ::-1], 33, 50), spread[::-1, ::-1], rtol=1e-12)
        np.testing.assert_allclose(_spread(weights.T, 50, 33), spread.T, rtol=1e-12)

    def test_no_cell_is_lost_between_the_pixels(self):
        for cell in range(20):
            weights = np.zeros((20, 1))
            weights[cell] = 1
            assert _spread(weights, 4, 5).max() > 0.1


class TestPanels:
    def test_first_is_the_image(self):
        colours = np.zeros((40, 60, 3), "uint8")
        colours[:20, :30], colours[20:, 30:] = (255, 0, 0), (10, 20, 30)
        first, _ = panels(draw(["x"], colours))
        height, width, _ = first.shape
        assert abs(height / width - 40 / 60) < 0.01
        assert first[5, 5].tolist() == [255, 0, 0]
        assert first[-5, -5].tolist() == [10, 20, 30]
        assert first[5, -5].tolist() == first[-5, 5].tolist() == [0, 0, 0]

    def test_lit_where_the_weight_is_largest_and_dark_elsewhere(self):
        lit = panel([[0.0, 0.0, 0.4], [0.0, 0.0, 0.0]])
        height, width, _ = lit.shape
        y, x = np.unravel_index(lit[..., 0].argmax(), (height, width))
        assert y < height / 2 and x > width * 2 / 3
        assert lit[y, x].tolist() == [255, 255, 255]
        np.testing.assert_allclose(lit[-1, 0], DARK, atol=1)

    def test_shades_are_in_proportion_to_the_weights(self):
        weights = np.random.default_rng(0).random((3, 4))
        lit = panel(weights)
        spread = _spread(weights, *lit.shape[:2])
        expected = DARK + (255 - DARK) * spread / spread.max()
        np.testing.assert_allclose(lit, np.repeat(expected[:, :, None], 3, axis=2), atol=0.5 + 1e-9)

    def test_dark_places_are_grey(self):
        red = np.zeros((40, 60, 3), "uint8")
        red[..., 0] = 200
        dark = panel([[1.0, 0.0, 0.0, 0.0]], red)[0, -1]
        np.testing.assert_allclose(dark, 50 + 0.25 * 0.299 * 200, atol=0.6)

    def test_every_word_has_a_scale_of_its_own(self):
        attention = np.random.default_rng(0).random((1, 3, 3))
        figure = plot_attention_on_image(
            noise(30, 30), np.concatenate([attention, attention * 1e-6]), ["a", "b"]
        )
        _, large, small = panels(figure)
        np.testing.assert_array_equal(large, small)

    def test_attention_to_everything_shows_everything(self):
        image = noise(30, 30)
        first, word = panels(plot_attention_on_image(image, np.full((1, 7, 7), 1 / 49), ["x"]))
        np.testing.assert_array_equal(word, first)
        nearly = np.linspace(0.95, 1.0, 49).reshape(7, 7)
        assert panel(nearly).min() > 0.9 * 255

    def test_attention_to_nothing_is_dark(self):
        np.testing.assert_allclose(panel(np.zeros((2, 2))), DARK, atol=0.5)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
    def test_dtypes_of_images_are_alike(self, dtype):
        image = noise(20, 20)
        for ours, other in zip(
            panels(draw(["x"], image)), panels(draw(["x"], image.astype(dtype))), strict=True
        ):
            np.testing.assert_array_equal(ours, other)

    def test_small_errors_of_rounding_are_forgiven(self):
        image = np.array([[[-1e-4, 254.6, 255.0001]]], "float32")
        first, _ = panels(draw(["x"], image))
        assert first[0, 0].tolist() == [0, 255, 255]


class TestLayout:
    @pytest.mark.parametrize(
        ("count", "across", "down"), [(1, 2, 1), (6, 7, 1), (7, 4, 2), (12, 7, 2), (20, 7, 3), (25, 7, 4)]
    )
    def test_words_wrap_with_few_gaps(self, count, across, down):
        words = [f"w{index}" for index in range(count)]
        figure = draw(words, noise(30, 30))
        assert titles(figure) == ["", *words]
        corners = [axes.get_position().p0 for axes in figure.axes]
        assert len({round(x, 6) for x, _ in corners}) == across
        assert len({round(y, 6) for _, y in corners}) == down
        places = [(-round(y, 6), x) for x, y in corners]
        assert places == sorted(places)

    @pytest.mark.parametrize("shape", [(20, 160), (160, 20), (30, 40), (3, 2), (2, 100), (700, 500)])
    def test_panels_have_the_proportions_of_the_image(self, shape):
        figure = draw(["x", "y"], noise(*shape))
        height, width, _ = panels(figure)[1].shape
        assert abs(math.log(height / width * shape[1] / shape[0])) < 0.03
        assert max(height, width) <= 600
        for axes in figure.axes:
            np.testing.assert_allclose(axes.bbox.size, (width, height), atol=0.01)

    @pytest.mark.parametrize(("shape", "count"), [((40, 60), 1), ((300, 31), 4), ((31, 300), 2), ((9, 9), 8)])
    def test_file_has_the_pixels_of_the_panels(self, shape, count, tmp_path):
        figure = draw(["x"] * count, noise(*shape), tmp_path / "pixels.png", title="pixels")
        drawn = np.rint(matplotlib_image.imread(tmp_path / "pixels.png")[..., :3] * 255)
        for axes, shown in zip(figure.axes, panels(figure), strict=True):
            x, y = round(axes.bbox.x0), len(drawn) - round(axes.bbox.y1)
            height, width, _ = shown.shape
            np.testing.assert_array_equal(drawn[y : y + height, x : x + width], shown)

    def test_figures_have_whole_pixels(self):
        for height in range(20, 60):
            figure = draw(["x"], noise(height, 40))
            first = figure.axes[0].bbox
            gaps = [first.x0, first.y0, figure.bbox.x1 - figure.axes[1].bbox.x1, figure.bbox.y1 - first.y1]
            np.testing.assert_allclose(gaps, [18, 18, 18, 18 + 35], atol=0.01)
            for size in figure.bbox.size:
                assert int(size) == round(size)

    def test_size_of_a_photo_does_not_matter(self):
        small, large = draw(["x"], noise(75, 100)), draw(["x"], noise(1500, 2000))
        assert [shown.shape for shown in panels(small)] == [shown.shape for shown in panels(large)]

    @pytest.mark.parametrize("shape", [(30, 30), (100, 10), (10, 100)])
    def test_texts_fit_in_the_figure_and_do_not_overlap(self, shape):
        words = ["internationalization", "W" * 40, "a", "ygj", "年" * 20, "x"] * 2
        figure = draw(words, noise(*shape), title="a title " * 15)
        renderer = figure.canvas.get_renderer()
        boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes[1:]]
        boxes += [axes.bbox for axes in figure.axes] + [figure.texts[0].get_window_extent(renderer)]
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)

    def test_word_stands_above_its_panel(self):
        figure = draw(["dog"])
        renderer = figure.canvas.get_renderer()
        axes = figure.axes[1]
        box = axes.title.get_window_extent(renderer)
        assert axes.bbox.y1 < box.y0 < axes.bbox.y1 + 15
        assert abs((box.x0 + box.x1) / 2 - (axes.bbox.x0 + axes.bbox.x1) / 2) < 2

    def test_leaves_pyplot_alone(self):
        draw(["a"])
        from matplotlib import pyplot

        assert pyplot.get_fignums() == []


class TestTexts:
    def test_odd_words_are_shown(self):
        words = ["$x_1$", "\\frac{", "a\nb", "", "▁dog", "שלום"]
        shown = ["$x_1$", "\\frac{", "a‹U+000A›b", "‹empty›", "␣dog", "שלום"]
        assert titles(draw(words, noise(10, 20)))[1:] == shown

    def test_long_words_are_cut(self):
        _, short, long = titles(draw(["caption", "internationalization" * 3], noise(40, 10)))
        assert short == "caption"
        assert long.startswith("internat") and long.endswith("…") and len(long) < 15

    def test_narrow_images_leave_room_for_words(self):
        assert titles(draw(["climbing", "surfboard"], noise(100, 5)))[1:] == ["climbing", "surfboard"]

    def test_title_is_broken_into_lines(self):
        title = "two dogs of different breeds look at each other on the road"
        figure = draw(["x"], title=title)
        assert figure.texts[0].get_text().split() == title.split()
        assert "\n" in figure.texts[0].get_text()
        assert draw(["x"] * 6, title=title).texts[0].get_text() == title

    def test_fonts_are_looked_for_in_words_and_title(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            image_plotting, "font_families", lambda text: asked.append(text) or ["DejaVu Sans"]
        )
        draw(["ab", "c"], title="de")
        assert set(asked[0]) == set("abcde")

    def test_title_is_drawn_as_it_is(self, tmp_path):
        figure = draw(["x"], path=tmp_path / "title.svg", title="$\\foo_{$\u202e")
        assert "".join(figure.texts[0].get_text().split()) == "$\\foo_{$‹U+202E›"


class TestErrors:
    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((4, 4), "uint8"),
            np.zeros((1, 4, 4, 3), "uint8"),
            np.zeros((4, 4, 4), "uint8"),
            np.zeros((0, 4, 3), "uint8"),
            np.zeros((4, 4, 3), "bool"),
            "picture.jpg",
        ],
    )
    def test_not_an_image(self, image):
        with pytest.raises(ValueError, match=r"expected an image of numbers of shape \(h, w, 3\), received"):
            draw(["x"], image)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 256.0])
    def test_values_that_are_no_colours(self, value):
        image = WHITE.astype("float32")
        image[1, 2, 0] = value
        with pytest.raises(ValueError, match="finite values of the image from 0 to 255, received"):
            draw(["x"], image)

    def test_image_from_0_to_1(self):
        with pytest.raises(ValueError, match=r"received values from 0\.0 to 1\.0; multiply them by 255"):
            draw(["x"], np.linspace(0, 1, 48).reshape(4, 4, 3))
        draw(["x"], np.zeros((4, 4, 3), "float32"))  # black is black in both

    @pytest.mark.parametrize("shape", [(2, 3, 3), (1, 9), (1, 1, 3, 3), (1, 0, 3)])
    def test_wrong_shape_of_the_attention(self, shape):
        with pytest.raises(ValueError, match=r"= \(1, H, W\), received shape"):
            plot_attention_on_image(WHITE, np.ones(shape), ["x"])

    @pytest.mark.parametrize("count", [0, 501])
    def test_wrong_number_of_words(self, count):
        with pytest.raises(ValueError, match=f"expected 1 to 500 words, received {count}"):
            plot_attention_on_image(WHITE, np.ones((count, 2, 2)), ["x"] * count)

    def test_words_that_are_not_split(self):
        with pytest.raises(ValueError, match="expected a list of words, received the string 'abc'"):
            plot_attention_on_image(WHITE, np.ones((3, 2, 2)), "abc")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
    def test_values_that_are_no_weights(self, value):
        with pytest.raises(ValueError, match="expected finite weights"):
            plot_attention_on_image(WHITE, np.array([[[0.5, value]]]), ["x"])

    def test_unknown_suffix(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, received"):
            draw(["a"], path=tmp_path / "picture.jpg")

    def test_missing_matplotlib_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"attention-zoo\[plot\]"):
            draw(["a"])


@pytest.mark.parametrize("name, start", [("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_format_follows_the_suffix(name, start, tmp_path):
    path = tmp_path / "new folder" / name
    draw(["a", "שלום", "年"], path=str(path), title="title")
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]
