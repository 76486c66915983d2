"""Measures memory and time of attention, with the matrix of its weights and without (Linux).

    python benchmarks/attention_memory.py [--length 8192 ...] [--batch 1] [--causal] [--jit-compile]

Forward and backward pass of 8 heads x 64 in float32 on two threads. Every measurement has a process of its
own, and the versions take turns. Memory is the peak above what the process held after a warm-up at length
64; time is the median of the rounds, of each the faster of two runs after a first one. The materialised
version needs about 9 GB at length 8192.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

VERSIONS = ("materialised", "chunked")
HEADS, WIDTH, THREADS = 8, 64, 2


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[8192])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--jit-compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--version", choices=VERSIONS, help=argparse.SUPPRESS)  # what a subprocess measures
    arguments = parser.parse_args()
    if arguments.version:
        print(json.dumps(measure(arguments)))
        return
    print("| length | version | peak memory (GB) | seconds |\n| ---: | --- | ---: | ---: |")
    for length in arguments.length:
        results = {version: [] for version in VERSIONS}
        for _ in range(arguments.rounds):
            for version in VERSIONS:
                results[version].append(run_in_subprocess(version, length))
        for version, runs in results.items():
            memory, seconds = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"| {length} | {version} | {memory:.2f} | {seconds:.3f} |", flush=True)


def run_in_subprocess(version: str, length: int) -> tuple[float, float]:
    """Runs this script again with the same options, for one version and length."""
    command = [sys.executable, *sys.argv, "--version", version, "--length", str(length)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(json.loads(output.splitlines()[-1]))


def measure(arguments: argparse.Namespace) -> tuple[float, float]:
    """Peak memory above the baseline in GB, and seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from attention_zoo.ops import attend, causal_mask, scaled_dot_scores
    from attention_zoo.ops.chunked_attention import attend_in_chunks

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)

    def materialised(query: Any, key: Any, value: Any) -> Any:
        mask = causal_mask(query.shape[2]) if arguments.causal else None
        return attend(scaled_dot_scores(query, key), value, mask)[0]

    def chunked(query: Any, key: Any, value: Any) -> Any:
        return attend_in_chunks(query, key, value, causal=arguments.causal)

    attention = {"materialised": materialised, "chunked": chunked}[arguments.version]

    @tf.function(jit_compile=arguments.jit_compile)
    def gradients(inputs: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(attention(*inputs) ** 2)
        return tape.gradient(loss, inputs)

    def run(length: int) -> float:
        shape = (arguments.batch, HEADS, length, WIDTH)
        inputs = [tf.random.stateless_normal(shape, seed=(0, i)) for i in range(3)]
        start = time.perf_counter()
        for gradient in gradients(inputs):
            float(gradient[0, 0, 0, 0])  # waits for it
        return time.perf_counter() - start

    run(64)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    baseline = pages * resource.getpagesize()
    (length,) = arguments.length
    run(length)  # traces and compiles
    seconds = min(run(length), run(length))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline) / 1e9, seconds


if __name__ == "__main__":
    main()
