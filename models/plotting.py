"""Pictures of attention: which source tokens a model looked at for each target token."""

import functools
import math
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_FORMATS = (".png", ".pdf", ".svg")
_FONT = "DejaVu Sans"  # comes with matplotlib, so it is always there
FONT_SIZE = 10  # points
DPI = 150
# Lengths in inches. A cell holds a line of text with some air; few cells get larger, and more than fit in
# the longest side get smaller, and then not every token has a label.
_CELL, _LARGEST_CELL = 0.26, 0.5
_SHORTEST_SIDE, _LONGEST_SIDE = 3.0, 40.0
MARGIN = 0.12
_PANEL_GAP = 0.15  # between the heat maps of a grid
_BAR_SPACE, _BAR_WIDTH, _SHORTEST_BAR, _LONGEST_BAR = 1.0, 0.14, 1.2, 3.0  # the space has the numbers too
_LONGEST_LABEL = 28  # characters
LONGEST_TITLE = 120
_GREY = "#b0b0b0"
NEEDS_MATPLOTLIB = "Drawing attention needs matplotlib: pip install 'attention-zoo[plot]'."


def plot_attention(
    attention: np.ndarray,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draws attention weights as a heat map, source tokens across the top, target tokens down the side.

    Characters that no installed font can draw, and invisible ones, are shown by their code, such as
    ‹U+5E74›; a space, or SentencePiece's mark of one, as ␣.

    Args:
        attention: float (T, S), the weight of each source token for each target token.
        source_tokens: S strings.
        target_tokens: T strings.
        path: File to write, a .png, .pdf or .svg, whose folder is made if needed; None writes nothing.
        title: Line above the picture.

    Returns:
        The matplotlib figure. It belongs to nobody: no pyplot state is touched.

    Raises:
        ValueError: If the shapes do not fit together, a weight is not finite, or the file's suffix is
            another.
        ImportError: If matplotlib is missing.

    Example:
        >>> attention = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> figure = plot_attention(attention, ["guten", "Tag"], ["good", "day"])
    """
    attention = _check(attention, source_tokens, target_tokens)
    path = None if path is None else check_path(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NEEDS_MATPLOTLIB) from error

    families = font_families("".join([*source_tokens, *target_tokens, title or ""]))
    rows, columns = attention.shape
    cell, every = _cell_size(rows, columns)
    figure = Figure((columns * cell, rows * cell), dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.add_axes((0, 0, 1, 1))
    # The darkest colour is the largest weight of this picture: long sentences have small weights only.
    image = _draw_map(axes, attention, attention.max() or 1, every)
    _label_axes(axes, renderer, source_tokens, target_tokens, families, cell, every)
    if title:
        axes.set_title(drawable(title[:LONGEST_TITLE], families), **text_style(families))

    bar_axes = _lay_out(figure, axes, renderer, columns * cell, rows * cell)
    _draw_bar(figure, image, bar_axes)
    if path is not None:
        save(figure, path)
    return figure


def plot_heads(
    attention: np.ndarray,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draws the attention of every head of a layer, a grid of heat maps in one scale of colours.

    Args:
        attention: float (H, T, S), the weight of each source token for each target token, by head.
        source_tokens: S strings, what is looked at, across the top.
        target_tokens: T strings, what looks, down the side.
        path: As in `plot_attention`.
        title: Line above the picture.

    Returns:
        The matplotlib figure. It belongs to nobody: no pyplot state is touched.

    Raises:
        ValueError: As `plot_attention`.
        ImportError: If matplotlib is missing.

    Example:
        >>> attention = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [1.0, 0.0]]])
        >>> figure = plot_heads(attention, ["guten", "Tag"], ["good", "day"], title="layer 1")
    """
    attention = np.asarray(attention, dtype="float64")
    if attention.ndim != 3 or not len(attention):
        raise ValueError(
            "plot_heads: expected attention of shape (heads, target tokens, source tokens), received shape "
            f"{attention.shape}."
        )
    for head in attention:
        _check(head, source_tokens, target_tokens, "plot_heads")
    path = None if path is None else check_path(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NEEDS_MATPLOTLIB) from error

    families = font_families("".join([*source_tokens, *target_tokens, title or ""]))
    heads, rows, columns = attention.shape
    root = math.ceil(math.sqrt(heads))
    across = next((count for count in range(root, 2 * root) if heads % count == 0), root)  # no gaps
    down = math.ceil(heads / across)
    cell, every = _cell_size(rows * down, columns * across)
    width, height = columns * cell, rows * cell

    figure = Figure((width, height), dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    panels = [figure.add_axes((0, 0, 1, 1), label=f"head {head}") for head in range(heads)]
    for head, (axes, weights) in enumerate(zip(panels, attention, strict=True)):
        image = _draw_map(axes, weights, attention.max() or 1, every)
        _label_axes(axes, renderer, source_tokens, target_tokens, families, cell, every)
        axes.tick_params(labeltop=head < across, labelleft=head % across == 0)  # at the grid's edges only
        axes.set_xlabel(f"head {head + 1}", size=FONT_SIZE)

    # The first panel has labels on both sides: what they need, all rows and columns get once.
    inner, outer = panels[0].get_window_extent(renderer), panels[0].get_tightbbox(renderer)
    left, above = MARGIN + (inner.x0 - outer.x0) / DPI, MARGIN + (outer.y1 - inner.y1) / DPI
    overhang = max(0.0, max(p.get_tightbbox(renderer).x1 for p in panels[:across]) - inner.x1) / DPI
    right = max(overhang + MARGIN, _BAR_SPACE)
    below = MARGIN + (inner.y0 - outer.y0) / DPI
    above += 2.5 * FONT_SIZE / 72 if title else 0.0
    full_width = left + across * width + (across - 1) * _PANEL_GAP + right
    full_height = above + down * (height + below) + (down - 1) * _PANEL_GAP
    figure.set_size_inches(full_width, full_height)
    for head, axes in enumerate(panels):
        row, column = divmod(head, across)
        x = left + column * (width + _PANEL_GAP)
        y = full_height - above - height - row * (height + below + _PANEL_GAP)
        axes.set_position((x / full_width, y / full_height, width / full_width, height / full_height))
    bar_height = np.clip(full_height - above - below, _SHORTEST_BAR, _LONGEST_BAR)
    bar_axes = figure.add_axes(
        (
            (full_width - right + 2 * MARGIN) / full_width,
            (full_height - above - bar_height) / full_height,
            _BAR_WIDTH / full_width,
            bar_height / full_height,
        )
    )
    _draw_bar(figure, image, bar_axes)
    if title:
        figure.text(
            left / full_width,
            1 - MARGIN / full_height,
            drawable(title[:LONGEST_TITLE], families),
            va="top",
            **text_style(families),
        )
    if path is not None:
        save(figure, path)
    return figure


def _cell_size(rows: int, columns: int) -> tuple[float, int]:
    """The side of a cell in inches, and n where every n-th token has a label."""
    cell = np.clip(_SHORTEST_SIDE / max(rows, columns), _CELL, _LARGEST_CELL)
    cell = min(cell, _LONGEST_SIDE / max(rows, columns))
    return cell, max(1, round(_CELL / cell))


def _draw_map(axes: "Axes", attention: np.ndarray, darkest: float, every: int) -> "AxesImage":
    """Draws a heat map without labels."""
    rows, columns = attention.shape
    image = axes.imshow(attention, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
    axes.spines[:].set_color(_GREY)
    if every == 1:  # lines between the cells
        axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(which="minor", color=_GREY, linewidth=0.3)
    return image


def _label_axes(
    axes: "Axes",
    renderer: "RendererAgg",
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    families: list[str],
    cell: float,
    every: int,
) -> None:
    """Writes the source tokens across the top and the target tokens down the side."""
    style = text_style(families)
    source_labels = [token_label(token, families) for token in source_tokens[::every]]
    target_labels = [token_label(token, families) for token in target_tokens[::every]]
    axes.set_xticks(range(0, len(source_tokens), every), source_labels, **style)
    axes.set_yticks(range(0, len(target_tokens), every), target_labels, **style)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    widest = max(label.get_window_extent(renderer).width for label in axes.get_xticklabels())
    for label in axes.get_xticklabels():
        # Single characters fit as they are, and are read more easily upright.
        if widest > 0.9 * every * cell * DPI and len(label.get_text()) > 1:
            label.set(rotation=45, rotation_mode="anchor", ha="left", va="baseline")


def _draw_bar(figure: "Figure", image: "AxesImage", axes: "Axes") -> None:
    """Draws the scale of the colours."""
    bar = figure.colorbar(image, cax=axes)
    bar.ax.tick_params(labelsize=0.8 * FONT_SIZE, color=_GREY)
    bar.set_label("attention weight", size=0.8 * FONT_SIZE)
    bar.outline.set_color(_GREY)


def text_style(families: list[str]) -> dict[str, Any]:
    """How tokens and titles are written: as they are, never read as mathematics or TeX.

    Args:
        families: From `font_families`.

    Returns:
        Arguments of matplotlib's texts.
    """
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=families, size=FONT_SIZE, weight="normal", style="normal")
    return {"fontproperties": font, "parse_math": False, "usetex": False}


def _lay_out(figure: "Figure", axes: "Axes", renderer: "RendererAgg", width: float, height: float) -> "Axes":
    """Gives the heat map its size in inches, and the figure room for its texts and a colour bar."""
    # A text has its own size whatever the figure's, so it can be measured first.
    inner, outer = axes.get_window_extent(renderer), axes.get_tightbbox(renderer)
    left, below = MARGIN + (inner.x0 - outer.x0) / DPI, MARGIN + (inner.y0 - outer.y0) / DPI
    right, above = MARGIN + (outer.x1 - inner.x1) / DPI, MARGIN + (outer.y1 - inner.y1) / DPI
    right = max(right, _BAR_SPACE)
    bar_height = np.clip(height, _SHORTEST_BAR, _LONGEST_BAR)
    below = max(below, 2 * MARGIN + bar_height - height)  # under a flat heat map the bar hangs down
    full_width, full_height = left + width + right, below + height + above
    figure.set_size_inches(full_width, full_height)
    axes.set_position((left / full_width, below / full_height, width / full_width, height / full_height))
    return figure.add_axes(
        (
            (left + width + 2 * MARGIN) / full_width,
            (below + height - bar_height) / full_height,
            _BAR_WIDTH / full_width,
            bar_height / full_height,
        )
    )


def _check(
    attention: np.ndarray,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    caller: str = "plot_attention",
) -> np.ndarray:
    attention = np.asarray(attention, dtype="float64")
    expected = (len(target_tokens), len(source_tokens))
    if attention.shape != expected or 0 in expected:
        raise ValueError(
            f"{caller}: expected attention of shape (target tokens, source tokens) = {expected}, with "
            f"at least one of each, received shape {attention.shape}."
        )
    if not np.isfinite(attention).all() or attention.min() < 0:
        raise ValueError(
            f"{caller}: expected finite weights of at least 0, received values from {attention.min()} "
            f"to {attention.max()}."
        )
    return attention


def check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Checks that a picture can be written under this name.

    Args:
        path: File to write.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is not one of a format that is written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"plotting: expected a file that ends in {', '.join(_FORMATS)}, received {str(path)!r}."
        )
    return path


def save(figure: "Figure", path: pathlib.Path) -> None:
    """Writes the file under another name first, so that no reader ever sees half a picture.

    Args:
        figure: What to write.
        path: From `check_path`. The folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:].lower())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def token_label(token: str, families: Sequence[str]) -> str:
    """What is drawn for a token: never nothing.

    Args:
        token: Any string.
        families: From `font_families`.

    Returns:
        A text of one line, spaces shown, a long one cut.
    """
    spaces_shown = "".join(
        "␣" if character == "▁" or unicodedata.category(character) == "Zs" else character
        for character in token
    )
    label = drawable(spaces_shown, families) or "‹empty›"
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def drawable(text: str, families: Sequence[str]) -> str:
    """Replaces the characters that cannot be drawn, or not be seen, by their codes.

    Args:
        text: Any string.
        families: From `font_families`.

    Returns:
        A text of one line.
    """
    characters = frozenset().union(*(_characters_of(family) for family in families))
    return "".join(
        character if character in characters and not _is_invisible(character) else f"‹U+{ord(character):04X}›"
        for character in text
    )


def _is_invisible(character: str) -> bool:
    # Control, format (joiners, direction marks), surrogate, private, line and paragraph separator.
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def font_families(characters: Iterable[str]) -> list[str]:
    """Finds fonts that together draw all the characters that any installed font can draw.

    Args:
        characters: Of all texts of a figure.

    Returns:
        Names of font families, the default one first.
    """
    families = [_FONT]
    missing = {character for character in characters if not _is_invisible(character)} - _characters_of(_FONT)
    if not missing:
        return families
    from matplotlib.font_manager import fontManager

    # Upright and of normal weight, as drawn here; "Last Resort" draws every character as a box.
    others = {
        font.name
        for font in fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal")
        and not font.name.startswith("Last Resort")
    }
    while missing and others:
        best = max(sorted(others), key=lambda family: len(missing & _characters_of(family)))
        found = missing & _characters_of(best)
        if not found:
            break
        families.append(best)
        missing -= found
    return families


@functools.cache
def _characters_of(family: str) -> frozenset[str]:
    """The characters that matplotlib can draw with a font family."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=[family]), fallback_to_default=False))
    # Bitmap fonts (most colour emoji) have the characters, but matplotlib cannot draw them.
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
