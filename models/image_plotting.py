"""Pictures of attention over an image: where a model looked for each word it wrote."""

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attention_zoo.models.pixels import check_pixels
from attention_zoo.models.plotting import (
    DPI,
    FONT_SIZE,
    LONGEST_TITLE,
    MARGIN,
    NEEDS_MATPLOTLIB,
    check_path,
    drawable,
    font_families,
    save,
    text_style,
    token_label,
)

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Lengths in inches. All panels of all images have about the same area, so that a wide image is as easy to see
# as a tall one. Words share the width of their panel, or of a narrow column at least.
_PANEL_SIDE = 1.4  # of a square image
_LONGEST_SIDE = 4.0
_NARROWEST_COLUMN = 0.9
_WIDEST_GRID = 10.5
_GAP = 0.1
_LINE = 1.7 * FONT_SIZE / 72  # a line of text with some air
_MOST_WORDS = 500  # larger figures are too large for matplotlib
_SIGMA = 0.5  # of the Gaussian kernel, in cells: less shows the edges of the cells, more blurs them
# What the model does not look at is a dark grey image of little contrast, from this brightness on. It is not
# black: in a photo taken at night, or of a black dog, the lit places would not stand out from it.
_DARKEST, _CONTRAST = 50, 0.25
_LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in the brightness


def plot_attention_on_image(
    image: np.ndarray,
    attention: np.ndarray,
    words: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draws an image once for every word, lit where the model looked, after the image itself.

    The attention is spread smoothly from the cells of the grid to the pixels, and divided by the largest
    value that it then has for the word. There the image is as it is, and the less attention, the more it
    turns dark and grey. Attention to everything alike shows the whole image.

    Words that are too wide for their panel are cut. What cannot be drawn or seen in them is shown as by
    `attention_zoo.models.plotting.plot_attention`.

    Args:
        image: uint8 or float from 0 to 255, (h, w, 3), of any size and shape.
        attention: float (T, H, W), for each word the weights of the H x W cells of a grid over the image.
        words: T strings.
        path: File to write, a .png, .pdf or .svg, whose folder is made if needed; None writes nothing.
        title: Text above the picture.

    Returns:
        The matplotlib figure, whose axes are the panels. It belongs to nobody: no pyplot state is touched.

    Raises:
        ValueError: If the shapes do not fit together, there are no words or too many, a weight is not finite
            or is less than 0, the image is none, or the file's suffix is another.
        ImportError: If matplotlib is missing.

    Example:
        >>> image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), "uint8")
        >>> attention = np.array([[[0.1, 0.2, 0.7]], [[0.5, 0.4, 0.1]]])
        >>> figure = plot_attention_on_image(image, attention, ["good", "day"])

    Reference:
        Xu et al. 2015, "Show, Attend and Tell", figures 2 and 3.
    """
    image, attention = np.asarray(image), _check_attention(attention, words)
    check_pixels("plot_attention_on_image", image)
    path = None if path is None else check_path(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image  # comes with matplotlib
    except ImportError as error:
        raise ImportError(NEEDS_MATPLOTLIB) from error

    # All lengths in pixels from here: a panel's pixels are those of the file, with nothing left to resample.
    width, height = _panel_size(*image.shape[:2])
    pixels = Image.fromarray(np.rint(image).astype("uint8"))
    picture = np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC))
    gap, margin, line = (round(length * DPI) for length in (_GAP, MARGIN, _LINE))
    column = max(width, round(_NARROWEST_COLUMN * DPI))
    across, down = _grid(len(words) + 1, column + gap)
    full_width = 2 * margin + across * (column + gap) - gap

    families = font_families("".join([*words, title or ""]))
    style = text_style(families)
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    above = margin
    if title:
        # A text has its own size whatever the figure's, so it can be measured first.
        heading = figure.text(0, 0, drawable(title[:LONGEST_TITLE], families), va="top", **style)
        _wrap(heading, renderer, full_width - 2 * margin)
        above += math.ceil(heading.get_window_extent(renderer).height)
    full_height = above + down * (line + height + gap) - gap + margin
    # Older versions of matplotlib cut off a pixel where the product with DPI is 206.99999999999997.
    figure.set_size_inches((full_width + 1e-3) / DPI, (full_height + 1e-3) / DPI)
    if title:
        heading.set_position((margin / full_width, 1 - margin / full_height))

    panels = [picture, *(_spotlight(picture, weights) for weights in attention)]
    labels = ["", *(token_label(word, families) for word in words)]
    for index, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        row, place = divmod(index, across)
        x = margin + place * (column + gap) + (column - width) // 2
        y = full_height - above - row * (line + height + gap) - line - height
        box = (x / full_width, y / full_height, width / full_width, height / full_height)
        axes = figure.add_axes(box, label=f"panel {index}")
        axes.imshow(panel, interpolation="none", aspect="auto")
        axes.set_axis_off()
        _cut(axes.set_title(label, pad=0.35 * FONT_SIZE, **style), renderer, column)
    if path is not None:
        save(figure, path)
    return figure


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a panel in pixels, in the image's proportions."""
    scale = min(_PANEL_SIDE / math.sqrt(height * width), _LONGEST_SIDE / max(height, width))
    return max(1, round(width * scale * DPI)), max(1, round(height * scale * DPI))


def _grid(panels: int, pitch: int) -> tuple[int, int]:
    """Columns and rows of panels: as few rows as possible, then as few gaps."""
    down = math.ceil(panels / max(1, int(_WIDEST_GRID * DPI // pitch)))
    return math.ceil(panels / down), down


def _spotlight(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture, (h, w, 3), as it is where the weights, (H, W), are largest, dark where they are 0."""
    light = _spread(weights, *picture.shape[:2])[:, :, None]  # (h, w, 1)
    light = light / (light.max() or 1)
    dark = _DARKEST + _CONTRAST * (picture @ np.array(_LUMA))[:, :, None]  # (h, w, 1)
    return np.rint(light * picture + (1 - light) * dark).astype("uint8")


def _spread(weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """Weights of cells, (H, W), to those of pixels, (height, width), without edges between the cells."""
    rows, columns = weights.shape
    return _kernel(height, rows) @ weights @ _kernel(width, columns).T


def _kernel(pixels: int, cells: int) -> np.ndarray:
    """The share of every cell in every pixel, (pixels, cells).

    Each row sums to 1, also at the edges, where cells are missing on one side.
    """
    sigma = _SIGMA * max(1, cells / pixels)  # no cell falls between the pixels of a narrow image
    at = (np.arange(pixels) + 0.5) * (cells / pixels)  # in cells
    distance = (at[:, None] - np.arange(cells) - 0.5) / sigma
    kernel = np.exp(-0.5 * distance**2)
    return kernel / kernel.sum(axis=1, keepdims=True)


def _cut(text: "Text", renderer: "RendererAgg", width: int) -> None:
    """Shortens a text until it is no wider than so many pixels."""
    kept = text.get_text()
    while text.get_window_extent(renderer).width > width and len(kept) > 1:
        kept = kept[:-1]
        text.set_text(kept + "…")


def _wrap(text: "Text", renderer: "RendererAgg", width: int) -> None:
    """Breaks a text into lines until it is no wider than so many pixels."""
    whole = text.get_text()
    longest = len(whole)
    while text.get_window_extent(renderer).width > width and longest > 1:
        longest -= 1
        text.set_text(textwrap.fill(whole, longest))


def _check_attention(attention: np.ndarray, words: Sequence[str]) -> np.ndarray:
    attention = np.asarray(attention, dtype="float64")
    if isinstance(words, str):
        raise ValueError(
            f"plot_attention_on_image: expected a list of words, received the string {words!r}; split it."
        )
    if not 1 <= len(words) <= _MOST_WORDS:
        raise ValueError(
            f"plot_attention_on_image: expected 1 to {_MOST_WORDS} words, received {len(words)}."
        )
    if attention.ndim != 3 or len(attention) != len(words) or 0 in attention.shape:
        raise ValueError(
            "plot_attention_on_image: expected attention of shape (words, rows, columns) = "
            f"({len(words)}, H, W), received shape {attention.shape}."
        )
    if not np.isfinite(attention).all() or attention.min() < 0:
        raise ValueError(
            "plot_attention_on_image: expected finite weights of at least 0, received values from "
            f"{attention.min()} to {attention.max()}."
        )
    return attention
