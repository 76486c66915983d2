import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

import pytest
from typer.testing import CliRunner

from attention_zoo._version import __version__
from attention_zoo.models.presets import PRESETS
from attention_zoo.models.trained_preset import trained_presets
from attention_zoo.training import cli, launcher, publishing
from attention_zoo.training.recipe import built_in_recipes

runner = CliRunner()


class FakeTranslation:
    """What the commands read of a Translation."""

    def __init__(self, text, alternatives=()):
        self.text, self.score = text, -0.5
        self.tokens, self.source_tokens = text.split(), ["s"]
        self.alternatives = list(alternatives)

    def plot(self, path):
        pathlib.Path(path).write_bytes(b"picture")

    def plot_heads(self, path, part, layer):
        pathlib.Path(path).write_text(f"{part} {layer}")


class FakeTranslator:
    """Upper-cases, and remembers what it was asked."""

    def translate(self, texts, **settings):
        self.settings = settings
        if isinstance(texts, str):
            return FakeTranslation(texts.upper())
        worse = settings.get("n_best", 1) - 1
        return [FakeTranslation(text.upper(), [FakeTranslation(text)] * worse) for text in texts]

    def export(self, folder, **settings):
        self.settings = settings
        pathlib.Path(folder).mkdir()


class FakeCaptioner:
    """Says the name of the file, and remembers what it was asked."""

    def caption(self, files, **settings):
        self.settings = settings
        if isinstance(files, pathlib.Path):
            return FakeTranslation(f"a {files.stem}")
        worse = settings.get("n_best", 1) - 1
        return [FakeTranslation(f"a {file.stem}", [FakeTranslation(file.stem)] * worse) for file in files]


def loads_as(fake, tmp_path, monkeypatch):
    """A folder that looks like a SavedModel and loads as a fake."""
    folder = tmp_path / "runs" / "small" / "model"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    fake.folder = folder
    monkeypatch.setattr(cli, "_load", lambda path: fake)
    return fake


@pytest.fixture
def model(tmp_path, monkeypatch):
    return loads_as(FakeTranslator(), tmp_path, monkeypatch)


@pytest.fixture
def captioner(tmp_path, monkeypatch):
    """A FakeCaptioner, and beside it the files dog.jpg and é.png."""
    (tmp_path / "dog.jpg").touch()
    (tmp_path / "é.png").touch()
    return loads_as(FakeCaptioner(), tmp_path, monkeypatch)


def run(*arguments, **options):
    return runner.invoke(cli.app, [str(argument) for argument in arguments], **options)


def test_version():
    assert run("--version").output.strip() == f"attention-zoo {__version__}"


def test_help_names_all_commands():
    result = run("--help")
    assert result.exit_code == 0
    for command in (
        "train",
        "translate",
        "caption",
        "evaluate",
        "plot",
        "export",
        "convert-marian",
        "convert-ctranslate2",
        "presets",
        "publish",
        "recipes",
    ):
        assert command in result.output


def test_presets():
    result = run("presets")
    assert result.exit_code == 0
    for preset in PRESETS.values():
        assert re.search(rf"^ *{preset.name} +{preset.task} ", result.output, re.MULTILINE)
    for trained in trained_presets().values():
        assert re.search(rf"^ *{trained.name} +{trained.task} ", result.output, re.MULTILINE)


def test_presets_with_their_sizes_and_scores():
    result = run("presets", env={"COLUMNS": "200"})
    for trained in trained_presets().values():
        facts = f"{trained.parameters:,} +{trained.megabytes:.1f} +{re.escape(trained.headline)}"
        assert re.search(rf"{trained.name} .* {facts}", result.output)


def test_presets_with_weights_are_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(cli, "_load", lambda path: loaded.append(path) or FakeTranslator())
    shutil.copytree(trained_presets()["bahdanau_dates"].folder, tmp_path / "mine")
    for name in ("bahdanau_dates", "mine"):
        assert run("translate", "--model", name, "hello").output == "HELLO\n"
    assert loaded == [trained_presets()["bahdanau_dates"].folder, pathlib.Path("mine")]
    result = run("translate", "--model", "bahdanau_datez", "hello")
    assert result.exit_code == 2
    assert "bahdanau_dates" in result.stderr


def test_publish(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(publishing, "publish", lambda *arguments: asked.append(arguments))
    out = tmp_path / "out"
    assert run("publish", tmp_path, out).output == f"Wrote {out}\n"
    assert run("publish", tmp_path, out, "--float32", "--card", "card.yaml").exit_code == 0
    assert asked == [(tmp_path, out, "float16", None), (tmp_path, out, "float32", pathlib.Path("card.yaml"))]
    out.mkdir()
    result = run("publish", tmp_path, out)
    assert result.exit_code == 2
    assert "does not exist yet" in result.stderr


def test_recipes():
    result = run("recipes")
    assert result.exit_code == 0
    assert all(name in result.output for name in built_in_recipes())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["presets"], ["recipes"], ["train", "datez"], ["train", "dates", "training.epocs=1"]],
)
def test_starts_without_tensorflow(arguments):
    code = f"""
import sys
from attention_zoo.training import cli
sys.argv = ["attention-zoo", *{arguments!r}]
try:
    cli.main()
finally:
    assert "tensorflow" not in sys.modules and "keras" not in sys.modules, "imported"
"""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "imported" not in result.stderr
    assert "Traceback" not in result.stderr
    assert time.perf_counter() - start < 3  # generous: about 0.5 s, where importing TensorFlow takes 4


def test_train_refuses_before_training(monkeypatch):
    result = run("train", "dates", "training.epocs=1")
    assert result.exit_code == 2
    assert "Did you mean 'epochs'?" in result.stderr
    assert result.stdout == ""


def test_train_unknown_recipe():
    result = run("train", "multi30k")
    assert result.exit_code == 2
    assert "multi30k_en_de_bahdanau" in result.stderr


def test_train_missing_data(tmp_path):
    result = run("train", "multi30k_en_de_seq2seq", f"data.folder={tmp_path}")
    assert result.exit_code == 2
    assert "data.folder=FOLDER" in result.stderr


class TestLaunch:
    def test_arguments_reach_the_launcher(self, monkeypatch):
        asked = []
        monkeypatch.setattr(launcher, "launch", lambda *arguments: asked.append(arguments) or 143)
        result = run("launch", "--workers", 2, "--", "train", "dates", "--fresh", "--workers", "a=3")
        assert result.exit_code == 143
        assert asked.pop() == (["train", "dates", "--fresh", "--workers", "a=3"], 2, 3)
        run("launch", "--workers", 1, "--restarts", 0, "--", "train", "dates")
        assert asked.pop() == (["train", "dates"], 1, 0)

    @pytest.mark.parametrize("arguments", [("--workers", 2), ("--", "train"), ("--workers", 0, "train")])
    def test_refuses(self, monkeypatch, arguments):
        monkeypatch.setattr(launcher, "launch", None)
        assert run("launch", *arguments).exit_code == 2

    def test_cluster_is_set_already(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", "{}")
        result = run("launch", "--workers", 2, "--", "train", "dates")
        assert result.exit_code == 2 and "expected no TF_CONFIG" in result.stderr


def test_debug_shows_the_traceback():
    result = run("--debug", "train", "datez")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_translate(model):
    result = run("translate", "--model", model.folder, "ein haus", "zwei")
    assert result.exit_code == 0, result.output
    assert result.stdout == "EIN HAUS\nZWEI\n"


@pytest.mark.parametrize("name", ["small", "runs/small", "runs/small/model"])
def test_model_by_name_or_folder(model, name):
    assert run("translate", "--model", name, "a").stdout == "A\n"


def test_translate_standard_input_keeps_lines(model):
    result = run("translate", "--model", "small", input="a\n\nb c\n")
    assert result.stdout == "A\n\nB C\n"


def test_translate_options_reach_the_model(model):
    run("translate", "--model", "small", "--beams", 3, "--n-best", 2, "--length-penalty", 0.5, "a")
    assert model.settings == {"beams": 3, "n_best": 2, "length_penalty": 0.5}


def test_sampling_options_reach_the_model(model):
    options = ("--sample", "--n-best", 2, "--beams", 1, "--temperature", 0.5, "--top-p", 0.9, "--seed", 7)
    result = run("translate", "--model", "small", *options, "a")
    assert result.exit_code == 0, result.output
    asked = {"sample": True, "temperature": 0.5, "top_k": None, "top_p": 0.9, "seed": 7, "n_best": 2}
    assert asked.items() <= model.settings.items()


def test_translate_n_best(model):
    result = run("translate", "--model", "small", "--n-best", 2, "a", "b")
    assert result.stdout == "0\t-0.5000\tA\n0\t-0.5000\ta\n1\t-0.5000\tB\n1\t-0.5000\tb\n"


def test_translate_json(model):
    result = run("translate", "--model", "small", "--format", "json", "--n-best", 2, "é", "b")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["source"] == "é"
    assert first["translations"][0] == {"text": "É", "score": -0.5, "tokens": ["É"]}
    assert len(second["translations"]) == 2


def test_translate_n_best_needs_beams(model):
    result = run("translate", "--model", "small", "--beams", 2, "--n-best", 3, "a")
    assert result.exit_code == 2
    assert "raise --beams" in result.stderr


def test_unknown_model(model):
    result = run("translate", "--model", "smal", "a")
    assert result.exit_code == 2
    assert "small" in result.stderr and "Traceback" not in result.output


def test_plot(model, tmp_path):
    result = run("plot", "--model", "small", "a b", "--output", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes() == b"picture"
    assert model.settings["return_attention"] is True


def test_plot_heads(model, tmp_path):
    result = run(
        "plot", "--model", "small", "a b", "--output", tmp_path / "a.png", "--heads", "self", "--layer", 2
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_text() == "self 1"
    result = run("plot", "--model", "small", "a b", "--output", tmp_path / "b.png", "--heads", "none")
    assert result.exit_code == 2 and "encoder" in result.output


def test_export(model, tmp_path):
    result = run("export", "--model", "small", tmp_path / "new", "--beams", 2)
    assert result.exit_code == 0, result.output
    assert model.settings["beams"] == 2


def test_convert_marian(tmp_path, monkeypatch):
    model = FakeTranslator()
    fake = types.SimpleNamespace(load_marian=lambda folder: model)
    monkeypatch.setitem(sys.modules, "attention_zoo.models.marian_import", fake)
    monkeypatch.setattr(cli, "_import_tensorflow", lambda: None)
    (tmp_path / "opus").mkdir()
    result = run("convert-marian", tmp_path / "opus", tmp_path / "new", "--beams", 2)
    assert result.exit_code == 0, result.output
    assert model.settings["beams"] == 2 and (tmp_path / "new").is_dir()


def test_convert_ctranslate2(model, tmp_path, monkeypatch):
    written = []
    fake = types.SimpleNamespace(export_ctranslate2=lambda *given: written.append(given))
    monkeypatch.setitem(sys.modules, "attention_zoo.models.ctranslate2_export", fake)
    result = run("convert-ctranslate2", "small", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert written == [(model, tmp_path / "new")]


def test_conversions_look_before_they_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_import_tensorflow", lambda: pytest.fail("it was imported"))
    result = run("convert-marian", tmp_path / "none", tmp_path / "new")
    assert result.exit_code == 2 and "Expected a folder" in result.output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for command, given in (("convert-marian", tmp_path), ("convert-ctranslate2", "small")):
        for taken in (tmp_path / "full", tmp_path / "full" / "file"):
            result = run(command, given, taken)
            assert result.exit_code == 2 and "does not exist yet or is empty" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("told plainly"), 2),
        (FileNotFoundError("told plainly"), 2),
        (FileExistsError("told plainly"), 2),
        (ImportError("told plainly"), 1),
        (OSError("told plainly"), 1),
        (RuntimeError("told plainly"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_message_and_an_exit_code(model, monkeypatch, error, code):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(model, "translate", fail)
    result = run("translate", "--model", "small", "a")
    assert result.exit_code == code
    assert result.stderr == ("Interrupted.\n" if code == 130 else "Error: told plainly\n")


def test_evaluate(model, tmp_path):
    pytest.importorskip("sacrebleu")
    (tmp_path / "source").write_text("the cat sat on the mat\n")
    (tmp_path / "reference").write_text("THE CAT SAT ON THE MAT\n")
    arguments = ["evaluate", "--model", "small", "--source", "source", "--reference", "reference"]
    plain = run(*arguments)
    assert plain.exit_code == 0, plain.output
    assert "BLEU" in plain.stdout and "chrF" in plain.stdout and "100.00" in plain.stdout
    assert "tok:13a" in plain.stdout and "tok:none" not in plain.stdout
    tokenized = run(*arguments, "--tokenized")
    assert "tok:13a" in tokenized.stdout and "tok:none" in tokenized.stdout


def test_evaluate_mismatched_files(model, tmp_path):
    (tmp_path / "source").write_text("a\nb\n")
    (tmp_path / "reference").write_text("a\n")
    result = run("evaluate", "--model", "small", "--source", "source", "--reference", "reference")
    assert result.exit_code == 2
    assert "2" in result.stderr and "1" in result.stderr


def test_evaluate_missing_file(model):
    result = run("evaluate", "--model", "small", "--source", "nowhere", "--reference", "nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


class TestCaption:
    def test_one_file(self, captioner):
        result = run("caption", "--model", "small", "dog.jpg")
        assert result.exit_code == 0, result.output
        assert result.stdout == "a dog\n"
        assert captioner.settings == {"beams": 4, "n_best": 1, "length_penalty": 1.0}

    def test_several_files(self, captioner):
        result = run("caption", "--model", "small", "dog.jpg", "é.png")
        assert result.stdout == "dog.jpg\ta dog\né.png\ta é\n"

    def test_n_best(self, captioner):
        result = run("caption", "--model", "small", "--n-best", 2, "dog.jpg", "é.png")
        lines = [
            "dog.jpg\t-0.5000\ta dog",
            "dog.jpg\t-0.5000\tdog",
            "é.png\t-0.5000\ta é",
            "é.png\t-0.5000\té",
        ]
        assert result.stdout.splitlines() == lines
        result = run("caption", "--model", "small", "--n-best", 2, "--beams", 1, "dog.jpg")
        assert result.exit_code == 2 and "raise --beams" in result.stderr

    def test_json(self, captioner):
        result = run("caption", "--model", "small", "--format", "json", "--n-best", 2, "dog.jpg", "é.png")
        first, second = (json.loads(line) for line in result.stdout.splitlines())
        assert first["captions"][0] == {"text": "a dog", "score": -0.5, "tokens": ["a", "dog"]}
        assert (second["image"], len(second["captions"])) == ("é.png", 2)

    def test_sampling_options_reach_the_model(self, captioner):
        options = ("--sample", "--n-best", 2, "--beams", 1, "--temperature", 0.5, "--top-k", 5, "--seed", 7)
        result = run("caption", "--model", "small", *options, "dog.jpg")
        assert result.exit_code == 0, result.output
        asked = {"sample": True, "temperature": 0.5, "top_k": 5, "top_p": None, "seed": 7, "n_best": 2}
        assert asked.items() <= captioner.settings.items()

    def test_missing_file_is_told_before_the_model_is_loaded(self, captioner, monkeypatch):
        monkeypatch.setattr(cli, "_load", None)
        result = run("caption", "--model", "small", "dog.jpg", "cat.jpg")
        assert result.exit_code == 2
        assert "'cat.jpg', which does not exist" in result.stderr and result.stderr.count("\n") == 1

    def test_plot(self, captioner, tmp_path):
        result = run("plot", "--model", "small", "dog.jpg", "--output", tmp_path / "a.png")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("a dog\n")
        assert (tmp_path / "a.png").read_bytes() == b"picture"
        assert captioner.settings["return_attention"] is True
        result = run("plot", "--model", "small", "dog.jpg", "--output", "b.png", "--heads", "cross")
        assert result.exit_code == 2 and "--heads" in result.stderr


class TestWrongModel:
    def test_translate_with_a_captioner(self, captioner):
        result = run("translate", "--model", "small", "a")
        assert result.exit_code == 2
        assert "expected a translator, received a captioner" in result.stderr
        assert "'attention-zoo caption'" in result.stderr

    def test_caption_with_a_translator(self, model, tmp_path):
        (tmp_path / "dog.jpg").touch()
        result = run("caption", "--model", "small", "dog.jpg")
        assert result.exit_code == 2
        assert "expected a captioner, received a translator" in result.stderr
        assert "'attention-zoo translate'" in result.stderr

    def test_evaluate(self, captioner, tmp_path):
        (tmp_path / "text").touch()
        result = run("evaluate", "--model", "small", "--source", "text", "--reference", "text")
        assert result.exit_code == 2 and "received a captioner" in result.stderr


class TestEvaluateCaptioner:
    @pytest.fixture
    def files(self, captioner, tmp_path):
        captions = "dog.jpg#0\tA dog\ndog.jpg#1\tone animal\né.png#0\tno letter\n"
        (tmp_path / "captions.txt").write_text(captions)
        (tmp_path / "names.txt").write_text("dog.jpg\n")
        return ("evaluate", "--model", "small", "--images", ".", "--captions", "captions.txt")

    def test_scores(self, files, captioner):
        pytest.importorskip("sacrebleu")
        result = run(*files, "--beams", 2)
        assert result.exit_code == 0, result.output
        assert "CIDEr-D" in result.stdout and "images:2|nrefs:1-2" in result.stdout
        assert captioner.settings == {"beams": 2, "length_penalty": 1.0}
        result = run(*files, "--names", "names.txt")
        assert "images:1|nrefs:2" in result.stdout
        assert "BLEU-1   100.00" in result.stdout  # "A dog" is "a dog"

    def test_coco(self, files, tmp_path):
        pytest.importorskip("sacrebleu")
        content = {
            "images": [{"id": 3, "file_name": "dog.jpg"}],
            "annotations": [{"image_id": 3, "caption": "a dog"}],
        }
        (tmp_path / "coco.json").write_text(json.dumps(content))
        result = run(*files[:-1], "coco.json")
        assert "images:1|nrefs:1" in result.stdout
        result = run(*files[:-1], "coco.json", "--names", "names.txt")
        assert result.exit_code == 2 and "--names" in result.stderr

    @pytest.mark.parametrize(
        "changed", [("--captions", "gone.txt"), ("--images", "gone"), ("--names", "gone")]
    )
    def test_missing(self, files, changed):
        result = run(*files, *changed)
        assert result.exit_code == 2
        assert "gone" in result.stderr

    @pytest.mark.parametrize(
        "options",
        [
            (),
            ("--images", "."),
            ("--source", "names.txt"),
            ("--source", "names.txt", "--captions", "captions.txt"),
            ("--images", ".", "--captions", "captions.txt", "--tokenized"),
            ("--source", "names.txt", "--reference", "names.txt", "--names", "names.txt"),
        ],
    )
    def test_options_of_one_kind_only(self, files, options):
        result = run("evaluate", "--model", "small", *options)
        assert result.exit_code == 2
        assert "expected --source and --reference for a translator" in result.stderr
