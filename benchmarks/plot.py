"""A picture of how long the others take, in times of ours."""

import pathlib
from typing import Any

import report
import sizes
from samples import Job, Samples, summarize


def draw(
    samples: Samples,
    trainers: dict[str, list[str]],
    decoding: dict[str, dict[str, list[Job]]],
    labels: dict[str, str],
    file: pathlib.Path,
) -> str:
    """Draws a panel for each size that was trained or decoded.

    Args:
        samples: All samples.
        trainers: For each size the peers that train it.
        decoding: For each size, the jobs of each peer that decodes.
        labels: The name of each peer for people.
        file: Where to.

    Returns:
        What was written.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = {}
    for size in sizes.SIZES:
        steps = {peer: _step(samples, Job("train", size, peer)) for peer in trainers[size]}
        cells = {peer: _cells(samples, jobs) for peer, jobs in decoding[size].items()}
        for title, times in ((f"training, size {size}", steps), (f"decoding, size {size}", cells)):
            ratios = _ratios(times, labels)
            if len(ratios) > 1:
                panels[title] = ratios
    if not panels:
        raise ValueError("plot: expected samples of ours and of others, received none; run train or decode")
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plot: expected matplotlib, found none; install attention-zoo[plot]") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    heights = [_height(ratios) for ratios in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(8, 0.6 + sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for ax, (title, ratios) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(ax, title, ratios)
    axes[-1, 0].set_xlabel("time, in times of Attention Zoo's; beyond 1 it is the faster one")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    return f"Written to {file}"


def _height(ratios: dict[str, dict[str, float]]) -> float:
    """Inches of a panel: room for the number beside each bar, and for the name of each peer."""
    bars = sum(map(len, ratios.values()))
    return 0.7 + max(0.12 * bars, 0.24 * len(ratios))


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


def _ratios(times: dict[str, dict[str, float]], labels: dict[str, str]) -> dict[str, dict[str, float]]:
    """The times of each peer that has any, in times of ours, by its label."""
    ours = times[report.OURS]
    ratios = {
        labels[peer]: {cell: time / ours[cell] for cell, time in found.items() if cell in ours}
        for peer, found in times.items()
    }
    return {label: found for label, found in ratios.items() if found}


def _step(samples: Samples, job: Job) -> dict[str, float]:
    """The time of a step of training, if there are samples."""
    found = summarize((result["ms"], result["others"]) for result in samples.results(job))
    return {} if found is None else {"step": found.median}


def _cells(samples: Samples, jobs: list[Job]) -> dict[str, float]:
    """The best time for each cell of decoding of which there are samples."""
    found = {cell: report.best(samples, jobs, cell) for cell in sizes.CELLS}
    return {_named(*cell): summary.median for cell, summary in found.items() if summary is not None}


def _named(batch: int, beams: int) -> str:
    return f"batch {batch}, {'greedy' if beams == 1 else f'beam {beams}'}"
