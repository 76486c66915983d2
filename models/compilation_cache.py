"""Compiled programs on disk, for the next process."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import tempfile

from attention_zoo.models.cores import usable_cores

_FLAG = "--tf_xla_persistent_cache_directory="
_LIMIT = 2**30  # bytes that the programs of one machine may take


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Keeps what XLA compiles on disk, so that the next process need not compile it again.

    A first translation takes half the time then. TensorFlow knows a program by what it computes and by the
    numbers of its functions: a process finds what an earlier one compiled if it calls the same functions in
    the same order. Call this before anything is compiled, at best right after the import; later it does
    nothing. It sets the environment variable TF_XLA_FLAGS, also for the processes that this one starts, and
    changes nothing where that names a cache already.

    Compiled programs are for one kind of machine (its processor and how many cores a process may use, its
    GPUs), one version of TensorFlow and one setting of XLA_FLAGS: each combination has a folder of its own.
    When one has grown beyond 1 GiB, its oldest files are deleted. Files are written whole; should one be
    damaged later, TensorFlow stops with a DataLossError or an OutOfRangeError: delete the folder then.
    TensorFlow says of each program that it reads that the processor lacks "prefer-no-scatter" and
    "prefer-no-gather", which are no features, but preferences of the compiler; TF_CPP_MIN_LOG_LEVEL=3
    silences it.

    Args:
        folder: Where the folders are, without white space in its path; None for
            `~/.cache/attention_zoo/compiled`, or that below XDG_CACHE_HOME.

    Returns:
        The folder of this machine.

    Raises:
        ValueError: If there is white space in the path.
        OSError: If the folder cannot be made or written to.
        RuntimeError: If there is no home to be the default.

    Example:
        ```python
        import attention_zoo as az

        az.enable_compilation_cache()
        translator = az.models.Translator.from_preset("transformer_tiny_multi30k_en_de")
        ```
    """
    flags = os.environ.get("TF_XLA_FLAGS", "").split()
    for flag in flags:
        if flag.startswith(_FLAG):
            return pathlib.Path(flag.removeprefix(_FLAG))
    if folder is None:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "attention_zoo", "compiled")
    folder = pathlib.Path(folder).expanduser().absolute() / _machine()
    if any(character.isspace() for character in str(folder)):
        raise ValueError(
            "enable_compilation_cache: expected a folder without white space in its path, which TensorFlow "
            f"cannot read, received {str(folder)!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Asked now: what TensorFlow cannot write later ends the call that compiles.
    with tempfile.TemporaryFile(dir=folder):
        pass
    _delete_oldest(folder)
    os.environ["TF_XLA_FLAGS"] = " ".join([*flags, f"{_FLAG}{folder}"])
    return folder


def _machine() -> str:
    """A name for all that TensorFlow's own key of a program leaves out."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    # "flags" on x86, "Features" on Arm: what instructions a program may use.
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    gpus = sorted(pathlib.Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for gpu in gpus for line in gpu.read_text().splitlines() if line.startswith("Model")]
    settings = [os.environ.get(name, "") for name in ("XLA_FLAGS", "TF_NUM_INTRAOP_THREADS")]
    packages = sorted(set(importlib.metadata.packages_distributions().get("tensorflow", ())))
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    identity = [
        *versions,
        platform.machine(),
        platform.processor(),
        *features,
        str(usable_cores()),  # XLA divides the work among the threads when it compiles
        *models,
        *settings,
    ]
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]


def _delete_oldest(folder: pathlib.Path) -> None:
    """Deletes the oldest files beyond the limit; what another process deletes meanwhile is no error."""
    files = []
    for path in folder.iterdir():
        try:
            files.append((path.stat().st_mtime, path.stat().st_size, path))
        except FileNotFoundError:
            continue
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > _LIMIT:
            path.unlink(missing_ok=True)
