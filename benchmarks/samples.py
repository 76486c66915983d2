"""Samples on disk, a line of JSON each, and what their numbers come to."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import machine


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        command: E.g. "train".
        size: Name of the size.
        peer: Name of the peer.
        variant: What else tells jobs of one peer apart, e.g. "batch 8".
        arguments: Further arguments of the process.
        threads: How many threads it may use; None for as many as the command line says.
    """

    command: str
    size: str
    peer: str
    variant: str = ""
    arguments: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells its samples apart from all others."""
        return self.command, self.size, self.peer, self.variant


class Samples:
    """The samples of a file, to which new ones are added at once, so that none is lost.

    Args:
        path: The file; made with the first sample.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._records: dict[tuple, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # a line that was being written when the process was stopped
                continue
            self._keep(record)

    def add(self, job: Job, number: int, record: dict[str, Any]) -> None:
        """Keeps what a job gave in a round, in place of an earlier sample of that round.

        Args:
            job: What was measured.
            number: Of the round.
            record: Its "result", or the "error"; and anything else.
        """
        key = dict(zip(("command", "size", "peer", "variant"), job.key, strict=True))
        record = {**key, "round": number, **record}
        self._keep(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def get(self, job: Job, number: int) -> dict[str, Any] | None:
        """The sample of a round."""
        return self._records.get((*job.key, number))

    def results(self, job: Job) -> list[dict[str, Any]]:
        """What the job gave, round after round; without failures."""
        return [record["result"] for record in self._of(job) if "result" in record]

    def error(self, job: Job) -> str | None:
        """Why the job failed, if it has never succeeded."""
        records = list(self._of(job))
        return records[-1]["error"] if records and all("error" in record for record in records) else None

    def seconds(self, job: Job) -> float | None:
        """How long a process of this job took, or of any one if there was none of it; None at first."""
        own = [record["took_s"] for record in self._of(job)]
        times = own or [record["took_s"] for record in self._records.values()]
        return statistics.mean(times) if times else None

    def _keep(self, record: dict[str, Any]) -> None:
        names = ("command", "size", "peer", "variant", "round")
        self._records[tuple(record[name] for name in names)] = record

    def _of(self, job: Job) -> Iterator[dict[str, Any]]:
        return (record for key, record in sorted(self._records.items()) if key[:-1] == job.key)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Several samples of one quantity.

    Attributes:
        median: Of those that were taken while the machine was quiet, or of all if none was.
        low: The least of these.
        high: The greatest of these.
        count: How many samples there are.
        busy: How many of them were taken while other processes were busy.
    """

    median: float
    low: float
    high: float
    count: int
    busy: int

    def __str__(self) -> str:
        """E.g. "102 (99-117)"; with a star if the machine was never quiet."""
        star = "\\*" if self.busy == self.count else ""
        used = self.count if star else self.count - self.busy
        spread = f" ({number(self.low)}-{number(self.high)})" if used > 1 else ""
        return f"{number(self.median)}{star}{spread}"


def summarize(samples: Iterable[tuple[float, float | None]]) -> Summary | None:
    """Median and range of pairs of a value and the part of the machine that others used meanwhile.

    Example:
        >>> summarize([(3.0, 0.0), (1.0, 0.01), (9.0, 0.5)])
        Summary(median=2.0, low=1.0, high=3.0, count=3, busy=1)
    """
    samples = list(samples)
    if not samples:
        return None
    quiet = [value for value, others in samples if not machine.is_busy(others)]
    used = quiet or [value for value, _ in samples]
    return Summary(
        statistics.median(used), min(used), max(used), len(samples), busy=len(samples) - len(quiet)
    )


def busiest(result: dict[str, Any]) -> float | None:
    """The greatest part of the machine that others used while any number of a result was taken."""
    parts = [cell.get("others") for cell in (result, *result.get("cells", {}).values())]
    return max((part for part in parts if part is not None), default=None)


def number(value: float) -> str:
    """Three digits at least, as people write them: 0.0123, 1.23, 12.3, 123, 1,234."""
    if value == 0:
        return "0"
    digits = 0
    while digits < 6 and abs(value) * 10**digits < 99.95:
        digits += 1
    return f"{value:,.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column stands left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(x.rjust(width) for x, width in others)]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, [header, rule, *rows]))
