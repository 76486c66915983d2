"""Virtual environments of the peers, made when they are first needed."""

import os
import pathlib
import shutil
import subprocess
import sys

REQUIREMENTS = pathlib.Path(__file__).parent / "requirements"


class NotInstalled(Exception):
    """A peer cannot be installed here; the message says why."""


def python_of(name: str | None, cache: pathlib.Path) -> str:
    """The Python interpreter with a peer's requirements.

    Args:
        name: Of a file in `requirements/`, without its ending; None for the interpreter that runs this.
        cache: The folder of the environments.

    Returns:
        The interpreter's path.

    Raises:
        NotInstalled: If pip fails.
    """
    if name is None:
        return sys.executable
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = cache / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = folder / "installed.txt"  # the requirements, written when they are all there
    if installed.exists() and installed.read_text() == requirements.read_text():
        return str(python)
    print(f"Installing {name} in {folder} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise NotInstalled(last_line(result.stderr) or f"exit code {result.returncode}")
    installed.write_text(requirements.read_text())
    return str(python)


def last_line(text: str) -> str:
    """The last line of an output that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
