"""The tables: what samples say, for people."""

from typing import Any

import machine
import sizes
from samples import Job, Samples, Summary, number, summarize, table

OURS = "attention_zoo"
OURS_BFLOAT16 = f"{OURS}_bfloat16"
LIMIT = "limit"
TOLERANCE = 0.01  # by which numbers of parameters may differ


def training(samples: Samples, size: str, peers: dict[str, str]) -> str:
    """Training steps of one size.

    Args:
        samples: All samples.
        size: Name of the size.
        peers: Name and label of each peer, ours first.
    """
    jobs = {name: Job("train", size, name) for name in peers}
    operations = sizes.training_operations(sizes.SIZES[size], **sizes.TRAINING)
    ours, rounded = (_summary(samples, Job("train", size, name), "ms") for name in (OURS, OURS_BFLOAT16))
    limit = _limit(samples, Job("train", size, LIMIT))
    rows = []
    for name, label in peers.items():
        results = samples.results(jobs[name])
        time = _summary(samples, jobs[name], "ms")
        if time is None:
            rows.append([label, _missing(samples, jobs[name]), *[""] * 7])
            continue
        tokens = 1000 / time.median * sizes.TRAINING["batch"] * sizes.TRAINING["target_length"]
        share = f"{operations / time.median / 1e6 / limit['float32'].median:.0%}" if limit else ""
        rows.append(
            [
                label,
                str(time),
                _ratio(time, ours),
                _ratio(time, rounded),
                f"{tokens:,.0f}",
                share,
                str(_summary(samples, jobs[name], "first_s")),
                number(max(result["peak_mb"] for result in results)),
                f"{results[0]['parameters']:,}",
            ]
        )
    header = [
        f"training, size {size}", "ms per step", "of ours", "of ours, bfloat16", "target tokens/s",
        "of float32 peak", "first step, s", "peak memory, MB", "parameters",
    ]  # fmt: skip
    notes = [_sizes_of("training", size), _limits(limit), _parameters(samples, list(jobs.values()))]
    return _page(table(header, rows), notes, samples, [*jobs.values()])


def decoding_jobs(size: str, peer: str, threads: list[int]) -> list[Job]:
    """The jobs that measure how fast a peer decodes: one for each number of threads."""
    return [
        Job("decode", size, peer, variant=f"{count} threads", threads=count)
        for count in dict.fromkeys(threads)
    ]


def decoding(samples: Samples, size: str, peers: dict[str, str], jobs: dict[str, list[Job]]) -> str:
    """Decoding with one size, each number with as many threads as suit it best.

    Args:
        samples: All samples.
        size: Name of the size.
        peers: Name and label of each peer, ours first.
        jobs: For each peer its `decoding_jobs`.
    """
    results = {name: [r for job in jobs[name] for r in samples.results(job)] for name in peers}
    all_jobs = [job for name in peers for job in jobs[name]]
    limit = _limit(samples, Job("decode", size, LIMIT))
    ours, rounded = (
        {cell: best(samples, jobs.get(name, []), cell) for cell in sizes.CELLS}
        for name in (OURS, OURS_BFLOAT16)
    )
    rows, shares = [], []
    for name, label in peers.items():
        if not results[name]:
            rows.append([label, _missing(samples, jobs[name][0]), *[""] * 4])
            continue
        row, bases = [label], {OURS: [], OURS_BFLOAT16: [ours]}.get(name, [ours, rounded])
        for cell in sizes.CELLS:
            time = best(samples, jobs[name], cell)
            ratios = [_ratio(time, base[cell]) for base in bases if time and base[cell]]
            row.append(", ".join([str(time or ""), *ratios]))
        rows.append([*row, f"{results[name][0]['parameters']:,}"])
    for batch, beams in sizes.CELLS if limit else ():
        time = ours[batch, beams]
        if time is not None:
            done = sizes.decoding_operations(sizes.SIZES[size], batch, beams, **sizes.DECODING)
            shares.append(f"{done / time.median / 1e6 / limit['float32'].median:.0%}")
    header = [
        f"decoding, size {size}, ms per batch",
        *(f"batch {batch}, {'greedy' if beams == 1 else f'beam {beams}'}" for batch, beams in sizes.CELLS),
        "parameters",
    ]
    notes = [
        _sizes_of("decoding", size),
        "Ratios: of ours in float32, and of ours in bfloat16." if any(rounded.values()) else "",
        f"Attention Zoo reaches {', '.join(shares)} of the float32 peak." if shares else "",
        _threads(list(jobs.values())),
        _limits(limit),
        _parameters(samples, all_jobs),
    ]
    return _page(table(header, rows), notes, samples, all_jobs)


def memory(samples: Samples, size: str, peers: dict[str, str]) -> str:
    """The most memory that training takes; arguments as for `training`."""
    jobs = {name: Job("memory", size, name) for name in peers}
    ours = _summary(samples, jobs[OURS], "peak_mb", quiet=True)
    rows = []
    for name, label in peers.items():
        peak = _summary(samples, jobs[name], "peak_mb", quiet=True)
        shown = [_missing(samples, jobs[name]), ""] if peak is None else [str(peak), _ratio(peak, ours)]
        rows.append([label, *shown])
    header = [f"training, size {size}", "peak memory of the process, MB", "of ours"]
    return _page(table(header, rows), [_sizes_of("training", size)], samples, list(jobs.values()))


def epoch(samples: Samples, size: str, peers: dict[str, str], jobs: dict[str, Job]) -> str:
    """An epoch, from the files to the end of the last step.

    Args:
        samples: All samples.
        size: Name of the size.
        peers: Name and label of each peer, ours first.
        jobs: For each peer the job that measures it.
    """
    ours = _summary(samples, jobs[OURS], "epoch_s")
    rows, notes = [], []
    for name, label in peers.items():
        results = samples.results(jobs[name])
        if not results:
            rows.append([label, _missing(samples, jobs[name]), *[""] * 8])
            continue
        one, time = results[0], _summary(samples, jobs[name], "epoch_s")
        rows.append(
            [
                label,
                str(time),
                _ratio(time, ours),
                str(_summary(samples, jobs[name], "first_s")),
                str(_summary(samples, jobs[name], "compile_s")),
                f"{one['target_tokens'] / time.median:,.0f}",
                f"{one['padding']:.0%}",
                str(_summary(samples, jobs[name], "processor_s")),
                number(max(result["peak_mb"] for result in results)),
                f"{one['parameters']:,}",
            ]
        )
        held = f"{one['pairs']:,} pairs and {one['target_tokens']:,} target tokens"
        longest = "{} x ({} + {})".format(*one["longest"])
        shapes = f"{one['shapes']:,}, the longest {longest}"
        notes.append(f"- {label}: {held} in {one['steps']:,} batches; shapes: {shapes}.")
    header = [
        f"an epoch, size {size}, {jobs[OURS].variant}", "seconds", "of ours", "first step, s", "compiling, s",
        "target tokens/s", "padding", "processor, s", "peak memory, MB", "parameters",
    ]  # fmt: skip
    notes = [
        f"{_shape(size)}, dropout {sizes.SIZES[size].dropout}; from the files to the end of the last step.",
        "\n".join(notes),
        _parameters(samples, list(jobs.values())),
    ]
    return _page(table(header, rows), notes, samples, list(jobs.values()))


def startup(samples: Samples, jobs: list[Job]) -> str:
    """How long beginning takes."""
    rows = []
    for job in jobs:
        results = samples.results(job)
        if not results:
            rows.append([job.variant, _missing(samples, job)])
        for name in results[0]["seconds"] if results else ():
            time = summarize((result["seconds"][name], result["others"]) for result in results)
            rows.append([f"{job.variant}: {name}", str(time)])
    return _page(table(["start-up, size T", "seconds"], rows), [], samples, jobs)


def growth(samples: Samples, axes: dict[str, list[tuple[int, Job, float]]]) -> str:
    """How times grow with each quantity.

    Args:
        samples: All samples.
        axes: For each quantity its values, with the job that measured each and the operations of that.
    """
    pages, jobs = [], []
    for axis, points in axes.items():
        rows, before = [], None
        for value, job, operations in points:
            jobs.append(job)
            results = samples.results(job)
            flat = [result | next(iter(result.get("cells", {}).values()), {}) for result in results]
            time = summarize((result["ms"], result["others"]) for result in flat)
            if time is None:
                rows.append([f"{value:,}", _missing(samples, job), "", "", ""])
                continue
            rate = f"{operations / time.median / 1e6:,.0f}"
            grown = ["", ""]
            if before:
                grown = [f"{time.median / before[0]:.2f}x", f"{operations / before[1]:.2f}x"]
            rows.append([f"{value:,}", str(time), *grown, rate])
            before = time.median, operations
        pages.append(table([axis, "ms", "grows by", "operations grow by", "GFLOP/s"], rows))
    return _page("\n\n".join(pages), [], samples, jobs)


def _summary(samples: Samples, job: Job, name: str, quiet: bool = False) -> Any:
    """Of one number in a job's results; `quiet` for one that other processes do not change."""
    return summarize((r[name], None if quiet else r["others"]) for r in samples.results(job))


def best(samples: Samples, jobs: list[Job], cell: tuple[int, int]) -> Summary | None:
    """The least of the times that several jobs took for a cell of decoding."""
    name = "{},{}".format(*cell)
    found = []
    for job in jobs:
        cells = [result["cells"][name] for result in samples.results(job) if name in result["cells"]]
        found.append(summarize((one["ms"], one["others"]) for one in cells))
    return min(filter(None, found), key=lambda summary: summary.median, default=None)


def _threads(jobs: list[list[Job]]) -> str:
    counts = " and ".join(str(job.threads) for job in jobs[0])
    return f"Each number is the best of those with {counts} threads." if len(jobs[0]) > 1 else ""


def _ratio(value: Any, ours: Any) -> str:
    return "" if ours is None else f"{value.median / ours.median:.2f}x"


def _missing(samples: Samples, job: Job) -> str:
    return samples.error(job) or "not measured"


def _limit(samples: Samples, job: Job) -> dict[str, Any]:
    results = samples.results(job)
    if not results:
        return {}
    return {name: summarize((r[name], r["others"]) for r in results) for name in ("float32", "bfloat16")}


def _limits(limit: dict[str, Any]) -> str:
    if not limit:
        return ""
    found = ", ".join(f"{name} {summary}" for name, summary in limit.items())
    return f"The machine's limit, a product of matrices in TensorFlow, in GFLOP/s: {found}."


def _sizes_of(measurement: str, size: str) -> str:
    one = sizes.SIZES[size]
    lengths = sizes.TRAINING if measurement == "training" else sizes.DECODING
    source = (
        "{} x {} x {} features".format(*one.grid) if one.grid[0] else f"{lengths['source_length']} source"
    )
    tokens = f"{source} and {lengths['target_length']} target tokens"
    how = f"batches of {lengths['batch']}, dropout {one.dropout}" if "batch" in lengths else "forced length"
    return f"{_shape(size)}; {tokens}, {how}."


def _shape(size: str) -> str:
    one = sizes.SIZES[size]
    if one.kind == "transformer":
        shape = f"{one.layers} + {one.layers} layers of {one.units} units, {one.num_heads} heads"
    else:
        shape = f"{one.kind}, {one.units} units"
    return f"{shape}, vocabulary {one.vocabulary:,}"


def _parameters(samples: Samples, jobs: list[Job]) -> str:
    """Says which peers do not have as many parameters as ours."""
    counts = {job.peer: results[0]["parameters"] for job in jobs if (results := samples.results(job))}
    if OURS not in counts:
        return ""
    far = [name for name, count in counts.items() if abs(count / counts[OURS] - 1) > TOLERANCE]
    if far:
        return f"NOT the same number of parameters, within {TOLERANCE:.0%}: {', '.join(far)}."
    return f"The numbers of parameters are equal within {TOLERANCE:.0%}."


def _page(tables: str, notes: list[str], samples: Samples, jobs: list[Job]) -> str:
    """Tables with what a reader must know beside them."""
    versions: dict[str, str] = {}
    for job in jobs:
        for result in samples.results(job):
            versions |= result.get("versions", {})
    notes = [
        *notes,
        "Medians of processes, with their range in brackets; samples taken while others used more than "
        f"{machine.BUSY:.0%} of the processors are left out, or marked \\* where there is no other.",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n\n".join([tables, *(note for note in notes if note)]) + "\n"
