"""What every peer's process does: it reads what to measure, measures, and prints one line of JSON.

A peer's file defines what it can of `train`, `decode` and `epoch`, and hands them to `main`:

- `train(task, clock)` trains on one batch over and over, calls `clock.tick()` after every step, and returns
  the number of trained parameters;
- `decode(task)` returns the number of parameters and a function `prepare(source, beams)`, which returns a
  function without arguments that translates the sources, lists of ids, and returns the lengths of the
  translations;
- `epoch(task, clock)` reads what is in the folder `task.data` and trains on it once, calls `clock.ready()`
  before the first step and `clock.tick()` after every step, and returns the number of trained parameters and
  the batches of the epoch, source and labels as arrays of ids, to be counted.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable

import machine
import sizes
from peers import device, epochs

WARM_UP = 3  # steps that are not counted; the first one compiles
SECONDS = 3.0  # for which a batch is translated again and again
PACKAGES = ("tensorflow", "keras", "keras-hub", "torch", "transformers", "ctranslate2")


@dataclasses.dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        size: The architecture.
        batch: Rows of a training batch.
        source_length: Tokens of a source, the end token included.
        target_length: Tokens of a target.
        steps: Steps to time, after the warm-up.
        threads: Processor threads to use.
        data: Folder of what an epoch is trained on, see `epoch_data`.
    """

    size: sizes.Size
    batch: int
    source_length: int
    target_length: int
    steps: int
    threads: int
    data: pathlib.Path | None = None

    @property
    def all_steps(self) -> int:
        """Steps to take, those of the warm-up included."""
        return WARM_UP + self.steps

    def training_batch(self) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        """Source, target and labels: rows of ids, all of them real tokens."""
        source = random_ids(self.batch, self.source_length, self.size.vocabulary)
        labels = random_ids(self.batch, self.target_length, self.size.vocabulary)
        return source, [[sizes.START_ID, *row[:-1]] for row in labels], labels


class Clock:
    """Notes when steps end, from its making on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._ends: list[float] = []
        self._load = None
        self._used = (None, 0.0)  # by others and by this process, when the last step ended

    def tick(self) -> None:
        """Says that a step has ended."""
        self._ends.append(time.perf_counter())
        if self._load is not None:
            self._used = self._load.others(), self._load.own()
        elif len(self._ends) == WARM_UP:
            self._load = machine.Load()

    def result(self) -> dict[str, float | None]:
        """The median step and the first one, and what this process and others took of the machine."""
        others, own = self._used
        steps = [after - before for before, after in itertools.pairwise(self._ends[WARM_UP - 1 :])]
        return {
            "ms": 1000 * statistics.median(steps),
            "processor_ms": 1000 * own / len(steps),
            "first_s": self._ends[0] - self._start,
            "others": others,
        }


def main(
    train: Callable | None = None, decode: Callable | None = None, epoch: Callable | None = None
) -> None:
    """Measures what the command line says."""
    choices = [function.__name__ for function in (train, decode, epoch) if function is not None]
    parser = argparse.ArgumentParser()
    parser.add_argument("measurement", choices=choices)
    parser.add_argument("--size", choices=sizes.SIZES, default="T")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, help="rows of a training batch")
    parser.add_argument("--cells", nargs="+", help="what to decode, as BATCH,BEAMS")
    parser.add_argument("--source-length", type=int)
    parser.add_argument("--target-length", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--data", type=pathlib.Path, help="folder of what an epoch is trained on")
    arguments = parser.parse_args()
    defaults = {"batch": 0} | (sizes.DECODING if arguments.measurement == "decode" else sizes.TRAINING)
    given = {name: getattr(arguments, name) for name in defaults}
    size = sizes.SIZES[arguments.size]
    task = Task(
        dataclasses.replace(size, vocabulary=arguments.vocabulary or size.vocabulary),
        **{name: given[name] or default for name, default in defaults.items()},
        steps=arguments.steps or size.steps,
        threads=int(os.environ.get("OMP_NUM_THREADS", machine.cores())),
        data=arguments.data,
    )
    if arguments.measurement == "train":
        clock = Clock()
        parameters = train(task, clock)
        result = clock.result()
    elif arguments.measurement == "epoch":
        clock = epochs.EpochClock()
        parameters, batches = epoch(task, clock)
        result = clock.result() | epochs.count(batches)
    else:
        cells = [tuple(map(int, cell.split(","))) for cell in arguments.cells or ()] or sizes.CELLS
        parameters, prepare = decode(task)
        result = {"cells": {f"{b},{k}": _time_decoding(task, prepare, b, k) for b, k in cells}}
    print(
        json.dumps(
            {
                **result,
                "parameters": parameters,
                "peak_mb": device.peak_memory(),
                "versions": _versions(),
            }
        )
    )


def random_ids(rows: int, length: int, vocabulary: int) -> list[list[int]]:
    """Rows of words, ending with the end token."""
    draw = random.Random(1)
    words = [[draw.randrange(sizes.FIRST_ID, vocabulary) for _ in range(length - 1)] for _ in range(rows)]
    return [[*row, sizes.END_ID] for row in words]


def _time_decoding(task: Task, prepare: Callable, batch: int, beams: int) -> dict[str, float | None]:
    source = random_ids(batch, task.source_length, task.size.vocabulary)
    translate = prepare(source, beams)
    start = time.perf_counter()
    lengths = translate()
    first = time.perf_counter() - start
    # An end token after the forced length may be counted or not.
    if len(lengths) != batch or not all(0 <= length - task.target_length <= 1 for length in lengths):
        expected = f"{batch} translations of {task.target_length} tokens"
        raise RuntimeError(f"expected {expected}, received {lengths}")
    translate()
    load, times = machine.Load(), []
    while len(times) < 5 or (sum(times) < SECONDS and len(times) < 1000):
        start = time.perf_counter()
        translate()
        times.append(time.perf_counter() - start)
    return {
        "ms": 1000 * statistics.median(times),
        "processor_ms": 1000 * load.own() / len(times),
        "first_s": first,
        "others": load.others(),
    }


def _versions() -> dict[str, str]:
    """Of the packages that are compared, as far as they are here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
