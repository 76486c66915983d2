"""What the processes that train an epoch share: its clock, and what its batches hold."""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import machine
import numpy as np
import sizes

COMPILING = 5  # a step that takes more than so many median steps has traced and compiled


class EpochClock:
    """Notes when the steps of an epoch end, from its making on, which is before the data are read."""

    def __init__(self) -> None:
        self._load = machine.Load()
        self._start = self._ready = time.perf_counter()
        self._ends: list[float] = []
        self._used = (None, 0.0)  # by others and by this process, when the last step ended

    def ready(self) -> None:
        """Says that data and model are there, and the first step begins."""
        self._ready = time.perf_counter()

    def tick(self) -> None:
        """Says that a step has ended."""
        self._ends.append(time.perf_counter())
        self._used = self._load.others(), self._load.own()

    def result(self) -> dict[str, Any]:
        """The epoch, what was before its first step, the first step and all that compile, in seconds."""
        others, own = self._used
        steps = np.diff([self._ready, *self._ends]).tolist()
        usual = statistics.median(steps)
        return {
            "epoch_s": self._ends[-1] - self._start,
            "prepare_s": self._ready - self._start,
            "first_s": steps[0],
            "compile_s": sum(step - usual for step in steps if step > COMPILING * usual),
            "processor_s": own,
            "steps": len(steps),
            "others": others,
        }


def count(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """What the batches of an epoch hold.

    Args:
        batches: Source (B, S) and labels (B, T) of each.

    Returns:
        How many real pairs and target tokens, END included; how many shapes, and the longest, (B, S, T); and
        the part of all positions, source and target, that is padding.
    """
    shapes, pairs, target_tokens, real, positions = set(), 0, 0, 0, 0
    for source, labels in batches:
        shapes.add((*source.shape, labels.shape[1]))
        tokens = np.count_nonzero(labels != sizes.PAD_ID, axis=1)  # (B,)
        pairs += int(np.count_nonzero(tokens))  # rows that fill up a batch are empty
        target_tokens += int(tokens.sum())
        real += int(tokens.sum() + np.count_nonzero(source != sizes.PAD_ID))
        positions += source.size + labels.size
    return {
        "pairs": pairs,
        "target_tokens": target_tokens,
        "shapes": len(shapes),
        "longest": max(shapes, key=lambda shape: shape[1] + shape[2]),
        "padding": 1 - real / positions,
    }
