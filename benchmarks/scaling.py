"""Measures what several replicas and several workers gain in training, and what communication costs them.

    python benchmarks/scaling.py [--models transformer bahdanau] [--rounds 3] [--steps 20]

Training through `model.fit` of `transformer_tiny` and of a small `bahdanau` (vocabulary 8000, batches of 64
pairs of 32 + 32 tokens, all of them real, dropout 0.1, Adam, XLA), on processor cores:

- one process, one core and two cores;
- two replicas in one process (MirroredStrategy on two logical devices);
- two workers, a core each (MultiWorkerMirroredStrategy over the loopback interface);
- two processes, a core each, which know nothing of each other, each with half of every batch: what two
  workers would reach if they could do without talking.

Every measurement has processes of its own, and the versions take turns. The numbers are target tokens per
second: the median of the rounds, and their range; each round is the median of `--steps` steps after the
first ones, which compile.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

VERSIONS = {  # name -> threads of a process
    "one process, one core": 1,
    "one process, two cores": 2,
    "two replicas in one process": 2,
    "two workers": 1,
    "two processes without a word": 1,
}
BATCH, LENGTH, VOCABULARY = 64, 32, 8000
WARM_UP = 3  # steps that are not counted


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # a subprocess: model, version, file
    arguments = parser.parse_args()
    if arguments.measure:
        model, version, file = arguments.measure
        measure(model, version, pathlib.Path(file), arguments.steps)
        return
    for model in arguments.models:
        results = {version: [] for version in VERSIONS}
        for _ in range(arguments.rounds):
            for version in VERSIONS:
                results[version].append(run(model, version, arguments.steps))
        print(f"| {model} | target tokens/s | range | of one core |\n| --- | ---: | ---: | ---: |")
        one = statistics.median(results["one process, one core"])
        for version, values in results.items():
            speed = statistics.median(values)
            print(f"| {version} | {speed:,.0f} | {min(values):,.0f}-{max(values):,.0f} | {speed / one:.2f} |")
        workers, alone = (statistics.median(results[name]) for name in list(VERSIONS)[-2:])
        print(f"\nTwo workers lose {1 - workers / alone:.0%} to communication.\n", flush=True)


def run(model: str, version: str, steps: int) -> float:
    """Target tokens per second of one measurement."""
    command = [sys.executable, __file__, "--steps", str(steps)]
    threads = {"TF_NUM_INTRAOP_THREADS": str(VERSIONS[version])}
    environment = {**os.environ, **threads, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / f"{number}.json" for number in range(2)]

        def arguments(file: pathlib.Path) -> list[str]:
            return ["--measure", model, version, str(file)]

        if version == "two workers":
            call = f"launch({arguments(files[0])}, workers=2, restarts=0, command={command})"
            code = f"import sys; from attention_zoo.training.launcher import launch; sys.exit({call})"
            command = [sys.executable, "-c", code]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        else:
            count = 2 if version == "two processes without a word" else 1
            processes = [
                subprocess.Popen(command + arguments(file), env=environment, stdout=subprocess.DEVNULL)
                for file in files[:count]
            ]
            for process in processes:
                if process.wait():
                    raise RuntimeError(f"scaling: {version} failed, exit code {process.returncode}")
        return sum(json.loads(file.read_text()) for file in files if file.exists())


def measure(name: str, version: str, file: pathlib.Path, steps: int) -> None:
    """Trains, and writes the target tokens per second of this process, or of all if they belong together."""
    import keras
    import tensorflow as tf

    from attention_zoo.training import strategies

    if version == "two replicas in one process":
        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
        strategy = strategies.strategy("mirrored")
    else:
        strategy = strategies.strategy("auto")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = MODELS[name]()
        model.compile(keras.optimizers.Adam(1e-3))
    rows = BATCH // 2 if version == "two processes without a word" else BATCH
    ids = tf.random.uniform((rows, LENGTH), 4, VOCABULARY, tf.int32, seed=1)
    data = tf.data.Dataset.from_tensors(({"source": ids, "target": ids}, ids)).repeat(WARM_UP + steps)
    ends = []
    note_end = lambda batch, logs: ends.append(time.perf_counter())  # noqa: E731
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=note_end)
    model.fit(data, verbose=0, callbacks=[clock])
    seconds = [after - before for before, after in itertools.pairwise(ends)][WARM_UP - 1 :]
    if strategies.is_chief(strategy):
        file.write_text(json.dumps(rows * LENGTH / statistics.median(seconds)))


def make_transformer() -> Any:
    """`transformer_tiny`: 4 + 4 layers of 128 units."""
    from attention_zoo.models import EncoderDecoder, TransformerDecoder, TransformerEncoder

    sizes = {"layers": 4, "units": 128, "feed_forward_units": 256, "num_heads": 4, "dropout": 0.1}
    return EncoderDecoder(TransformerEncoder(VOCABULARY, **sizes), TransformerDecoder(VOCABULARY, **sizes))


def make_bahdanau() -> Any:
    """A bidirectional GRU, additive attention and a GRU, of 256 units each."""
    from attention_zoo.layers import AdditiveAttention
    from attention_zoo.models import EncoderDecoder, RNNDecoder, RNNEncoder

    return EncoderDecoder(
        RNNEncoder(VOCABULARY, 256, 256, bidirectional=True, dropout=0.1),
        RNNDecoder(VOCABULARY, 256, 256, AdditiveAttention(256), dropout=0.1),
    )


MODELS = {"transformer": make_transformer, "bahdanau": make_bahdanau}


if __name__ == "__main__":
    main()
