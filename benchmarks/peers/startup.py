"""How long Attention Zoo takes to begin: its imports, its command line, a first translation.

    python -m peers.startup import
    python -m peers.startup export FOLDER
    python -m peers.startup serve FOLDER      the SavedModel, as a program without Attention Zoo would
    python -m peers.startup load FOLDER       the model, to translate or train on
    python -m peers.startup help

Each prints one line of JSON, in seconds; but for `export`, which writes what `serve` and `load` read.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import machine
import sizes
from peers import common


def main() -> None:
    """Measures one of them."""
    name, *folder = sys.argv[1:]
    if name == "export":
        from peers import ours

        ours.make_model(sizes.SIZES["T"]).export(*folder)
        return
    load = machine.Load()
    seconds = MEASUREMENTS[name](*folder)
    print(json.dumps({"seconds": seconds, "others": load.others(), "peak_mb": machine.peak_memory()}))


def measure_import() -> dict[str, float]:
    """Imports TensorFlow, then Attention Zoo, then all that translating and training need of it."""
    steps = {
        "import tensorflow": _import_tensorflow,
        "import attention_zoo": _import_attention_zoo,
        "its models and layers": _import_models,
    }
    return {name: _seconds(step) for name, step in steps.items()}


def measure_serving(folder: str) -> dict[str, float]:
    """Loads the SavedModel and translates twice, with TensorFlow alone."""
    times = {"import tensorflow": _seconds(_import_tensorflow)}
    import tensorflow as tf

    start = time.perf_counter()
    import tensorflow_text  # noqa: F401

    serve = tf.saved_model.load(folder).signatures["serving_default"]
    times["load"] = time.perf_counter() - start
    texts = tf.constant([_text()])
    times["first translation"] = _seconds(lambda: serve(texts=texts))
    times["second translation"] = _seconds(lambda: serve(texts=texts))
    return times


def measure_loading(folder: str) -> dict[str, float]:
    """Loads the model and translates twice."""
    times = {"import tensorflow": _seconds(_import_tensorflow)}
    start = time.perf_counter()
    import attention_zoo as az

    model = az.load(folder)
    times["load"] = time.perf_counter() - start
    times["first translation"] = _seconds(lambda: model.translate(_text()))
    times["second translation"] = _seconds(lambda: model.translate(_text()))
    return times


def measure_help() -> dict[str, float]:
    """The command line's help, from the start of the process to its end."""
    code = "import sys; from attention_zoo.training.cli import main; sys.argv[1:] = ['--help']; main()"
    command = [sys.executable, "-c", code]
    run = lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    return {"attention-zoo --help": _seconds(run)}


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _text() -> str:
    (row,) = common.random_ids(1, sizes.DECODING["source_length"], sizes.SIZES["T"].vocabulary)
    return " ".join(f"w{token}" for token in row[:-1])


def _import_tensorflow() -> None:
    import tensorflow  # noqa: F401


def _import_attention_zoo() -> None:
    import attention_zoo  # noqa: F401


def _import_models() -> None:
    from attention_zoo.layers import MultiHeadAttention  # noqa: F401
    from attention_zoo.models import Translator  # noqa: F401
    from attention_zoo.training import TranslationBatches  # noqa: F401


MEASUREMENTS = {
    "import": measure_import,
    "serve": measure_serving,
    "load": measure_loading,
    "help": measure_help,
}


if __name__ == "__main__":
    main()
