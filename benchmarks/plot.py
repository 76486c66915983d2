"""A picture of how long the others take, in times of ours."""

import pathlib
from typing import Any

import report
import sizes
from samples import Job, Samples, summarize


def draw(
    samples: Samples,
    trainers: dict[str, list[str]],
    decoders: list[str],
    labels: dict[str, str],
    file: pathlib.Path,
) -> str:
    """Draws a panel for each size that was trained or decoded.

    Args:
        samples: All samples.
        trainers: For each size the peers that train it.
        decoders: The peers that decode.
        labels: The name of each peer for people.
        file: Where to.

    Returns:
        What was written.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = {}
    for size in sizes.SIZES:
        for command, peers in (("train", trainers[size]), ("decode", decoders)):
            ratios = {labels[peer]: _ratios(samples, command, size, peer) for peer in peers}
            ratios = {label: found for label, found in ratios.items() if found}
            if len(ratios) > 1:
                panels[f"{command}, size {size}"] = ratios
    if not panels:
        raise ValueError("plot: expected samples of ours and of others, received none; run train or decode")
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plot: expected matplotlib, found none; install attention-zoo[plot]") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(panels), figsize=(8, 0.6 + 1.9 * len(panels)), squeeze=False, layout="constrained"
    )
    for ax, (title, ratios) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(ax, title, ratios)
    axes[-1, 0].set_xlabel("time, in times of Attention Zoo's; beyond 1 it is the faster one")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    return f"Written to {file}"


def _draw_panel(ax: Any, title: str, ratios: dict[str, dict[str, float]]) -> None:
    cells = list(next(iter(ratios.values())))
    height = 0.8 / len(cells)
    for index, cell in enumerate(cells):
        places = [place + (index - (len(cells) - 1) / 2) * height for place in range(len(ratios))]
        bars = ax.barh(places, [found.get(cell, 0) for found in ratios.values()], height, label=cell)
        ax.bar_label(bars, fmt="%.2f", fontsize=6, padding=2)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_title(title, loc="left")
    if len(cells) > 1:
        ax.legend(fontsize=6)


def _ratios(samples: Samples, command: str, size: str, peer: str) -> dict[str, float]:
    """For each cell of decoding, or for the step of training, the time in times of ours."""
    times, ours = (_times(samples, Job(command, size, name)) for name in (peer, report.OURS))
    return {cell: time / ours[cell] for cell, time in times.items() if cell in ours}


def _times(samples: Samples, job: Job) -> dict[str, float]:
    pairs: dict[str, list] = {}
    for result in samples.results(job):
        for name, cell in result.get("cells", {"step": result}).items():
            pairs.setdefault(name, []).append((cell["ms"], cell["others"]))
    return {_named(name): summarize(found).median for name, found in pairs.items()}


def _named(cell: str) -> str:
    if "," not in cell:
        return cell
    batch, beams = cell.split(",")
    return f"batch {batch}, {'greedy' if beams == '1' else f'beam {beams}'}"
