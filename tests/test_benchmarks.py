"""The parts of benchmarks/ that measure nothing: statistics, tables, what is kept, what is read."""

import dataclasses
import gzip
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts, which import each other by their own names

import compare  # noqa: E402
import environments  # noqa: E402
import epoch_data  # noqa: E402
import layers  # noqa: E402
import machine  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import sizes  # noqa: E402
from peers import epochs  # noqa: E402
from samples import Job, Samples, busiest, number, summarize, table  # noqa: E402

JOB = Job("train", "T", "attention_zoo")
RESULT = {
    "ms": 7, "first_s": 1, "others": 0, "parameters": 9, "peak_mb": 5, "float32": 400, "bfloat16": 800
}  # fmt: skip


def trained(ms, others=0.0, parameters=1000):
    numbers = {"ms": ms, "first_s": 5.0, "others": others, "parameters": parameters, "peak_mb": 900.0}
    return {"result": {**numbers, "versions": {"keras": "3"}}, "took_s": 10.0}


def decoded(*times):
    cells = {
        "{},{}".format(*cell): {"ms": ms, "others": 0.0} for cell, ms in zip(sizes.CELLS, times, strict=True)
    }
    return {"result": {"cells": cells, "parameters": 1000}, "took_s": 10.0}


def epoch_of(seconds, **changes):
    result = {
        "epoch_s": seconds, "first_s": 6.0, "compile_s": 20.0, "processor_s": 150.0, "others": 0.0,
        "steps": 454, "pairs": 29000, "target_tokens": 400_000, "shapes": 5, "longest": [23, 50, 53],
        "padding": 0.193, "parameters": 1000, "peak_mb": 900.0,
    }  # fmt: skip
    return {"result": result | changes, "took_s": 10.0}


@pytest.fixture
def samples(tmp_path):
    return Samples(tmp_path / "samples.jsonl")


@pytest.fixture
def data(tmp_path):
    """Four pairs, in files of the names that an epoch is trained on."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = (["a dog runs", "two dogs", "a cat", "a cat runs"], ["ein hund", "hunde", "katze", "sie läuft"])
    for name, lines in zip(epoch_data.FILES, texts, strict=True):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return folder


# --- Statistics ---


def test_disturbed_samples_do_not_count():
    summary = summarize([(3.0, 0.0), (1.0, None), (2.0, machine.BUSY), (90.0, machine.BUSY + 0.01)])
    assert (summary.median, summary.low, summary.high) == (2.0, 1.0, 3.0)
    assert (summary.count, summary.busy) == (4, 1)
    assert str(summary) == "2.00 (1.00-3.00)"


def test_where_all_samples_were_disturbed_they_count_and_are_marked():
    summary = summarize([(100.0, 0.5), (104.0, 0.9)])
    assert summary.median == 102.0
    assert str(summary) == "102\\* (100-104)"


def test_one_quiet_sample_has_no_range():
    assert str(summarize([(3.0, 0.0), (9.0, 0.5)])) == "3.00"


def test_nothing_is_not_summarized():
    assert summarize([]) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (99.96, "100"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


# --- The machine ---


def test_the_part_of_others_is_what_is_neither_idle_nor_own():
    # In 10 seconds of two cores, 20 in all, 8 were idle and 9 were this process's own.
    assert machine.part_of_others((100.0, 50.0, 1.0), (120.0, 58.0, 10.0)) == pytest.approx(3 / 20)


def test_the_part_of_others_stays_within_its_bounds():
    # The clocks of processes are finer than those of the machine.
    assert machine.part_of_others((0.0, 0.0, 0.0), (1.0, 0.0, 1.01)) == 0.0
    assert machine.part_of_others((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)) == 0.0


def test_load_is_a_part_or_unknown():
    others = machine.Load().others()
    assert others is None or 0 <= others <= 1


def test_a_result_is_as_disturbed_as_its_worst_cell():
    assert busiest({"others": 0.1}) == 0.1
    assert busiest({"cells": {"1,1": {"others": 0.01}, "1,4": {"others": 0.3}}}) == 0.3
    assert busiest({"ms": 1}) is None
    assert machine.is_busy(0.06) and not machine.is_busy(0.05) and not machine.is_busy(None)


# --- Operations ---


def test_operations_of_a_transformer_are_those_of_its_matrices():
    size = sizes.Size("transformer", 4, 10, 0.0, layers=1, feed_forward_units=8, num_heads=2)
    source, target = 3, 5
    encoder = 4 * 3 * (4 * 4) + 2 * 3 * (4 * 8) + 2 * 3 * 3 * 4
    decoder = 6 * 5 * (4 * 4) + 2 * 3 * (4 * 4) + 2 * 5 * (4 * 8) + 2 * 5 * 5 * 4 + 2 * 5 * 3 * 4 + 5 * 4 * 10
    assert sizes.training_operations(size, 7, source, target) == 3 * 2 * 7 * (encoder + decoder)


def test_beams_share_the_encoder():
    one, two, three = (sizes.decoding_operations(sizes.SIZES["T"], 1, k, 16, 32) for k in (1, 2, 3))
    assert three - two == two - one < one


@pytest.mark.parametrize("name", sizes.SIZES)
def test_every_size_has_its_operations(name):
    operations = sizes.training_operations(sizes.SIZES[name], **sizes.TRAINING)
    assert 1e10 < operations < 1e12


# --- Samples ---


def test_samples_are_read_again(tmp_path):
    file = tmp_path / "new" / "samples.jsonl"
    Samples(file).add(JOB, 0, trained(5.0))
    with file.open("a") as stream:
        stream.write('{"command": "tra')  # the process was stopped
    again = Samples(file)
    assert again.get(JOB, 0)["result"]["ms"] == 5.0
    assert again.get(JOB, 1) is None
    assert again.get(Job("train", "T", "attention_zoo", "batch 8"), 0) is None


def test_the_later_sample_of_a_round_counts(samples):
    samples.add(JOB, 0, trained(5.0))
    samples.add(JOB, 0, trained(6.0))
    assert [result["ms"] for result in samples.results(JOB)] == [6.0]


def test_a_failure_is_told_until_there_is_a_result(samples):
    samples.add(JOB, 0, {"error": "failed: no room", "took_s": 1.0})
    assert samples.error(JOB) == "failed: no room"
    samples.add(JOB, 1, trained(5.0))
    assert samples.error(JOB) is None
    assert len(samples.results(JOB)) == 1


def test_time_that_a_job_takes_is_guessed_from_others(samples):
    assert samples.seconds(JOB) is None
    samples.add(JOB, 0, {**trained(5.0), "took_s": 4.0})
    assert samples.seconds(JOB) == samples.seconds(Job("train", "T", "keras_hub")) == 4.0


# --- An epoch ---


def test_texts_and_ids_of_an_epoch_are_the_same(tmp_path, data):
    import sentencepiece

    epoch_data.prepare(data, tmp_path, vocabulary=30, pairs=2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / epoch_data.MODEL))
    assert pieces.vocab_size() == 30
    sources, targets = epoch_data.read_ids(tmp_path)
    for side in (sources, targets):
        assert all(row.dtype == np.int32 and row[-1] == sizes.END_ID for row in side)
    assert all(row[0] == sizes.START_ID and len(row) > 2 for row in targets)
    assert [pieces.decode(row[:-1].tolist()) for row in sources] == ["a dog runs", "two dogs"]
    assert [pieces.decode(row[1:-1].tolist()) for row in targets] == ["ein hund", "hunde"]
    with gzip.open(tmp_path / epoch_data.SOURCE, "rt", encoding="utf-8") as file:
        assert file.read() == "a dog runs\ntwo dogs\n"


def test_subwords_do_not_depend_on_the_number_of_pairs(tmp_path, data):
    models = []
    for pairs in (1, None):
        epoch_data.prepare(data, tmp_path, 30, pairs)
        models.append((tmp_path / epoch_data.MODEL).read_bytes())
        assert [len(side) for side in epoch_data.read_ids(tmp_path)] == [pairs or 4] * 2
    assert models[0] == models[1]


def test_pairs_that_are_not_there_are_told(tmp_path, data):
    with pytest.raises(ValueError, match=r"expected two files of 5 lines or more.* received 4 and 4"):
        epoch_data.prepare(data, tmp_path, 30, pairs=5)
    with pytest.raises(ValueError, match="expected at least 1 pair, received 0"):
        epoch_data.prepare(data, tmp_path, 30, pairs=0)
    with gzip.open(data / epoch_data.FILES[1], "wt") as file:
        file.write("hund\n")
    with pytest.raises(ValueError, match="as many in one as in the other, received 4 and 1"):
        epoch_data.prepare(data, tmp_path, 30)


def test_clock_of_an_epoch(monkeypatch):
    seconds = iter([10.0, 13.0, 20.0, 21.0, 22.0, 28.0, 29.0, 30.0])  # made, ready, six steps
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: next(seconds))
    clock = epochs.EpochClock()
    clock.ready()
    for _ in range(6):
        clock.tick()
    result = clock.result()
    assert (result["epoch_s"], result["prepare_s"], result["first_s"], result["steps"]) == (20, 3, 7, 6)
    assert result["compile_s"] == (7 - 1) + (6 - 1)  # two shapes; a usual step takes one second
    assert result["processor_s"] >= 0


def test_what_batches_hold_is_counted():
    one = np.array([[5, 6, 2], [5, 2, 0]]), np.array([[7, 2], [2, 0]])
    two = np.array([[5, 2], [0, 0], [0, 0]]), np.array([[7, 2], [0, 0], [0, 0]])  # rows that fill it up
    assert epochs.count(iter([one, two, one])) == {
        "pairs": 5, "target_tokens": 3 + 2 + 3, "shapes": 2, "longest": (2, 3, 2),
        "padding": 1 - (8 + 4 + 8) / (10 + 12 + 10),
    }  # fmt: skip


# --- Tables ---


def test_table():
    assert table(["what", "ms"], [["a", "1"], ["long", "100"]]) == (
        "| what |  ms |\n| :--- | --: |\n| a    |   1 |\n| long | 100 |"
    )


def test_training_table(samples):
    operations = sizes.training_operations(sizes.SIZES["T"], **sizes.TRAINING)
    limit = {
        "float32": 2 * operations / 1e9 / 0.1,
        "bfloat16": 800.0,
        "others": 0.0,
    }  # twice what ours reaches
    samples.add(Job("train", "T", report.LIMIT), 0, {"result": limit, "took_s": 1.0})
    for round_number, ms in enumerate((90.0, 100.0, 300.0)):
        samples.add(JOB, round_number, trained(ms, others=0.0 if ms < 300 else 0.2, parameters=1000))
    samples.add(JOB, 3, trained(110.0))
    samples.add(Job("train", "T", "keras_hub"), 0, trained(160.0, parameters=1005))
    samples.add(Job("train", "T", "attention_zoo_bfloat16"), 0, trained(80.0))
    samples.add(Job("train", "T", "marian"), 0, {"error": "not installed: no network", "took_s": 0.1})
    page = report.training(
        samples, "T", {"attention_zoo": "Ours", "keras_hub": "Hub", "marian": "M", "torch": "Torch"}
    )
    ours, hub, marian, torch = page.splitlines()[2:6]
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:7] == ["Ours", "100 (90.0-110)", "1.00x", "1.25x", "20,480", "50%", "5.00 (5.00-5.00)"]
    assert "1.60x" in hub and "2.00x" in hub
    assert "not installed: no network" in marian
    assert "not measured" in torch
    assert "equal within 1%" in page


def test_unequal_models_are_told(samples):
    samples.add(JOB, 0, trained(1.0, parameters=1000))
    samples.add(Job("train", "T", "keras_hub"), 0, trained(1.0, parameters=1011))
    page = report.training(samples, "T", {"attention_zoo": "Ours", "keras_hub": "Hub"})
    assert "NOT the same number of parameters, within 1%: keras_hub" in page


def test_decoding_table(samples):
    jobs = {name: report.decoding_jobs("T", name, [1, 2]) for name in ("attention_zoo", "marian")}
    samples.add(jobs["attention_zoo"][0], 0, decoded(2.0, 4.0, 25.0, 90.0))
    samples.add(jobs["attention_zoo"][1], 0, decoded(3.0, 5.0, 20.0, 80.0))
    samples.add(jobs["marian"][0], 0, decoded(20.0, 2.0, 30.0, 80.0))
    labels = {"attention_zoo": "Ours", "marian": "M"}
    page = report.decoding(samples, "T", labels, jobs)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines()[2:4]]
    assert rows[0] == ["Ours", "2.00", "4.00", "20.0", "80.0", "1,000"]  # each with the better number
    assert rows[1] == ["M", "20.0, 10.00x", "2.00, 0.50x", "30.0, 1.50x", "80.0, 1.00x", "1,000"]
    assert "the best of those with 1 and 2 threads" in page and "ours in bfloat16" not in page
    jobs["attention_zoo_bfloat16"] = report.decoding_jobs("T", "attention_zoo_bfloat16", [1, 2])
    samples.add(jobs["attention_zoo_bfloat16"][0], 0, decoded(2.0, 4.0, 10.0, 40.0))
    labels = {"attention_zoo": "Ours", "attention_zoo_bfloat16": "In bfloat16", "marian": "M"}
    page = report.decoding(samples, "T", labels, jobs)
    assert " 10.0, 0.50x |" in page and " 30.0, 1.50x, 3.00x |" in page and "ours in bfloat16" in page
    ratios = plot._ratios({name: plot._cells(samples, jobs[name]) for name in jobs}, labels)
    assert ratios["M"] == {
        "batch 1, greedy": 10, "batch 1, beam 4": 0.5, "batch 32, greedy": 1.5, "batch 32, beam 4": 1
    }  # fmt: skip


def test_epoch_table(samples):
    jobs = {name: Job("epoch", "T", name, "all pairs") for name in ("attention_zoo", "keras", "torch", "x")}
    for round_number, seconds in enumerate((80.0, 84.0, 81.0)):
        samples.add(
            jobs["attention_zoo"], round_number, epoch_of(seconds, others=0.5 if seconds == 84 else 0.0)
        )
    samples.add(jobs["keras"], 0, epoch_of(161.0, padding=0.725, parameters=1002))
    samples.add(jobs["torch"], 0, {"error": "not installed: no network", "took_s": 0.1})
    samples.add(Job("epoch", "T", "x", "640 pairs"), 0, epoch_of(1.0))  # of another table
    page = report.epoch(
        samples, "T", {"attention_zoo": "Ours", "keras": "Keras", "torch": "Torch", "x": "X"}, jobs
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines()[:6]]
    assert rows[0][0] == "an epoch, size T, all pairs"
    assert rows[2][:3] == ["Ours", "80.5 (80.0-81.0)", "1.00x"]
    assert rows[3] == [
        "Keras", "161", "2.00x", "6.00", "20.0", f"{400_000 / 161:,.0f}", "72%", "150", "900", "1,002"
    ]  # fmt: skip
    assert rows[4][1] == "not installed: no network" and rows[5][1] == "not measured"
    held = "29,000 pairs and 400,000 target tokens in 454 batches; shapes: 5, the longest 23 x (50 + 53)."
    assert f"- Ours: {held}\n- Keras: {held}" in page
    assert "equal within 1%" in page


def test_growth_table(samples):
    points = [compare.growth_point("training, batch", batch) for batch in (8, 16)]
    for (_, job, _), ms in zip(points, (10.0, 15.0), strict=True):
        samples.add(job, 0, trained(ms))
    row = report.growth(samples, {"batch": points}).splitlines()[3]
    assert [cell.strip() for cell in row.strip("|").split("|")][:4] == ["16", "15.0", "1.50x", "2.00x"]


@pytest.mark.parametrize("axis", compare.GROWTH)
def test_every_quantity_that_grows_is_measured_apart(axis):
    points = [compare.growth_point(axis, value) for value in compare.GROWTH[axis]]
    assert (
        len({job.arguments for _, job, _ in points}) == len({job.key for _, job, _ in points}) == len(points)
    )
    operations = [count for _, _, count in points]
    assert operations == sorted(set(operations))


def test_times_of_others_are_drawn_in_times_of_ours(samples):
    samples.add(JOB, 0, trained(100.0))
    samples.add(Job("train", "T", "keras_hub"), 0, trained(160.0))
    times = {
        name: plot._step(samples, Job("train", "T", name)) for name in ("attention_zoo", "keras_hub", "x")
    }
    labels = {"attention_zoo": "Ours", "keras_hub": "Hub", "x": "X"}
    assert plot._ratios(times, labels) == {"Ours": {"step": 1}, "Hub": {"step": 1.6}}


# --- The command ---


def test_every_peer_has_its_files():
    for peer in compare.PEERS.values():
        assert (BENCHMARKS / "peers" / f"{peer.module}.py").is_file()
        if peer.requirements:
            assert (BENCHMARKS / "requirements" / f"{peer.requirements}.txt").is_file()
    assert set(compare.TRAINERS) == set(sizes.SIZES)
    names = {*compare.DECODERS, *compare.EPOCHS, *itertools.chain(*compare.TRAINERS.values())}
    assert names <= set(compare.PEERS)


@pytest.mark.parametrize("size", sizes.SIZES)
def test_training_in_bfloat16_is_asked_for_by_the_environment(size):
    names = compare.TRAINERS_IN_BFLOAT16[size]
    assert names[0] == report.OURS_BFLOAT16 and len(names) >= 3
    assert all(compare.PEERS[name].environment == {"BENCHMARK_BFLOAT16": "1"} for name in names)


@pytest.mark.parametrize("name", compare.EPOCHS)
def test_every_peer_of_an_epoch_trains_one(name):
    code = (BENCHMARKS / "peers" / f"{compare.PEERS[name].module}.py").read_text()
    assert "def epoch(" in code and "epoch" in code.split("common.main(")[1]


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        (tmp_path / "keras").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    python = environments.python_of("keras", tmp_path)
    assert environments.python_of("keras", tmp_path) == python
    assert len(calls) == 2  # venv and pip
    assert environments.python_of(None, tmp_path) == sys.executable


def test_a_gpu_has_an_environment_of_its_own(tmp_path, monkeypatch):
    def run(command, **kwargs):
        (tmp_path / "keras-gpu").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    python = environments.python_of("keras", tmp_path, gpu=True)
    assert pathlib.Path(python).parents[1] == tmp_path / "keras-gpu"
    assert "tensorflow[and-cuda]==" in (tmp_path / "keras-gpu" / "installed.txt").read_text()


@pytest.mark.parametrize(
    ("options", "devices", "page"),
    [
        ([], ("-1", ""), "train_T.md"),
        (["--gpu"], ("0", "1"), "train_T_gpu.md"),
    ],
)
def test_processes_are_told_what_to_compute_on(tmp_path, monkeypatch, options, devices, page):
    environment = {}

    def run(command, **kwargs):
        environment.update(kwargs.get("env", {}))
        return subprocess.CompletedProcess(command, 0, json.dumps(RESULT), "")

    monkeypatch.setenv("BENCHMARK_GPU", "1")  # of another run: does not count
    monkeypatch.setattr(environments, "python_of", lambda name, cache, gpu: "python")
    monkeypatch.setattr(compare.subprocess, "run", run)
    monkeypatch.setattr(machine, "gpu", lambda: "Some GPU")
    command = ["compare.py", "train", "--rounds", "1", "--only", "keras_hub", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    compare.main()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["BENCHMARK_GPU"]) == devices
    assert not environment["BENCHMARK_BFLOAT16"]
    assert ("Some GPU and " in (tmp_path / page).read_text()) == bool(options)
    samples = "samples_gpu.jsonl" if options else "samples.jsonl"  # never mixed
    assert [path.name for path in tmp_path.glob("*.jsonl")] == [samples]


@pytest.mark.parametrize("command", ["memory", "startup", "growth"])
def test_what_is_not_measured_on_a_gpu_is_told(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["compare.py", command, "--gpu"])
    with pytest.raises(SystemExit):
        compare.main()
    assert f"expected train, decode, epoch or plot, received {command}" in capsys.readouterr().err


def test_a_first_translation_is_measured_again_with_what_was_compiled(tmp_path, monkeypatch):
    calls = []

    def run(command, **kwargs):
        if command[3] == "export":
            pathlib.Path(command[4]).mkdir()
            return subprocess.CompletedProcess(command, 0, "", "")
        calls.append((command[3], kwargs["env"].get("TF_XLA_FLAGS", "")))
        if calls[-1][1]:
            pathlib.Path(calls[-1][1].partition("=")[2]).mkdir(exist_ok=True)
        seconds = {"seconds": {"first translation": 2.0}, "others": 0.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(seconds), "")

    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setattr(compare.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["compare.py", "startup", "--rounds", "2", "--output", str(tmp_path)])
    compare.main()
    again = [measurement for measurement, flags in calls if flags]
    assert again == ["serve", "serve", "load", "load", "serve", "load"]  # once each to compile
    assert len({flags for _, flags in calls}) == 3  # none, and a folder for each
    assert "load, compiled before: first translation" in (tmp_path / "startup.md").read_text()


def test_a_gpu_without_its_tools_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.gpu() == "an unknown GPU"


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    import tensorflow as tf
    from peers import device

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(device, "GPU", False)
    device.require_tensorflow_gpu()  # nothing is asked for
    assert device.peak_memory() > 0
    monkeypatch.setattr(device, "GPU", True)
    with pytest.raises(RuntimeError, match="expected a GPU, TensorFlow finds none"):
        device.require_tensorflow_gpu()


# --- Layers ---


def test_layers_are_measured_beside_those_of_keras(monkeypatch, capsys):
    every = layers.cases()
    shapes = {
        "MultiHeadAttention, 8 x 64, causal": [(2, 5, 8)],
        "SpatialAttention, 512": [(2, 3, 8), (2, 2, 2, 6)],
    }
    small = {name: every[name]._replace(shapes=shape) for name, shape in shapes.items()}
    monkeypatch.setattr(layers, "cases", lambda: small)
    layers.main(["--rounds", "2"])
    _, _, with_peer, alone, *_, where = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in with_peer.split("|")[1:-1]]
    assert cells[:2] == ["MultiHeadAttention, 8 x 64, causal", "2 x 5 x 8"]
    assert cells[4].endswith("x") and float(cells[5]) < 1e-5  # the same weights give the same outputs
    assert [cell.strip() for cell in alone.split("|")[4:-1]] == ["", "", ""]
    assert "on tensorflow, float32" in where


def test_layers_that_are_not_there(capsys):
    with pytest.raises(SystemExit):
        layers.main(["--only", "convolution"])
    assert "expected a part of one of MultiHeadAttention" in capsys.readouterr().err


def test_a_failed_installation_says_why(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "trying\nERROR: No matching distribution\n\n")
    monkeypatch.setattr(environments.subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(environments.NotInstalled, match="No matching distribution"):
        environments.python_of("keras", tmp_path)


def test_command_measures_what_is_missing(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(self, job, python):
        measured.append(job.peer)
        if isinstance(python, Exception):
            return {"error": f"not installed: {python}"}
        return decoded(1.0, 2.0, 3.0, 4.0) if job.peer != report.LIMIT else {
            "result": {"float32": 400.0, "bfloat16": 800.0, "others": 0.0}
        }  # fmt: skip

    def python_of(name, cache, gpu):
        if name == "transformers":
            raise environments.NotInstalled("no network")
        return "python"

    monkeypatch.setattr(compare.Runner, "_measure", measure)
    monkeypatch.setattr(environments, "python_of", python_of)
    command = ["compare.py", "decode", "--rounds", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(compare.machine, "cores", lambda: 4)
    monkeypatch.setattr(sys, "argv", [*command, "--only", "attention_zoo", "marian"])
    compare.main()
    assert measured == ["limit", *["attention_zoo"] * 2, *["marian"] * 2] * 2
    page = (tmp_path / "decode_T.md").read_text()
    assert "not installed: no network" in page
    assert "CTranslate2 int8" in page and "not measured" in page
    compare.main()
    assert measured[10:] == ["marian"] * 4  # what failed is tried again
    monkeypatch.setattr(sys, "argv", [*command[:2], "--rounds", "0", "--output", str(tmp_path)])
    (tmp_path / "decode_T.md").unlink()
    compare.main()
    assert len(measured) == 14 and (tmp_path / "decode_T.md").read_text() == page
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {line["peer"] for line in lines} == {"limit", "attention_zoo", "marian"}


def test_command_measures_an_epoch(tmp_path, data, monkeypatch, capsys):
    given = []

    def run(command, **kwargs):
        folder = pathlib.Path(command[command.index("--data") + 1])
        given.append((command[1:6], len(epoch_data.read_ids(folder)[0])))
        return subprocess.CompletedProcess(command, 0, json.dumps(epoch_of(70.0)["result"]), "")

    small = dataclasses.replace(sizes.SIZES["T"], vocabulary=30)
    monkeypatch.setitem(sizes.SIZES, "T", small)
    monkeypatch.setattr(environments, "python_of", lambda name, cache, gpu: "python")
    monkeypatch.setattr(compare.subprocess, "run", run)
    command = ["compare.py", "epoch", "--rounds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--data", str(data), "--pairs", "3"])
    compare.main()
    modules = ["ours", "keras_hub_layers", "keras_attention", "torch_transformer"]
    assert given == [(["-m", f"peers.{name}", "epoch", "--size", "T"], 3) for name in modules]
    assert "70.0 s; " in capsys.readouterr().out
    page = (tmp_path / "epoch_T.md").read_text()
    assert "an epoch, size T, 3 pairs" in page
    monkeypatch.setattr(
        sys, "argv", [*command[:2], "--rounds", "0", "--pairs", "3", "--output", str(tmp_path)]
    )
    (tmp_path / "epoch_T.md").unlink()
    compare.main()  # a table needs no data
    assert len(given) == 4 and (tmp_path / "epoch_T.md").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --data FOLDER with train.lc.norm.tok.en.gz and train.lc.norm.tok.de.gz"),
        (["--size", "B"], "expected size T, received B"),
        (["--data", "nowhere"], "No such file or directory: 'nowhere/train.lc.norm.tok.en.gz'"),
    ],
)
def test_command_says_what_an_epoch_needs(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["compare.py", "epoch", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (f"echo Loading; echo '{json.dumps(RESULT)}'", "7.00"),
        ("echo trying >&2; echo expected room, received none >&2; exit 3", "expected room, received none"),
        ("exit 3", "failed: exit code 3"),
        ("echo 5 apples", "failed: no result"),
    ],
)
def test_what_a_process_says_is_in_the_table(tmp_path, monkeypatch, capsys, script, shown):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(environments, "python_of", lambda name, cache, gpu: str(python))
    arguments = ["--rounds", "1", "--only", "keras_hub", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare.py", "train", *arguments])
    compare.main()
    rows = (tmp_path / "train_T.md").read_text().splitlines()
    assert shown in next(row for row in rows if "KerasHub" in row)
