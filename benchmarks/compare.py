"""Measures Attention Zoo and other libraries side by side, and writes what came out as a Markdown table.

    python benchmarks/compare.py train --size T      steps of training: time, first step, memory
    python benchmarks/compare.py decode --size T     translations of a forced length, greedy and beam search
    python benchmarks/compare.py memory --size T     the most memory that training takes
    python benchmarks/compare.py epoch --data FOLDER an epoch on Multi30k, with all that a user waits for
    python benchmarks/compare.py startup             imports, command line, first translation
    python benchmarks/compare.py growth              how times grow with batch, length, beams and vocabulary
    python benchmarks/compare.py plot                a picture of the samples of training and decoding

Every sample has a process of its own; the models take turns, so that a machine that becomes slower becomes
so for all. Samples are kept, and none is taken twice: a run that was stopped goes on where it was. The
README beside this file says what is measured, and how.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import environments
import epoch_data
import machine
import report
import sizes
from samples import Job, Samples, busiest, number

HERE = pathlib.Path(__file__).parent
CACHE = pathlib.Path("~/.cache/attention_zoo/benchmarks").expanduser()
TIMEOUT = 3600  # seconds that one process may take
MEMORY_STEPS = ("--steps", "5")
LOADING = ("serve", "load")  # what `startup` measures of an exported model,
AGAIN = ", compiled before"  # and then with the compilation cache of an earlier process


@dataclasses.dataclass(frozen=True)
class Peer:
    """What is compared.

    Attributes:
        label: Its name in tables.
        module: Its file in `peers/`.
        requirements: Its file in `requirements/`; None for the environment that runs this.
        environment: Further environment variables.
    """

    label: str
    module: str
    requirements: str | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


PEERS = {
    report.OURS: Peer("Attention Zoo", "ours"),
    report.LIMIT: Peer("product of matrices", "limit"),
    "keras_hub": Peer("KerasHub layers, jit", "keras_hub_layers", "keras_hub"),
    "keras_attention": Peer("keras.layers.MultiHeadAttention, jit", "keras_attention", "keras"),
    "keras_cell": Peer("Keras attention cell, jit", "keras_cell", "keras"),
    "torch_transformer": Peer("torch.nn.Transformer, eager", "torch_transformer", "torch"),
    "torch_cell": Peer("PyTorch, loop over steps", "torch_cell", "torch"),
    "marian": Peer("transformers MarianMT, eager", "marian", "transformers"),
    "ctranslate2": Peer("CTranslate2 float32", "ctranslate2_model", "ctranslate2"),
    "ctranslate2_int8": Peer(
        "CTranslate2 int8", "ctranslate2_model", "ctranslate2", {"CT2_COMPUTE_TYPE": "int8"}
    ),
}
IN_BFLOAT16 = {  # those that train in it too, and how; ours decodes in it as well
    report.OURS: "bfloat16 products",
    "keras_hub": "mixed_bfloat16",
    "keras_attention": "mixed_bfloat16",
    "keras_cell": "mixed_bfloat16",
    "torch_transformer": "autocast to bfloat16",
    "torch_cell": "autocast to bfloat16",
}
PEERS |= {
    f"{name}_bfloat16": dataclasses.replace(
        PEERS[name], label=f"{PEERS[name].label}, {how}", environment={"BENCHMARK_BFLOAT16": "1"}
    )
    for name, how in IN_BFLOAT16.items()
}
TRANSFORMERS = [report.OURS, "keras_hub", "keras_attention", "torch_transformer", "marian"]
RECURRENT = [report.OURS, "keras_cell", "torch_cell"]
TRAINERS = {"T": TRANSFORMERS, "B": TRANSFORMERS, "R": RECURRENT, "C": RECURRENT}
TRAINERS_IN_BFLOAT16 = {
    size: [f"{name}_bfloat16" for name in names if name in IN_BFLOAT16] for size, names in TRAINERS.items()
}
EPOCHS = [report.OURS, "keras_hub", "keras_attention", "torch_transformer"]
DECODERS = [report.OURS, report.OURS_BFLOAT16, "ctranslate2", "ctranslate2_int8", "keras_hub", "marian"]
GROWTH = {  # quantity -> values, from the command line's other defaults
    "training, batch": [8, 16, 32, 64, 128, 256],
    "training, length of one pair": [64, 128, 256, 512, 1024, 2048, 4096, 8192],
    "training, vocabulary": [1000, 4000, 16000, 64000],
    "decoding, batch": [1, 8, 32, 64, 128],
    "decoding, beams, batch 8": [1, 2, 4, 8, 16],
    "decoding, length, batch 8": [16, 32, 64, 128, 256],
    "decoding, vocabulary, batch 8": [1000, 4000, 16000, 64000],
}


def main() -> None:
    """Takes the samples that are missing, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ["train", "decode", "memory", "epoch", "startup", "growth", "plot"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("--size", choices=sizes.SIZES, default="T")
    parser.add_argument("--rounds", type=int, default=3, help="0 writes the table of the samples there are")
    parser.add_argument("--only", nargs="+", choices=PEERS, help="measure these, and no others")
    parser.add_argument("--steps", type=int, help="steps of training in one process")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="threads of a process; of several, decode takes the best"
    )
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        help=f"folder of what an epoch is trained on: {', '.join(epoch_data.FILES)}",
    )
    parser.add_argument("--pairs", type=int, help="train an epoch on so many pairs only")
    parser.add_argument("--gpu", action="store_true", help="measure on a GPU, not on the processors")
    parser.add_argument("--retake-busy", action="store_true", help="take samples again that others disturbed")
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE, help="folder of virtual environments")
    parser.add_argument(
        "--output", type=pathlib.Path, default="runs/benchmarks", help="folder of samples and tables"
    )
    arguments = parser.parse_args()
    one_thread_too = arguments.command in ("decode", "plot") and not arguments.gpu
    arguments.threads = arguments.threads or [*({1} if one_thread_too else ()), machine.cores()]
    arguments.cache = arguments.cache.expanduser().absolute()  # processes run in another folder
    if arguments.gpu and arguments.command in ("memory", "startup", "growth"):
        parser.error(f"--gpu: expected train, decode, epoch or plot, received {arguments.command}")
    arguments.suffix = "_gpu" if arguments.gpu else ""
    samples = Samples(arguments.output / f"samples{arguments.suffix}.jsonl")
    if arguments.command == "plot":
        import plot

        labels = {name: peer.label for name, peer in PEERS.items()}
        decoding = {
            size: {name: report.decoding_jobs(size, name, arguments.threads) for name in DECODERS}
            for size in sizes.SIZES
        }
        picture = arguments.output / f"benchmarks{arguments.suffix}.png"
        trainers = {size: [ours, report.OURS_BFLOAT16, *others] for size, (ours, *others) in TRAINERS.items()}
        print(plot.draw(samples, trainers, decoding, labels, picture))
        return
    if arguments.command == "decode" and sizes.SIZES[arguments.size].kind != "transformer":
        parser.error(f"decode: expected size T or B, received {arguments.size}; no peer decodes the others")
    if arguments.command == "epoch":
        if arguments.size != "T":
            parser.error(f"epoch: expected size T, received {arguments.size}")
        if arguments.data is None and arguments.rounds:
            parser.error(f"epoch: expected --data FOLDER with {' and '.join(epoch_data.FILES)}")
    jobs, draw = plan(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if arguments.command == "epoch" and arguments.rounds:
            vocabulary = sizes.SIZES[arguments.size].vocabulary
            try:
                epoch_data.prepare(arguments.data, folder, vocabulary, arguments.pairs)
            except (OSError, EOFError, ValueError, RuntimeError) as error:
                parser.error(f"epoch: {error}")
        Runner(arguments, samples, folder).run(jobs, draw)


def plan(arguments: argparse.Namespace) -> tuple[list[Job], Any]:
    """The jobs of a round, and a function that makes the table of samples."""
    command, size = arguments.command, arguments.size
    steps = () if arguments.steps is None else ("--steps", str(arguments.steps))
    names = {"decode": DECODERS, "epoch": EPOCHS}.get(command, TRAINERS[size])
    if command == "train":
        names = [*names, *TRAINERS_IN_BFLOAT16[size]]
    labels = {name: PEERS[name].label for name in names}
    if command == "startup":
        names = ("help", "import", *LOADING, *(name + AGAIN for name in LOADING))
        jobs = [Job(command, "T", report.OURS, name) for name in names]
        return jobs, lambda samples: report.startup(samples, jobs)
    if command == "growth":
        axes = {axis: [growth_point(axis, value) for value in values] for axis, values in GROWTH.items()}
        jobs = [job for points in axes.values() for _, job, _ in points]
        return jobs, lambda samples: report.growth(samples, axes)
    if command == "memory":
        jobs = [Job(command, size, name, arguments=MEMORY_STEPS) for name in labels]
        return jobs, lambda samples: report.memory(samples, size, labels)
    if command == "epoch":
        jobs = {
            name: Job(command, size, name, f"{'all' if arguments.pairs is None else arguments.pairs} pairs")
            for name in labels
        }
        return list(jobs.values()), lambda samples: report.epoch(samples, size, labels, jobs)
    limit = Job(command, size, report.LIMIT)
    if command == "decode":
        jobs = {name: report.decoding_jobs(size, name, arguments.threads) for name in labels}
        every = [limit, *(job for name in labels for job in jobs[name])]
        return every, lambda samples: report.decoding(samples, size, labels, jobs)
    jobs = [Job(command, size, name, arguments=steps) for name in labels]
    return [limit, *jobs], lambda samples: report.training(samples, size, labels)


def growth_point(axis: str, value: int) -> tuple[int, Job, float]:
    """One value of one quantity, for size T: the job that measures it, and how many operations it takes."""
    size, batch, beams = sizes.SIZES["T"], 8, 1
    changes = {}
    if "vocabulary" in axis:
        size = dataclasses.replace(size, vocabulary=value)
        changes["--vocabulary"] = value
    if axis.startswith("training"):
        how = dict(sizes.TRAINING)
        if "batch" in axis:
            how["batch"] = value
        elif "length" in axis:
            how = {"batch": 1, "source_length": value, "target_length": value}
        operations = sizes.training_operations(size, **how)
        changes |= {"--batch": how["batch"], "--steps": 5}
    else:
        how = dict(sizes.DECODING)
        if "length" in axis:
            how["target_length"] = value
        elif axis == "decoding, batch":
            batch = value
        elif "beams" in axis:
            beams = value
        operations = sizes.decoding_operations(size, batch, beams, **how)
        changes["--cells"] = f"{batch},{beams}"
    changes |= {"--source-length": how["source_length"], "--target-length": how["target_length"]}
    words = tuple(str(word) for change in changes.items() for word in change)
    return value, Job("growth", "T", report.OURS, f"{axis} {value}", words), operations


class Runner:
    """Runs jobs in processes of their own."""

    def __init__(self, arguments: argparse.Namespace, samples: Samples, folder: pathlib.Path) -> None:
        self.arguments = arguments
        self.samples = samples
        self.folder = folder
        self.exported = folder / "exported"

    def run(self, jobs: list[Job], draw: Any) -> None:
        """Takes what is missing, round after round, and prints the table."""
        only = self.arguments.only
        chosen = [job for job in jobs if not only or job.peer in (*only, report.LIMIT)]
        waiting = [
            (number, job)
            for number in range(self.arguments.rounds)
            for job in chosen
            if self._is_missing(job, number)
        ]
        pythons = self._interpreters([job for _, job in waiting])
        for place, (round_number, job) in enumerate(waiting):
            print(f"[{place + 1}/{len(waiting)}] {' '.join(filter(None, job.key))} ...", end="", flush=True)
            start = time.monotonic()
            record = self._measure(job, pythons[job.peer])
            record |= {"took_s": time.monotonic() - start, "threads": self._threads(job)}
            self.samples.add(job, round_number, record)
            left = sum(self.samples.seconds(job) for _, job in waiting[place + 1 :])
            print(f" {_shown(record)}; {record['took_s']:.0f} s, about {left / 60:.0f} min left", flush=True)
        self._write(draw(self.samples))

    def _is_missing(self, job: Job, round_number: int) -> bool:
        record = self.samples.get(job, round_number)
        if record is None or "error" in record:
            return True
        return self.arguments.retake_busy and machine.is_busy(busiest(record["result"]))

    def _interpreters(self, jobs: list[Job]) -> dict[str, Any]:
        """The Python of each peer, or the reason why there is none."""
        pythons = {}
        for name in dict.fromkeys(job.peer for job in jobs):
            try:
                pythons[name] = environments.python_of(
                    PEERS[name].requirements, self.arguments.cache, self.arguments.gpu
                )
            except (environments.NotInstalled, OSError) as error:
                pythons[name] = error
        return pythons

    def _measure(self, job: Job, python: Any) -> dict[str, Any]:
        """The result of one process, or the error."""
        if isinstance(python, Exception):
            return {"error": f"not installed: {python}"}
        peer = PEERS[job.peer]
        threads = str(self._threads(job))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_BACKEND": "tensorflow",
            "HF_HUB_OFFLINE": "1",
            "BENCHMARK_GPU": "1" if self.arguments.gpu else "",
            "BENCHMARK_BFLOAT16": "",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts them
            "CUDA_VISIBLE_DEVICES": machine.FIRST_GPU if self.arguments.gpu else "-1",
            **peer.environment,
        }
        again = job.variant.endswith(AGAIN)
        cache = self.folder / job.variant.partition(",")[0]
        if again:
            environment["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={cache}"
        command = [python, "-m", *self._module(job, peer)]
        how = {"cwd": HERE, "env": environment, "capture_output": True, "text": True, "timeout": TIMEOUT}
        try:
            if job.command == "startup" and job.variant.startswith(LOADING) and not self.exported.exists():
                export = [python, "-m", "peers.startup", "export", str(self.exported)]
                subprocess.run(export, check=True, **how)
            if again and not cache.exists():
                subprocess.run(command, check=True, **how)
            done = subprocess.run(command, check=True, **how)
            return {"result": json.loads(done.stdout.splitlines()[-1])}
        except subprocess.CalledProcessError as error:
            reason = environments.last_line(error.stderr) or f"exit code {error.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"longer than {TIMEOUT} s"
        except (ValueError, IndexError):
            reason = "no result"
        return {"error": f"failed: {reason}"}

    def _threads(self, job: Job) -> int:
        return job.threads or max(self.arguments.threads)

    def _module(self, job: Job, peer: Peer) -> list[str]:
        """What a job runs, with its arguments."""
        if job.command == "startup":
            folder = [str(self.exported)] if job.variant.startswith(LOADING) else []
            return ["peers.startup", job.variant.removesuffix(AGAIN), *folder]
        if job.peer == report.LIMIT:
            return ["peers.limit"]
        command = {"memory": "train", "growth": job.variant.split(",")[0]}.get(job.command, job.command)
        command = {"training": "train", "decoding": "decode"}.get(command, command)
        data = ["--data", str(self.folder)] if command == "epoch" else []
        return [f"peers.{peer.module}", command, "--size", job.size, *data, *job.arguments]

    def _write(self, text: str) -> None:
        """Prints the table, and writes it under a temporary name first, so that it is whole."""
        threads = " or ".join(map(str, self.arguments.threads))
        gpu = f"{machine.gpu()} and " if self.arguments.gpu else ""
        where = f"{gpu}{machine.description()}, {threads} threads, {datetime.date.today()}."
        text = f"{text}\n{where}\n"
        name = self.arguments.command
        if name in ("train", "decode", "memory", "epoch"):
            name += f"_{self.arguments.size}{self.arguments.suffix}"
        self.arguments.output.mkdir(parents=True, exist_ok=True)
        file = self.arguments.output / f"{name}.md"
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(file)
        print(f"\n{text}\nWritten to {file}")


def _shown(record: dict[str, Any]) -> str:
    """What a process gave, in a few words."""
    if "error" in record:
        return record["error"]
    result = record["result"]
    disturbed = ", others were busy" if machine.is_busy(busiest(result)) else ""
    if "cells" in result:
        return ", ".join(f"{number(cell['ms'])} ms" for cell in result["cells"].values()) + disturbed
    if "seconds" in result:
        return ", ".join(f"{name} {number(s)} s" for name, s in result["seconds"].items()) + disturbed
    if "epoch_s" in result:
        return f"{number(result['epoch_s'])} s{disturbed}"
    if "float32" in result:
        return f"{result['float32']:.0f} GFLOP/s{disturbed}"
    return f"{number(result['ms'])} ms{disturbed}"


if __name__ == "__main__":
    sys.exit(main())
