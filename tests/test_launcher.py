"""The workers here are small scripts without TensorFlow."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from attention_zoo.training import launcher

# What every worker begins with: it notes its process number, and knows how often it was started.
BEGINNING = """
import os, pathlib, signal, subprocess, sys, time, json
folder = pathlib.Path(__file__).parent
config = json.loads(os.environ["TF_CONFIG"])
index = config["task"]["index"]
with (folder / f"starts{index}").open("a") as file:
    print(os.getpid(), file=file)
start = len((folder / f"starts{index}").read_text().split())

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)

def meet():
    "Waits until the other worker is in this start, too."
    wait_for(f"starts{1 - index}")
    while len((folder / f"starts{1 - index}").read_text().split()) < start:
        time.sleep(0.01)
"""

# A process of its own, for the tests that send signals or read what comes out.
DRIVER = """
import signal, sys
from attention_zoo.training import launcher
for number in (signal.SIGINT, signal.SIGHUP):  # ignored, if whoever runs the tests does so
    signal.signal(number, signal.SIG_DFL)
launcher._GRACE = float(sys.argv[1])
sys.exit(launcher.launch(["argument"], workers=2, command=[sys.executable, sys.argv[2]]))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def worker(tmp_path):
    """Writes the script of a worker, and returns the command that runs it."""

    def write(script):
        path = tmp_path / "worker.py"
        path.write_text(BEGINNING + script)
        return [sys.executable, str(path)]

    return write


@pytest.fixture
def driver():
    """Starts launchers in processes of their own."""
    started = []

    def start(command, grace=60.0, **options):
        arguments = [sys.executable, "-c", DRIVER, str(grace), command[-1]]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def starts(tmp_path, index):
    """Process numbers of all starts of a worker."""
    return [int(line) for line in (tmp_path / f"starts{index}").read_text().split()]


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def check_starts(tmp_path, count):
    """Both workers were started so many times, and none is left."""
    for index in range(2):
        numbers = starts(tmp_path, index)
        assert len(numbers) == count
        assert not any(alive(number) for number in numbers)


class TestWorkers:
    def test_configuration(self, worker, monkeypatch, capfd):
        monkeypatch.setattr(os, "cpu_count", lambda: 7)
        command = worker("print(json.dumps([config, os.environ['TF_NUM_INTRAOP_THREADS'], sys.argv[1:]]))")
        assert launcher.launch(["train", "--fresh", "a=b c"], workers=3, command=command) == 0
        lines = sorted(capfd.readouterr().out.splitlines())
        assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
        configs, threads, arguments = zip(*(json.loads(line[4:]) for line in lines), strict=True)
        assert threads == ("2", "2", "2")
        assert arguments == (["train", "--fresh", "a=b c"],) * 3
        assert [config["task"] for config in configs] == [{"type": "worker", "index": i} for i in range(3)]
        addresses = configs[0]["cluster"]["worker"]
        assert all(config["cluster"] == {"worker": addresses} for config in configs)
        assert len(set(addresses)) == 3
        assert all(re.fullmatch(r"127\.0\.0\.1:\d{4,5}", address) for address in addresses)

    @pytest.mark.parametrize(("chosen", "expected"), [(None, "1"), ("5", "5")])
    def test_threads(self, worker, monkeypatch, capfd, chosen, expected):
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        if chosen:
            monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", chosen)
        command = worker("print(os.environ['TF_NUM_INTRAOP_THREADS'])")
        assert launcher.launch(["x"], workers=2, command=command) == 0
        assert sorted(capfd.readouterr().out.splitlines()) == [f"[0] {expected}", f"[1] {expected}"]

    def test_look_for_each_other_beside_a_proxy(self, worker, capfd):
        launcher.launch(["x"], workers=1, command=worker("print(os.environ['no_grpc_proxy'])"))
        assert capfd.readouterr().out == "[0] 127.0.0.1\n"

    def test_default_command(self):
        assert launcher.COMMAND[1:] == ("-m", "attention_zoo.training.cli")
        result = subprocess.run([*launcher.COMMAND, "--version"], capture_output=True, text=True)
        assert result.stdout.startswith("attention-zoo ")

    def test_only_the_launcher_can_be_interrupted_from_the_terminal(self, worker, capfd):
        assert launcher.launch(["x"], 1, command=worker("print(os.getsid(0) == os.getpid())")) == 0
        assert capfd.readouterr().out == "[0] True\n"


class TestOutput:
    def test_whole_lines(self, worker, driver):
        script = """
for number in range(20):
    for file, name in ((1, b"out"), (2, b"err")):
        for part in (name, b" %d" % number, b"x" * 20_000, b"\\n"):
            os.write(file, part)
            time.sleep(0.0005)
os.write(1, b"no end")
"""
        process = driver(worker(script), stderr=subprocess.STDOUT)
        time.sleep(0.3)  # so that all of them wait to write
        lines = process.communicate(timeout=30)[0].splitlines()
        expected = [f"{name} {n}" + "x" * 20_000 for name in ("out", "err") for n in range(20)] + ["no end"]
        assert sorted(lines) == sorted(f"[{i}] {line}" for i in range(2) for line in expected)
        for prefix in ("[0] out", "[1] err"):  # in order
            numbers = [int(line[8:].split("x")[0]) for line in lines if line.startswith(prefix)]
            assert numbers == list(range(20))

    def test_streams_stay_apart(self, worker, capfd):
        command = worker("print('é'); print('problem', file=sys.stderr)")
        launcher.launch(["x"], workers=1, command=command)
        captured = capfd.readouterr()
        assert captured.out == "[0] é\n"
        assert captured.err == "[0] problem\n"

    def test_the_last_of_it_is_waited_for(self, worker, monkeypatch):
        lines = []

        class SlowOutput(io.BytesIO):
            def write(self, line):
                time.sleep(0.03)
                lines.append(line)

        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(SlowOutput()))
        assert launcher.launch(["x"], 1, command=worker("for number in range(20): print(number)")) == 0
        assert lines == [f"[0] {number}\n".encode() for number in range(20)]

    def test_nobody_reads_it(self, worker, driver, tmp_path):
        process = driver(worker("wait_for('closed')\nprint('x' * 300_000)\nprint()"), stderr=subprocess.PIPE)
        process.stdout.close()
        (tmp_path / "closed").touch()
        process.wait(timeout=30)
        check_starts(tmp_path, 1)
        assert "launch" not in process.stderr.read()


class TestDeath:
    def test_all_start_again(self, worker, tmp_path, caplog):
        script = """
(folder / f"ports{index}-{start}").write_text(str(config["cluster"]))
meet()
if start == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if index == 1:
        wait_for("ready")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "ready").touch()
    time.sleep(60)
"""
        assert launcher.launch(["x"], workers=2, restarts=3, command=worker(script)) == 0
        check_starts(tmp_path, 2)
        assert caplog.text.count("restart") == 1
        assert "worker 1 was killed by signal 9 (Killed). All 2 workers start again" in caplog.text
        assert "(restart 1 of 3)" in caplog.text
        first, second = ((tmp_path / f"ports0-{start}").read_text() for start in (1, 2))
        assert first != second

    def test_finished_worker_starts_again(self, worker, tmp_path, caplog):
        script = """
if index == 1 and start == 1:
    meet()
    time.sleep(0.3)
    sys.exit(7)
"""
        assert launcher.launch(["x"], workers=2, command=worker(script)) == 0
        check_starts(tmp_path, 2)
        assert "worker 1 ended with exit code 7." in caplog.text

    def test_gives_up(self, worker, tmp_path):
        command = worker("meet()\nif index:\n    sys.exit(1)\ntime.sleep(60)")
        with pytest.raises(RuntimeError, match="worker 1 ended with exit code 1, after 2 restarts"):
            launcher.launch(["x"], workers=2, restarts=2, command=command)
        check_starts(tmp_path, 3)

    def test_mistake_is_not_tried_again(self, worker, tmp_path, capfd):
        command = worker("meet()\nif index:\n    sys.exit(2)\ntime.sleep(60)")
        assert launcher.launch(["x"], workers=2, command=command) == 2
        check_starts(tmp_path, 1)

    def test_what_a_worker_started_ends_with_it(self, worker, monkeypatch):
        monkeypatch.setattr(launcher, "_OUTPUT_GRACE", 20)  # so long would it hold the output
        start = time.perf_counter()
        assert launcher.launch(["x"], 1, command=worker("subprocess.Popen(['sleep', '20'])")) == 0
        assert time.perf_counter() - start < 10


class TestSignals:
    POLITE = """
def stop(*_):
    print("saving")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
print("ready")
time.sleep(60)
"""

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
    )
    def test_is_passed_on(self, worker, driver, tmp_path, number, code):
        process = driver(worker(self.POLITE))
        assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
        process.send_signal(number)
        rest = process.communicate(timeout=30)[0]
        assert process.returncode == code
        assert sorted(rest.splitlines()) == ["[0] saving", "[1] saving"]
        check_starts(tmp_path, 1)

    def test_late_workers_are_killed(self, worker, driver, tmp_path):
        script = "signal.signal(signal.SIGTERM, lambda *_: index or sys.exit(143))\nprint('ready')\n"
        process = driver(worker(script + "while True: time.sleep(60)"), grace=0.5, stderr=subprocess.PIPE)
        for _ in range(2):
            process.stdout.readline()
        process.terminate()
        assert "killed: worker 1." in process.communicate(timeout=30)[1]
        assert process.returncode == 143
        check_starts(tmp_path, 1)

    @pytest.mark.parametrize("last", [143, 0])
    def test_workers_stopped_by_somebody_else(self, worker, tmp_path, last):
        """They agree to leave, or have finished: nobody died."""
        command = worker(f"meet()\nif index:\n    time.sleep(0.3)\n    sys.exit({last})\nsys.exit(143)")
        assert launcher.launch(["x"], workers=2, command=command) == 143
        check_starts(tmp_path, 1)

    def test_one_stopped_and_the_others_go_on(self, worker, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(launcher, "_GRACE", 0.3)
        command = worker("meet()\nif start == 1:\n    index or sys.exit(143)\n    time.sleep(60)")
        assert launcher.launch(["x"], workers=2, command=command) == 0
        check_starts(tmp_path, 2)
        assert "worker 0 was told to stop" in caplog.text

    def test_handlers_come_back(self, worker, monkeypatch):
        before = signal.getsignal(signal.SIGTERM)
        ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        seen = []

        def watch(team, received):
            seen.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP))
            return 0

        try:
            monkeypatch.setattr(launcher, "_watch", watch)
            assert launcher.launch(["x"], workers=1, command=worker("")) == 0
            assert seen[0] not in (before, signal.SIG_IGN)
            assert seen[1] == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == before
        finally:
            signal.signal(signal.SIGHUP, ignored)


class TestProblems:
    def test_no_worker_outlives_an_exception(self, worker, tmp_path, monkeypatch):
        def watch(team, received):
            while not all((tmp_path / f"met{index}").exists() for index in range(2)):
                time.sleep(0.01)
            raise KeyError("unexpected")

        monkeypatch.setattr(launcher, "_watch", watch)
        script = "(folder / f'met{index}').touch()\ntime.sleep(60)"
        with pytest.raises(KeyError):
            launcher.launch(["x"], workers=2, command=worker(script))
        check_starts(tmp_path, 1)

    def test_command_that_does_not_exist(self):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            launcher.launch(["x"], workers=1, command=["nowhere"])

    def test_cluster_is_set_already(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", '{"cluster": {}}')
        with pytest.raises(ValueError, match=r"received '\{.*; on a cluster start 'attention-zoo train'"):
            launcher.launch(["x"], workers=2, command=["nowhere"])

    @pytest.mark.parametrize(
        ("arguments", "workers", "restarts"), [([], 2, 3), (["x"], 0, 3), (["x"], 2, -1)]
    )
    def test_arguments(self, arguments, workers, restarts):
        with pytest.raises(ValueError, match="expected arguments, at least 1 worker"):
            launcher.launch(arguments, workers, restarts, command=["nowhere"])


def test_does_not_import_tensorflow():
    code = "import sys; import attention_zoo.training.launcher; print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n"
