"""What is installed is what lies in the folders, and importing it costs nothing."""

import configparser
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

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


def data_files(folder):
    """What belongs to models/ and training/ and is no code, as paths below `folder`."""
    return {
        path.relative_to(folder).as_posix()
        for top in ("models", "training")
        for path in (folder / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "RESULTS.md"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders with what a wheel holds, and with what a source distribution unpacks to."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("attention_zoo", "models", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()"]
    commands = [
        "build_py",
        "--build-lib",
        folder / "wheel",
        "sdist",
        "--formats",
        "tar",
        "--dist-dir",
        folder,
    ]
    subprocess.run([*command, *commands], cwd=source, capture_output=True, check=True)
    (archive,) = folder.glob("*.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    return folder / "wheel", unpacked


def test_presets_and_recipes_are_packed(built):
    wheel, sdist = built
    files = data_files(ROOT)
    assert any(name.endswith("weights.npz") for name in files)
    assert data_files(wheel / "attention_zoo") == files
    assert data_files(sdist) == files


def test_wheel_is_small(built):
    wheel, _ = built
    size = sum(path.stat().st_size for path in wheel.rglob("*") if path.is_file())  # not compressed
    assert size < 40e6


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
