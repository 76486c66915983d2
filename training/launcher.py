"""Several workers on this machine, started together, watched together and started again together."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

logger = logging.getLogger("attention_zoo")

COMMAND = (sys.executable, "-m", "attention_zoo.training.cli")

_MISTAKE = 2  # exit code of a worker that refuses what the user asked for: no use in trying again
_STOPPED = 128 + signal.SIGTERM  # exit code of a worker that was told to stop, has saved and left
_GRACE = 60.0  # seconds in which workers that were told to stop save and leave
_OUTPUT_GRACE = 5.0  # seconds until the output of a worker that has ended is not waited for any more
_POLL = 0.1  # seconds


def launch(
    arguments: Sequence[str], workers: int, restarts: int = 3, command: Sequence[str] = COMMAND
) -> int:
    """Runs one command line in several processes of a cluster on this machine, until all have finished.

    Each process finds the addresses of all and its own number in TF_CONFIG, and its share of the processors
    in TF_NUM_INTRAOP_THREADS unless that is set. What the processes write comes out line by line, with the
    number of the process in front.

    The workers depend on each other: if one dies, the others would wait for it. They are killed, and all
    start again, from the last backup if the command makes any. SIGTERM, SIGINT and SIGHUP are passed on as
    one SIGTERM to each worker, so that it can save before it leaves. No worker outlives this function. It
    must run in the main thread, which is the one that receives signals.

    Args:
        arguments: The command line that every worker gets, such as `["train", "dates"]`.
        workers: Number of processes.
        restarts: How many times all may be started again.
        command: What stands before the arguments; by default the command `attention-zoo`.

    Returns:
        The exit code: 0 if all workers have finished; 2 if one refused its arguments, which is not tried
        again; 128 plus the number of the signal (SIGTERM 143, SIGINT 130) after a signal. It is 143 too if
        the workers were told to stop by somebody else, and left with 143.

    Raises:
        RuntimeError: If a worker died after the last restart.
        ValueError: If TF_CONFIG is set already, or there is no argument, no worker, or a negative number of
            restarts.

    Example:
        ```python
        from attention_zoo.training.launcher import launch

        code = launch(["train", "dates", "training.epochs=3"], workers=2)
        ```
    """
    _check(arguments, workers, restarts)
    output = threading.Lock()
    with _signals() as received:
        for restart in range(restarts + 1):
            team: list[_Worker] = []
            try:
                for index, environment in enumerate(_environments(workers)):
                    team.append(_Worker([*command, *arguments], environment))
                    team[-1].read(f"[{index}] ", output)
                end = _watch(team, received)
            finally:
                for worker in team:
                    worker.kill()
                for worker in team:
                    worker.wait()
            if isinstance(end, int):
                return end
            if restart < restarts:
                logger.warning(
                    "launch: %s. All %d workers start again, from the last backup (restart %d of %d).",
                    end, workers, restart + 1, restarts,
                )  # fmt: skip
    raise RuntimeError(
        f"launch: expected workers that finish, received: {end}, after {restarts} restarts; the lines above "
        "say more. When the cause is gone, the same command goes on from the last backup."
    )


class _Worker:
    """A process in a session of its own: Ctrl-C reaches the launcher only, which passes it on."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.readers: list[threading.Thread] = []

    def read(self, name: str, output: threading.Lock) -> None:
        """Starts to copy what the process writes, with a name in front of each line."""
        for pipe, stream in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)):
            arguments = (pipe, stream.buffer, name.encode(), output)
            self.readers.append(threading.Thread(target=_forward, args=arguments, daemon=True))
            self.readers[-1].start()

    def code(self) -> int | None:
        """The exit code, -n after signal n, or None while it runs."""
        if self.process.returncode is None and self.process.poll() is not None:
            # What it has started itself ends with it. Later its number could be that of other processes.
            self._kill_session()
        return self.process.returncode

    def kill(self) -> None:
        """Kills the process if it runs, and all that it has started."""
        if self.code() is None:
            self._kill_session()

    def wait(self) -> None:
        """Waits for the end of a process that was killed or ended, and for the last of its output."""
        self.process.wait()
        for reader in self.readers:
            reader.join(_OUTPUT_GRACE)

    def _kill_session(self) -> None:
        # macOS says PermissionError if the processes have ended but are not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _check(arguments: Sequence[str], workers: int, restarts: int) -> None:
    if not arguments or workers < 1 or restarts < 0:
        raise ValueError(
            "launch: expected arguments, at least 1 worker and restarts that are not negative, received "
            f"{list(arguments)}, {workers} and {restarts}."
        )
    if os.environ.get("TF_CONFIG"):
        raise ValueError(
            "launch: expected no TF_CONFIG, of which it makes one for each worker, received "
            f"{os.environ['TF_CONFIG']!r}; on a cluster start 'attention-zoo train' itself in every process, "
            "or else unset it."
        )


def _environments(workers: int) -> list[dict[str, str]]:
    """The environment of each worker; the ports in it are free and not yet used by anybody."""
    with contextlib.ExitStack() as stack:
        # All are open at the same time, so that all differ.
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(workers)]
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    share = max(1, (os.cpu_count() or 1) // workers)
    environments = []
    for index in range(workers):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        defaults = {"TF_NUM_INTRAOP_THREADS": str(share)}
        own = {
            "TF_CONFIG": json.dumps(cluster),
            "PYTHONUNBUFFERED": "1",
            "no_grpc_proxy": "127.0.0.1",  # else workers where http_proxy is set look for each other there
        }
        environments.append({**defaults, **os.environ, **own})
    return environments


def _watch(team: list[_Worker], received: list[int]) -> int | str:
    """Waits for the end of the team, and brings it about after a signal.

    Returns:
        The exit code of the launcher, or, if all must start again, who died of what.
    """
    deadline = None
    while not received:
        codes = [worker.code() for worker in team]
        if _MISTAKE in codes:
            return _MISTAKE
        dead = [index for index, code in enumerate(codes) if code not in (None, 0, _STOPPED)]
        if dead:
            return ", ".join(f"worker {index} {_cause(codes[index])}" for index in dead)
        if None not in codes:
            return _STOPPED if _STOPPED in codes else 0
        if _STOPPED in codes:  # somebody told it to stop, and the others should follow
            deadline = deadline or time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                stopped = codes.index(_STOPPED)
                return f"worker {stopped} was told to stop, but others went on for {_GRACE:.0f} s"
        time.sleep(_POLL)
    _stop(team)
    return 128 + received[0]


def _cause(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}"


def _stop(team: list[_Worker]) -> None:
    """Tells all workers to stop, and gives them time to do so."""
    for worker in team:
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE
    while any(worker.code() is None for worker in team):
        if time.monotonic() > deadline:
            late = [str(index) for index, worker in enumerate(team) if worker.code() is None]
            logger.warning("launch: not left within %.0f s, and killed: worker %s.", _GRACE, ", ".join(late))
            return
        time.sleep(_POLL)


def _forward(pipe: BinaryIO, stream: BinaryIO, name: bytes, output: threading.Lock) -> None:
    """Copies whole lines, with a name in front; the lock keeps those of all workers apart."""
    with pipe:
        for line in pipe:
            # If nobody reads the output any more, the worker shall neither wait nor die of it.
            with output, contextlib.suppress(OSError):
                stream.write(name + line.removesuffix(b"\n") + b"\n")
                stream.flush()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals that tell the launcher to stop, in place of what they did before."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    # Who started us with a signal ignored, such as nohup, wants that.
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: received.append(number))
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
