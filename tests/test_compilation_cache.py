"""What is compiled stays on disk, and the next process reads it."""

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
from typer.testing import CliRunner

import attention_zoo as az
from attention_zoo.models import compilation_cache
from attention_zoo.training import cli

FLAG = "--tf_xla_persistent_cache_directory="
PROGRAM = """
import sys
import attention_zoo as az
az.enable_compilation_cache(sys.argv[1])
import tensorflow as tf
print(tf.function(lambda x: tf.sin(x) * 3, jit_compile=True)(tf.constant(2.0)).numpy())
"""


@pytest.fixture(autouse=True)
def flags(monkeypatch):
    """Leaves the environment as it was, and begins without flags."""
    monkeypatch.setenv("TF_XLA_FLAGS", "")
    return lambda: os.environ["TF_XLA_FLAGS"].split()


def test_the_next_process_finds_the_program(tmp_path):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    outputs, programs = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        programs.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pb")})
    assert len(programs[0]) == 1
    assert programs[1] == programs[0]  # neither compiled nor written again
    assert outputs[0] == outputs[1]


def test_other_flags_stay_and_a_second_call_changes_nothing(tmp_path, monkeypatch, flags):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_min_cluster_size=3")
    folder = az.enable_compilation_cache(tmp_path / "new")
    assert folder.parent == tmp_path / "new" and folder.is_dir()
    assert flags() == ["--tf_xla_min_cluster_size=3", f"{FLAG}{folder}"]
    assert az.enable_compilation_cache(tmp_path / "other") == folder
    assert flags() == ["--tf_xla_min_cluster_size=3", f"{FLAG}{folder}"]
    assert not (tmp_path / "other").exists()


def test_its_place_is_that_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert az.enable_compilation_cache().parent == tmp_path / "attention_zoo" / "compiled"


def test_every_kind_of_machine_has_a_folder_of_its_own(tmp_path, monkeypatch):
    names = {compilation_cache._machine()}
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    names.add(compilation_cache._machine())
    monkeypatch.setattr(compilation_cache.importlib.metadata, "version", lambda name: "9.9")
    names.add(compilation_cache._machine())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(77), raising=False)
    names.add(compilation_cache._machine())
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    names.add(compilation_cache._machine())
    assert len(names) == 5


def test_the_oldest_programs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_LIMIT", 25)
    folder = az.enable_compilation_cache(tmp_path)
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1000 - age, 1000 - age))
    os.environ["TF_XLA_FLAGS"] = ""
    az.enable_compilation_cache(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["middle", "new"]


def test_white_space_is_refused(tmp_path, flags):
    with pytest.raises(ValueError, match="expected a folder without white space in its path"):
        az.enable_compilation_cache(tmp_path / "my folder")
    assert flags() == [] and not (tmp_path / "my folder").exists()


def test_a_file_is_no_folder(tmp_path, flags):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        az.enable_compilation_cache(tmp_path / "file")
    assert flags() == []


def test_a_folder_that_cannot_be_written_to_is_not_used(tmp_path, monkeypatch, flags):
    def refuse(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compilation_cache.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError):
        az.enable_compilation_cache(tmp_path)
    monkeypatch.setenv("ATTENTION_ZOO_COMPILATION_CACHE", str(tmp_path))
    cli._use_compilation_cache()
    assert flags() == []


def test_who_has_no_home_has_no_cache(monkeypatch, flags):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    monkeypatch.delenv("ATTENTION_ZOO_COMPILATION_CACHE")
    cli._use_compilation_cache()
    assert flags() == []


@pytest.mark.parametrize("kind", [tf.errors.DataLossError, tf.errors.OutOfRangeError])
def test_commands_say_what_to_do_about_a_damaged_program(monkeypatch, kind):
    def fail(*_, **__):
        raise kind(None, None, "Read less bytes than requested")

    monkeypatch.setattr(cli, "_find_model", fail)
    result = CliRunner().invoke(cli.app, ["--debug", "translate", "--model", "any", "text"])
    assert result.exit_code == 1
    assert "delete ~/.cache/attention_zoo/compiled" in result.output
    assert "Read less bytes than requested" in result.output and "Traceback" in result.output


@pytest.mark.parametrize(("setting", "used"), [("", False), ("FOLDER", True), ("FILE", False)])
def test_commands_use_it_unless_told_otherwise(tmp_path, monkeypatch, flags, setting, used):
    (tmp_path / "FILE").write_text("")
    monkeypatch.setenv("ATTENTION_ZOO_COMPILATION_CACHE", str(tmp_path / setting) if setting else "")
    cli._use_compilation_cache()  # where it cannot be kept, goes on without
    assert bool(flags()) == used
    if used:
        assert pathlib.Path(flags()[0].removeprefix(FLAG)).parent == tmp_path / "FOLDER"
