"""What the machine is, and how much of it other processes were using while a sample was taken."""

import os
import pathlib
import platform
import resource
import subprocess

FIRST_GPU = "0"
BUSY = 0.05  # part of the machine's processor time; samples during which others used more are marked


class Load:
    """Processor time that other processes take, and this one, from its making on.

    Example:
        >>> load = Load()
        >>> others = load.others()  # None where there is no /proc/stat
        >>> others is None or 0 <= others <= 1
        True
    """

    def __init__(self) -> None:
        self._start = _processor_times()
        self._own = _own_time()

    def own(self) -> float:
        """Seconds of processor time, over all threads, that this process took meanwhile."""
        return _own_time() - self._own

    def others(self) -> float | None:
        """Their part of the time of all cores, 0 to 1; None where that cannot be told."""
        now = _processor_times()
        if self._start is None or now is None:
            return None
        return part_of_others(self._start, now)


def part_of_others(start: tuple[float, float, float], end: tuple[float, float, float]) -> float:
    """The part of the time of all cores that was neither idle nor this process's own.

    Args:
        start: Seconds, summed over cores: of all, idle, of this process.
        end: The same, later.
    """
    total, idle, own = (after - before for before, after in zip(start, end, strict=True))
    return min(1.0, max(0.0, total - idle - own) / total) if total > 0 else 0.0


def is_busy(others: float | None) -> bool:
    """Whether others used so much that a sample is not to be trusted; unknown counts as quiet."""
    return others is not None and others > BUSY


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if platform.system() == "Darwin" else 1e3)


def description() -> str:
    """Processor, cores and memory in a few words."""
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {cores()} cores, {memory:.0f} GiB, {platform.system()}"


def gpu() -> str:
    """The name of the first GPU, as NVIDIA's driver tells it."""
    command = ["nvidia-smi", f"--id={FIRST_GPU}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
    return names[0] if names else "an unknown GPU"


def _processor_times() -> tuple[float, float, float] | None:
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in the first two already.
    ticks = [float(x) / os.sysconf("SC_CLK_TCK") for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4], _own_time()


def _own_time() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)
