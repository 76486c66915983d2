import itertools
import sys

import numpy as np
import pytest

from attention_zoo.models import plotting
from attention_zoo.models.plotting import plot_attention, plot_heads

matplotlib = pytest.importorskip("matplotlib")


# Matplotlib must have nothing to complain about, neither as a warning nor in its log.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def silent_log(caplog):
    yield
    assert not [record for record in caplog.get_records("call") if record.name.startswith("matplotlib")]


def draw(source, target=("a",), path=None, **options):
    attention = np.full([len(target), len(source)], 1 / len(source))
    return plot_attention(attention, source, target, path, **options)


def labels(source):
    return [label.get_text() for label in draw(source).axes[0].get_xticklabels()]


class TestHeatMap:
    def test_shows_the_weights(self):
        attention = np.array([[0.5, 0.2, 0.3], [0.0, 0.6, 0.4]])
        figure = plot_attention(attention, ["a", "b", "c"], ["x", "y"])
        image = figure.axes[0].images[0]
        np.testing.assert_array_equal(image.get_array(), attention)
        assert image.get_clim() == (0, 0.6)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x", "y"]
        assert figure.axes[1].get_ylabel() == "attention weight"

    def test_weights_of_zero_have_a_scale(self):
        figure = plot_attention(np.zeros([1, 2]), ["a", "b"], ["x"])
        assert figure.axes[0].images[0].get_clim() == (0, 1)

    @pytest.mark.parametrize("rows, columns", [(1, 1), (2, 20), (20, 1), (5, 5), (60, 60)])
    def test_texts_fit_in_the_figure_and_do_not_overlap(self, rows, columns):
        source, target = [f"▁source{i}" for i in range(columns)], [f"▁target{i}" for i in range(rows)]
        figure = draw(source, target, title="▁a title")
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            box = axes.get_tightbbox(renderer)
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        boxes = [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
        for upper, lower in itertools.pairwise(boxes):
            assert upper.y0 >= lower.y1
        assert not figure.axes[0].bbox.overlaps(figure.axes[1].get_tightbbox(renderer))

    def test_grows_with_the_sentence_up_to_a_limit(self):
        sizes = [draw(["x"] * count, ["y"] * count).get_size_inches() for count in (20, 60, 1000)]
        assert (sizes[0] < sizes[1]).all() and (sizes[1] < sizes[2]).all()
        assert sizes[2].max() < 45

    def test_labels_of_a_very_long_sentence_are_thinned_out(self):
        shown = labels([f"w{i}" for i in range(1000)])
        assert shown[0] == "w0"
        assert 50 < len(shown) < 250

    def test_leaves_pyplot_alone(self):
        draw(["a"])
        from matplotlib import pyplot

        assert pyplot.get_fignums() == []


class TestLabels:
    def test_spaces_are_visible(self):
        assert labels(["▁the", " ", "a b", "\u3000", ""]) == ["␣the", "␣", "a␣b", "␣", "‹empty›"]

    def test_special_characters_are_drawn_as_they_are(self, tmp_path):
        tokens = ["$a_b$", "\\frac{1}", "$", "{", "%", "#_^&", "e\u0301", "שלום", "مرحبا", "<s>"]
        assert labels(tokens) == tokens
        for suffix in ("png", "pdf", "svg"):
            draw(tokens, tokens, tmp_path / f"special.{suffix}", title="$\\foo_{$")

    @pytest.mark.parametrize("token", ["\n", "\x00", "\u200d", "\u202e", "\ue000", "\ud800", "\u2028"])
    def test_invisible_characters_become_codes(self, token, tmp_path):
        assert labels([f"a{token}b"]) == [f"a‹U+{ord(token):04X}›b"]
        draw([token], [token], tmp_path / "odd.svg", title=token)

    def test_what_no_font_draws_becomes_a_code(self, tmp_path, monkeypatch):
        only = plotting._characters_of
        monkeypatch.setattr(
            plotting,
            "_characters_of",
            lambda family: only(family) if family == "DejaVu Sans" else frozenset(),
        )
        assert labels(["2024年"]) == ["2024‹U+5E74›"]
        assert draw(["年"], title="年").axes[0].get_title() == "‹U+5E74›"
        draw(["年", "안녕", "👩‍👩‍👧", "नमस्ते"], ["🐶"], tmp_path / "codes.png", title="年")

    def test_installed_fonts_are_used(self, tmp_path, year_font):
        assert labels(["2024年"]) == ["2024年"]
        figure = draw(["2024年"], ["2024年"], tmp_path / "year.png", title="年")
        assert year_font in figure.axes[0].get_xticklabels()[0].get_fontfamily()
        for suffix in ("pdf", "svg"):
            draw(["2024年"], ["2024年"], tmp_path / f"year.{suffix}")

    def test_long_tokens_are_cut(self):
        (label,) = labels(["x" * 500])
        assert label.endswith("x…")
        assert len(label) < 50


class TestHeads:
    def heads(self, count, rows=5, columns=6):
        weights = np.random.default_rng(0).random((count, rows, columns))
        return weights / weights.sum(-1, keepdims=True)

    @pytest.mark.parametrize(("count", "across", "down"), [(1, 1, 1), (4, 2, 2), (7, 3, 3), (8, 4, 2)])
    def test_every_head_has_a_panel_in_one_scale(self, count, across, down):
        attention = self.heads(count)
        figure = plot_heads(attention, list("abcdef"), list("vwxyz"))
        *panels, _bar = figure.axes
        assert len(panels) == count
        for panel, weights in zip(panels, attention, strict=True):
            (image,) = panel.images
            np.testing.assert_array_equal(image.get_array(), weights)
            assert image.get_clim() == (0, attention.max())
        corners = [panel.get_position().p0 for panel in panels]
        assert len({round(x, 6) for x, _ in corners}) == across
        assert len({round(y, 6) for _, y in corners}) == down

    def test_panels_and_texts_stay_apart(self):
        tokens = ["▁photographs", "▁a", "▁group", "▁strapless", "▁gown", "</s>"]
        figure = plot_heads(self.heads(4), tokens, tokens[1:], title="cross, layer 1 of 4")
        renderer = figure.canvas.get_renderer()
        width, height = figure.canvas.get_width_height()
        *panels, bar = figure.axes
        boxes = [axes.get_tightbbox(renderer) for axes in panels]
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0 and box.y1 <= height and box.x1 <= width
            assert box.y1 <= figure.texts[0].get_window_extent(renderer).y0
        inner = [axes.get_window_extent(renderer) for axes in panels]
        for index, box in enumerate(boxes):
            for other, window in enumerate(inner):
                assert index == other or not box.overlaps(window) or box.y1 <= window.y1
        assert bar.get_window_extent(renderer).x0 > max(window.x1 for window in inner)

    def test_file_is_written(self, tmp_path):
        plot_heads(self.heads(2), list("abcdef"), list("vwxyz"), path=tmp_path / "heads.png")
        assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("shape", [(5, 6), (0, 5, 6), (2, 6, 5)])
    def test_wrong_shapes_are_explained(self, shape):
        with pytest.raises(ValueError, match="plot_heads: expected attention of shape"):
            plot_heads(np.zeros(shape), list("abcdef"), list("vwxyz"))


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2,), (1, 2, 1)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"expected attention .* = \(1, 2\).*received shape"):
            plot_attention(np.ones(shape), ["a", "b"], ["x"])

    def test_nothing_to_draw(self):
        with pytest.raises(ValueError, match="at least one"):
            plot_attention(np.ones([0, 2]), ["a", "b"], [])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
    def test_values_that_are_no_weights(self, value):
        with pytest.raises(ValueError, match="expected finite weights"):
            plot_attention(np.array([[0.5, value]]), ["a", "b"], ["x"])

    @pytest.mark.parametrize("name", ["picture.txt", "picture", "picture.png.bmp"])
    def test_unknown_suffix(self, name, tmp_path):
        with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, received"):
            draw(["a"], path=tmp_path / name)

    def test_missing_matplotlib_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"attention-zoo\[plot\]"):
            draw(["a"])


class TestFile:
    @pytest.mark.parametrize(
        "name, start", [("a.png", b"\x89PNG"), ("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")]
    )
    def test_format_follows_the_suffix(self, name, start, tmp_path):
        path = tmp_path / "new folder" / name
        draw(["a"], path=str(path))
        assert path.read_bytes().startswith(start)
        assert list(path.parent.iterdir()) == [path]

    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")

        def fail(figure, file, **options):
            file.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
        with pytest.raises(OSError, match="disk full"):
            draw(["a"], path=path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def year_font(tmp_path):
    """Installs a font that has nothing but 年, and that as a square."""
    font_builder = pytest.importorskip("fontTools.fontBuilder")
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    family, square = "Only Year", pen.glyph()
    builder = font_builder.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "year"])
    builder.setupCharacterMap({ord("年"): "year"})
    builder.setupGlyf({".notdef": square, "year": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 100), "year": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    path = tmp_path / "year.ttf"
    builder.save(path)
    installed = list(fontManager.ttflist)
    # Alone beside the default font: this machine may have other fonts with the character.
    fontManager.ttflist[:] = [font for font in installed if font.name == "DejaVu Sans"]
    fontManager.addfont(path)
    yield family
    fontManager.ttflist[:] = installed
    plotting._characters_of.cache_clear()
