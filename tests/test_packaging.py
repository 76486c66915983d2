"""What is installed is what lies in the folders, and importing it costs nothing."""

import configparser
import pathlib
import subprocess
import sys

import attention_zoo

ROOT = pathlib.Path(__file__).parents[1]


def test_every_folder_with_code_is_a_listed_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = set()
    for top, name in (
        ("attention_zoo", "attention_zoo"),
        ("models", "attention_zoo.models"),
        ("training", "attention_zoo.training"),
    ):
        for file in (ROOT / top).rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(ROOT / top).parts]))
    assert listed == found


def test_top_level_folders_are_the_fixed_ones():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        folders = {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}
    else:
        folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders <= {"attention_zoo", "models", "training", "tests", "benchmarks", ".ci"}


def test_import_is_lazy():
    code = "import sys, attention_zoo; assert attention_zoo.__version__; print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_public_name_can_be_imported():
    for package in (
        attention_zoo,
        attention_zoo.ops,
        attention_zoo.layers,
        attention_zoo.models,
        attention_zoo.training,
        attention_zoo.training.callbacks,
    ):
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_modules_are_loaded_under_one_name_only():
    import attention_zoo.models.translator  # noqa: F401

    assert "models" not in sys.modules
    assert "training" not in sys.modules
