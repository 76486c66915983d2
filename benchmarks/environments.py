"""Virtual environments of the peers, made when they are first needed."""

import os
import pathlib
import shutil
import subprocess
import sys

REQUIREMENTS = pathlib.Path(__file__).parent / "requirements"


class NotInstalled(Exception):
    """A peer cannot be installed here; the message says why."""


def python_of(name: str | None, cache: pathlib.Path, gpu: bool = False) -> str:
    """The Python interpreter with a peer's requirements.

    Args:
        name: Of a file in `requirements/`, without its ending; None for the interpreter that runs this.
        cache: The folder of the environments.
        gpu: Whether TensorFlow is to come with what it needs for a GPU.

    Returns:
        The interpreter's path.

    Raises:
        NotInstalled: If pip fails.
    """
    if name is None:
        return sys.executable
    requirements = (REQUIREMENTS / f"{name}.txt").read_text()
    if gpu:
        requirements = requirements.replace("tensorflow==", "tensorflow[and-cuda]==")
    folder = cache / (f"{name}-gpu" if gpu else name)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = folder / "installed.txt"  # the requirements, written when they are all there
    if installed.exists() and installed.read_text() == requirements:
        return str(python)
    print(f"Installing {name} in {folder} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    wanted = folder / "requirements.txt"
    _run([sys.executable, "-m", "venv", str(folder)])
    wanted.write_text(requirements)
    _run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)])
    wanted.replace(installed)
    return str(python)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise NotInstalled(last_line(result.stderr) or f"exit code {result.returncode}")


def last_line(text: str) -> str:
    """The last line of an output that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
