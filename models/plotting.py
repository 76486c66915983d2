"""Pictures of attention: which source tokens a model looked at for each target token."""

import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")
_FONT = "DejaVu Sans"  # comes with matplotlib, so it is always there
_FONT_SIZE = 10  # points
_DPI = 150
# Lengths in inches. A cell holds a line of text with some air; few cells get larger, and more than fit in
# the longest side get smaller, and then not every token has a label.
_CELL, _LARGEST_CELL = 0.26, 0.5
_SHORTEST_SIDE, _LONGEST_SIDE = 3.0, 40.0
_MARGIN = 0.12
_BAR_SPACE, _BAR_WIDTH, _SHORTEST_BAR, _LONGEST_BAR = 1.0, 0.14, 1.2, 3.0  # the space has the numbers too
_LONGEST_LABEL = 28  # characters
_LONGEST_TITLE = 120
_GREY = "#b0b0b0"


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
    path = None if path is None else _check_path(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties
    except ImportError as error:
        raise ImportError("Drawing attention needs matplotlib: pip install 'attention-zoo[plot]'.") from error

    families = _font_families("".join([*source_tokens, *target_tokens, title or ""]))
    font = FontProperties(family=families, size=_FONT_SIZE, weight="normal", style="normal")
    text_style = {"fontproperties": font, "parse_math": False, "usetex": False}
    rows, columns = attention.shape
    cell = np.clip(_SHORTEST_SIDE / max(rows, columns), _CELL, _LARGEST_CELL)
    cell = min(cell, _LONGEST_SIDE / max(rows, columns))
    every = max(1, round(_CELL / cell))  # every n-th token has a label

    figure = Figure((columns * cell, rows * cell), dpi=_DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.add_axes((0, 0, 1, 1))
    # The darkest colour is the largest weight of this picture: long sentences have small weights only.
    image = axes.imshow(attention, cmap="Blues", vmin=0, vmax=attention.max() or 1, aspect="auto")
    source_labels = [_label(token, families) for token in source_tokens[::every]]
    target_labels = [_label(token, families) for token in target_tokens[::every]]
    axes.set_xticks(range(0, columns, every), source_labels, **text_style)
    axes.set_yticks(range(0, rows, every), target_labels, **text_style)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    widest = max(label.get_window_extent(renderer).width for label in axes.get_xticklabels())
    for label in axes.get_xticklabels():
        # Single characters fit as they are, and are read more easily upright.
        if widest > 0.9 * every * cell * _DPI and len(label.get_text()) > 1:
            label.set(rotation=45, rotation_mode="anchor", ha="left", va="baseline")
    if title:
        axes.set_title(_drawable(title[:_LONGEST_TITLE], families), **text_style)
    axes.spines[:].set_color(_GREY)
    if every == 1:  # lines between the cells
        axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(which="minor", color=_GREY, linewidth=0.3)

    bar_axes = _lay_out(figure, axes, renderer, columns * cell, rows * cell)
    bar = figure.colorbar(image, cax=bar_axes)
    bar.ax.tick_params(labelsize=0.8 * _FONT_SIZE, color=_GREY)
    bar.set_label("attention weight", size=0.8 * _FONT_SIZE)
    bar.outline.set_color(_GREY)
    if path is not None:
        _save(figure, path)
    return figure


def _lay_out(figure: "Figure", axes: "Axes", renderer: "RendererAgg", width: float, height: float) -> "Axes":
    """Gives the heat map its size in inches, and the figure room for its texts and a colour bar."""
    # A text has its own size whatever the figure's, so it can be measured first.
    inner, outer = axes.get_window_extent(renderer), axes.get_tightbbox(renderer)
    left, below = _MARGIN + (inner.x0 - outer.x0) / _DPI, _MARGIN + (inner.y0 - outer.y0) / _DPI
    right, above = _MARGIN + (outer.x1 - inner.x1) / _DPI, _MARGIN + (outer.y1 - inner.y1) / _DPI
    right = max(right, _BAR_SPACE)
    bar_height = np.clip(height, _SHORTEST_BAR, _LONGEST_BAR)
    below = max(below, 2 * _MARGIN + bar_height - height)  # under a flat heat map the bar hangs down
    full_width, full_height = left + width + right, below + height + above
    figure.set_size_inches(full_width, full_height)
    axes.set_position((left / full_width, below / full_height, width / full_width, height / full_height))
    return figure.add_axes(
        (
            (left + width + 2 * _MARGIN) / full_width,
            (below + height - bar_height) / full_height,
            _BAR_WIDTH / full_width,
            bar_height / full_height,
        )
    )


def _check(attention: np.ndarray, source_tokens: Sequence[str], target_tokens: Sequence[str]) -> np.ndarray:
    attention = np.asarray(attention, dtype="float64")
    expected = (len(target_tokens), len(source_tokens))
    if attention.shape != expected or 0 in expected:
        raise ValueError(
            f"plot_attention: expected attention of shape (target tokens, source tokens) = {expected}, with "
            f"at least one of each, received shape {attention.shape}."
        )
    if not np.isfinite(attention).all() or attention.min() < 0:
        raise ValueError(
            f"plot_attention: expected finite weights of at least 0, received values from {attention.min()} "
            f"to {attention.max()}."
        )
    return attention


def _check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"plot_attention: expected a file that ends in {', '.join(_FORMATS)}, received {str(path)!r}."
        )
    return path


def _save(figure: "Figure", path: pathlib.Path) -> None:
    """Writes the file under another name first, so that no reader ever sees half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:].lower())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _label(token: str, families: Sequence[str]) -> str:
    """What is drawn for a token: never nothing."""
    spaces_shown = "".join(
        "␣" if character == "▁" or unicodedata.category(character) == "Zs" else character
        for character in token
    )
    label = _drawable(spaces_shown, families) or "‹empty›"
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _drawable(text: str, families: Sequence[str]) -> str:
    """Replaces the characters that cannot be drawn, or not be seen, by their codes."""
    characters = frozenset().union(*(_characters_of(family) for family in families))
    return "".join(
        character if character in characters and not _is_invisible(character) else f"‹U+{ord(character):04X}›"
        for character in text
    )


def _is_invisible(character: str) -> bool:
    # Control, format (joiners, direction marks), surrogate, private, line and paragraph separator.
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _font_families(characters: Iterable[str]) -> list[str]:
    """Returns fonts that together draw all the characters that any installed font can draw."""
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
