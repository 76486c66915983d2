"""The command line: `attention-zoo train | translate | caption | evaluate | plot | export | ...`.

TensorFlow is imported inside the commands that need it, so that help and mistakes answer at once.
"""

import contextlib
import enum
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.table import Column, Table

from attention_zoo._version import __version__
from attention_zoo.models.compilation_cache import enable_compilation_cache
from attention_zoo.models.presets import PRESETS
from attention_zoo.models.trained_preset import CONFIG, trained_presets
from attention_zoo.training.recipe import Recipe, built_in_recipes

if TYPE_CHECKING:
    from attention_zoo.models.caption import Caption
    from attention_zoo.models.captioner import Captioner
    from attention_zoo.models.translation import Translation
    from attention_zoo.models.translator import Translator

# TensorFlow reads this when it is imported. What goes wrong arrives as an exception anyway.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class _Commands(typer.core.TyperGroup):
    """Turns errors into one message and an exit code: 2 for a mistake of the user, 1 for a failure."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None
        except (ValueError, FileNotFoundError, FileExistsError) as error:
            code, problem = 2, error
        except (OSError, ImportError, RuntimeError) as error:
            code, problem = 1, error
        except Exception as error:
            if type(error).__name__ not in DAMAGED:
                raise
            code, problem = 1, RuntimeError(f"{DAMAGED_MESSAGE} TensorFlow says: {error}")
            problem.__cause__ = error
        if ctx.params.get("debug"):
            traceback.print_exception(problem)
        typer.echo(f"Error: {problem}", err=True)
        raise typer.Exit(code)


# What TensorFlow raises when a compiled program is damaged; TensorFlow may not be imported yet.
DAMAGED = ("DataLossError", "OutOfRangeError")
DAMAGED_MESSAGE = (
    "a file is damaged, probably a compiled program; delete ~/.cache/attention_zoo/compiled, or what "
    "ATTENTION_ZOO_COMPILATION_CACHE or XDG_CACHE_HOME say instead."
)

# Commands, and the models that they want.
COMMANDS = {"translate": "a translator", "caption": "a captioner"}

app = typer.Typer(
    cls=_Commands,
    help="Train, run and look into attention models for translation and image captioning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Name of a finished run or a preset with weights, or the folder of a model."
    ),
]
BeamsOption = Annotated[int, typer.Option("--beams", "-b", min=1, help="Hypotheses kept alive; 1 is greedy.")]
LengthPenaltyOption = Annotated[
    float,
    typer.Option("--length-penalty", min=0.0, help="Exponent alpha; larger prefers longer outputs."),
]
NBestOption = Annotated[int, typer.Option("--n-best", min=1, help="Outputs per input; at most --beams.")]
SampleOption = Annotated[
    bool, typer.Option("--sample", help="Draw --n-best outputs at random instead of searching.")
]
TemperatureOption = Annotated[float, typer.Option(help="Of --sample: below 1 more careful, above 1 bolder.")]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Of --sample: draw among so many tokens only.")
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Of --sample: draw among the tokens of this probability.")
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Of --sample: the same seed gives the same outputs.")
]


class StrategyName(enum.StrEnum):
    """On what `train` trains, see `strategies.strategy`."""

    auto = "auto"
    one_device = "one_device"
    mirrored = "mirrored"
    multi_worker = "multi_worker"


class HeadsPart(enum.StrEnum):
    """Which attention of a Transformer `plot --heads` draws."""

    cross = "cross"
    self = "self"
    encoder = "encoder"


class OutputFormat(enum.StrEnum):
    """How `translate` and `caption` print."""

    text = "text"
    json = "json"


FormatOption = Annotated[OutputFormat, typer.Option("--format", help="text, or one JSON object per line.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attention-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of errors too.")] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a built-in recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as training.epochs=3.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh/--resume", help="Start over, or go on with an interrupted run of this recipe."),
    ] = False,
    strategy: Annotated[
        StrategyName,
        typer.Option(help="Devices: auto takes the workers in TF_CONFIG, or several GPUs, if there are."),
    ] = StrategyName.auto,
) -> None:
    """Train, evaluate, export and draw what a recipe describes.

    Interrupted (Ctrl-C, SIGTERM, a crash), the same command goes on from the last backup.
    """
    loaded = Recipe.load(recipe, overrides or [])
    loaded.check_requirements()
    _import_tensorflow()
    from attention_zoo.training.run import train as run_recipe

    run_recipe(loaded, fresh=fresh, strategy=strategy.value)


@app.command(options_metavar="[OPTIONS] --")
def launch(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="What each worker runs, such as train RECIPE: all after -- is passed on as it is.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")],
    restarts: Annotated[
        int, typer.Option(min=0, help="How many times all may start again after the death of one.")
    ] = 3,
) -> None:
    """Train in several worker processes on this machine.

    For example: attention-zoo launch --workers 2 -- train dates training.epochs=3

    Each worker gets its own TF_CONFIG, and its share of the processors unless TF_NUM_INTRAOP_THREADS is set.

    What worker 1 writes comes out with [1] in front.

    If a worker dies, all start again, from the last backup. A mistake (exit code 2) is not tried again.

    With SIGTERM or Ctrl-C the workers save and leave; the exit code is 143 or 130 then.

    On a cluster start "attention-zoo train" itself in every process.
    """
    from attention_zoo.training.launcher import launch as launch_workers

    raise typer.Exit(launch_workers(arguments, workers, restarts))


@app.command()
def translate(
    model: ModelOption,
    text: Annotated[
        list[str] | None, typer.Argument(help="Sentences; without any, standard input, one per line.")
    ] = None,
    beams: BeamsOption = 4,
    n_best: NBestOption = 1,
    length_penalty: LengthPenaltyOption = 1.0,
    sample: SampleOption = False,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """Translate sentences."""
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    search = _search_options(beams, n_best, length_penalty, drawing if sample else None)
    path = _find_model(model)
    sentences = text or _read_standard_input()
    translations = _load_for("translate", path).translate(sentences, **search)
    for number, (sentence, best) in enumerate(zip(sentences, translations, strict=True)):
        ranked = [best, *best.alternatives]
        if output_format == OutputFormat.json:
            known = {"source": sentence, "source_tokens": best.source_tokens}
            _print_json({**known, "translations": _as_json(ranked)})
        elif n_best == 1:
            typer.echo(best.text)
        else:
            for hypothesis in ranked:
                typer.echo(f"{number}\t{hypothesis.score:.4f}\t{hypothesis.text}")


@app.command()
def caption(
    model: ModelOption,
    files: Annotated[list[pathlib.Path], typer.Argument(help="JPEG, PNG, GIF or BMP images.")],
    beams: BeamsOption = 4,
    n_best: NBestOption = 1,
    length_penalty: LengthPenaltyOption = 1.0,
    sample: SampleOption = False,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """Say what is in images."""
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    search = _search_options(beams, n_best, length_penalty, drawing if sample else None)
    path = _find_model(model)
    _check_files(files, "an image file")
    captions = _load_for("caption", path).caption(files, **search)
    for file, best in zip(files, captions, strict=True):
        ranked = [best, *best.alternatives]
        if output_format == OutputFormat.json:
            _print_json({"image": str(file), "captions": _as_json(ranked)})
        elif n_best == 1:
            typer.echo(best.text if len(files) == 1 else f"{file}\t{best.text}")
        else:
            for hypothesis in ranked:
                typer.echo(f"{file}\t{hypothesis.score:.4f}\t{hypothesis.text}")


@app.command()
def evaluate(
    model: ModelOption,
    source: Annotated[
        pathlib.Path | None, typer.Option("--source", help="Sentences to translate, one per line.")
    ] = None,
    reference: Annotated[
        pathlib.Path | None, typer.Option("--reference", help="Their translations, one per line.")
    ] = None,
    tokenized: Annotated[
        bool,
        typer.Option("--tokenized", help="The text is tokenized already: also print BLEU on its tokens."),
    ] = False,
    images: Annotated[
        pathlib.Path | None, typer.Option("--images", help="Folder of images to caption.")
    ] = None,
    captions: Annotated[
        pathlib.Path | None,
        typer.Option("--captions", help="Their captions, as Flickr8k or COCO has."),
    ] = None,
    names: Annotated[
        pathlib.Path | None, typer.Option("--names", help="Which images, one name per line; all without.")
    ] = None,
    beams: BeamsOption = 4,
    length_penalty: LengthPenaltyOption = 1.0,
) -> None:
    """Translate a file (--source, --reference) or caption images (--images, --captions), and print scores."""
    path = _find_model(model)
    search = {"beams": beams, "length_penalty": length_penalty}
    if source and reference and not (images or captions or names):
        _check_files([source, reference], "a text file")
        _evaluate_translator(_load_for("translate", path), source, reference, tokenized, search)
    elif images and captions and not (source or reference or tokenized):
        _check_files([file for file in (captions, names) if file], "a text file")
        _evaluate_captioner(_load_for("caption", path), images, captions, names, search)
    else:
        raise ValueError(
            "evaluate: expected --source and --reference for a translator, or --images and --captions for a "
            "captioner, each with its own options only; received another combination."
        )


def _evaluate_translator(
    translator: "Translator",
    source: pathlib.Path,
    reference: pathlib.Path,
    tokenized: bool,
    search: dict[str, Any],
) -> None:
    from attention_zoo.training.evaluation import evaluate_translations
    from attention_zoo.training.text_data import ParallelText

    text = ParallelText.from_files(source, reference)
    hypotheses = [translation.text for translation in translator.translate(text.sources, **search)]
    typer.echo(f"As text (detokenized)\n{evaluate_translations(hypotheses, text.targets)}")
    if tokenized:
        scores = evaluate_translations(hypotheses, text.targets, tokenized=True)
        typer.echo(f"As tokens between spaces\n{scores}")


def _evaluate_captioner(
    captioner: "Captioner",
    images: pathlib.Path,
    captions: pathlib.Path,
    names: pathlib.Path | None,
    search: dict[str, Any],
) -> None:
    from attention_zoo.training.caption_metrics import evaluate_captions
    from attention_zoo.training.image_data import CaptionedImages

    if captions.suffix == ".json":
        if names:
            raise ValueError("--names: expected none with a COCO file, which has no other images; remove it.")
        data = CaptionedImages.from_coco(images, captions)
    else:
        data = CaptionedImages.from_files(images, captions, names)
    hypotheses = [caption.text for caption in captioner.caption(data.images, **search)]
    typer.echo(evaluate_captions(hypotheses, data.captions))


@app.command()
def plot(
    model: ModelOption,
    text: Annotated[str, typer.Argument(help="The sentence to translate, or the image file to caption.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="The picture to write.")],
    beams: BeamsOption = 4,
    heads: Annotated[
        HeadsPart | None,
        typer.Option(help="Draw every head of one layer: to the source, to the translation, in the encoder."),
    ] = None,
    layer: Annotated[int, typer.Option(min=1, help="Number of the layer, with --heads.")] = 1,
) -> None:
    """Draw where the model looked while it translated a sentence or captioned an image."""
    loaded = _load(_find_model(model))
    if hasattr(loaded, "caption"):
        if heads is not None:
            raise ValueError("--heads: expected none for a captioner, whose heads are not drawn; remove it.")
        result = loaded.caption(pathlib.Path(text), beams=beams, return_attention=True)
    else:
        result = loaded.translate(text, beams=beams, return_attention=True)
    if heads is None:
        result.plot(output)
    else:
        result.plot_heads(output, part=heads.value, layer=layer - 1)
    typer.echo(f"{result.text}\nWrote {output}")


@app.command()
def export(
    model: ModelOption,
    folder: Annotated[pathlib.Path, typer.Argument(help="Where to write the SavedModel.")],
    beams: BeamsOption = 4,
) -> None:
    """Write a SavedModel that takes strings or images and returns translations or captions."""
    path = _find_model(model)
    _load(path).export(folder, beams=beams)
    typer.echo(f"Wrote {folder}")


@app.command("convert-marian")
def convert_marian(
    folder: Annotated[
        pathlib.Path, typer.Argument(help="The model, as Hugging Face has it or as Marian wrote it.")
    ],
    output: Annotated[pathlib.Path, typer.Argument(metavar="OUT", help="Where to write the SavedModel.")],
    beams: BeamsOption = 4,
) -> None:
    """Turn a translation model of Marian, such as those of OPUS-MT, into one of ours."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder, received {str(folder)!r}, which does not exist.")
    _check_output(output)
    _import_tensorflow()
    from attention_zoo.models.marian_import import load_marian

    load_marian(folder).export(output, beams=beams)
    typer.echo(f"Wrote {output}")


@app.command("convert-ctranslate2")
def convert_ctranslate2(
    model: Annotated[str, typer.Argument(help="A Transformer that translates, as for --model elsewhere.")],
    output: Annotated[pathlib.Path, typer.Argument(metavar="OUT", help="Where to write.")],
) -> None:
    """Write a Transformer for CTranslate2."""
    path = _find_model(model)
    _check_output(output)
    translator = _load_for("translate", path)
    from attention_zoo.models.ctranslate2_export import export_ctranslate2

    export_ctranslate2(translator, output)
    typer.echo(f"Wrote {output}")


@app.command()
def publish(
    run: Annotated[pathlib.Path, typer.Argument(help="Output folder of a finished training.")],
    folder: Annotated[pathlib.Path, typer.Argument(help="Where to write; its name is the preset's.")],
    float32: Annotated[bool, typer.Option("--float32", help="Store float32 weights, not float16.")] = False,
    card: Annotated[
        pathlib.Path | None,
        typer.Option(help="YAML file with the card's texts, if the recipe is not a built-in one."),
    ] = None,
) -> None:
    """Turn a finished training into a preset: weights, vocabularies, scores, model card, checksums."""
    if folder.exists():
        raise FileExistsError(f"publish: expected a folder that does not exist yet, received {folder}.")
    _import_tensorflow()
    from attention_zoo.training.publishing import publish as publish_run

    publish_run(run, folder, "float32" if float32 else "float16", card)
    typer.echo(f"Wrote {folder}")


@app.command()
def presets() -> None:
    """List the prebuilt models: compositions to train, and models with weights."""
    console = Console()
    table = Table(Column("name", no_wrap=True), "task", "description", "reference", box=None)
    for preset in PRESETS.values():
        table.add_row(preset.name, preset.task, preset.description, preset.reference)
    console.print(table)
    names = (Column(name, no_wrap=True) for name in ("with weights", "task", "parameters"))
    table = Table(*names, "MB", "score", box=None)
    for trained in trained_presets().values():
        sizes = f"{trained.parameters:,}", f"{trained.megabytes:.1f}"
        table.add_row(trained.name, trained.task, *sizes, trained.headline)
    console.print()
    console.print(table)


@app.command()
def recipes() -> None:
    """List the built-in recipes."""
    names = built_in_recipes()
    # Whole, however narrow the terminal is: they are there to be copied.
    table = Table(Column("name", width=max(map(len, names)), no_wrap=True), "description", box=None)
    for name in names:
        table.add_row(name, Recipe.load(name).description)
    Console().print(table)


def main() -> None:
    """Entry point of the `attention-zoo` command."""
    app()


def _find_model(model: str) -> pathlib.Path:
    """Returns the model that a name or path stands for, before TensorFlow is imported."""
    for path in (pathlib.Path(model), pathlib.Path(model, "model"), pathlib.Path("runs", model, "model")):
        if (path.suffix == ".keras" and path.is_file()) or (path / "saved_model.pb").is_file():
            return path
        if (path / CONFIG).is_file():
            return path
    if model in trained_presets():
        return trained_presets()[model].folder
    runs = sorted(path.parent.parent.name for path in pathlib.Path("runs").glob("*/model/saved_model.pb"))
    raise FileNotFoundError(
        "--model: expected the folder of a SavedModel or a preset, a .keras file, a preset with weights "
        f"({', '.join(trained_presets())}) or a finished run (here: {', '.join(runs) or 'none'}), received "
        f"{model!r}; train one with 'attention-zoo train RECIPE'."
    )


def _import_tensorflow() -> None:
    """Imports TensorFlow without its start-up chatter.

    Part of that is written before TensorFlow reads its log level, so file 2, standard error, leads nowhere
    meanwhile. A failing import raises as ever.
    """
    kept = os.dup(2)
    with pathlib.Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _use_compilation_cache() -> None:
    """Lets the next run of a command find what this one compiles, if that can be kept."""
    folder = os.environ.get("ATTENTION_ZOO_COMPILATION_CACHE")
    if folder != "":
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # e.g. no home, or one to read only
            enable_compilation_cache(folder)


def _load(path: pathlib.Path) -> "Translator | Captioner":
    _use_compilation_cache()
    _import_tensorflow()
    from attention_zoo.models.saving import load

    return load(path)


def _load_for(command: str, path: pathlib.Path) -> Any:
    """Loads a model that does what a command, "translate" or "caption", wants."""
    model = _load(path)
    if not hasattr(model, command):
        other = "caption" if command == "translate" else "translate"
        raise ValueError(
            f"--model: expected {COMMANDS[command]}, received {COMMANDS[other]}, {path}; use "
            f"'attention-zoo {other}' with it."
        )
    return model


def _search_options(
    beams: int, n_best: int, length_penalty: float, drawing: dict[str, Any] | None
) -> dict[str, Any]:
    """Arguments of `translate` and `caption`; `drawing` are those of --sample, or None without it."""
    if n_best > beams and drawing is None:
        raise ValueError(f"--n-best: expected at most --beams ({beams}), received {n_best}; raise --beams.")
    sampling = {} if drawing is None else {"sample": True, **drawing}
    return {"beams": beams, "n_best": n_best, "length_penalty": length_penalty, **sampling}


def _check_files(files: Sequence[pathlib.Path], what: str) -> None:
    """Looks for files before TensorFlow is imported."""
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"Expected {what}, received {str(file)!r}, which does not exist.")


def _check_output(folder: pathlib.Path) -> None:
    """Looks before the work whether a folder can be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"OUT: expected a folder that does not exist yet or is empty, received {str(folder)!r}; choose "
            "another or remove it first."
        )


def _read_standard_input() -> list[str]:
    if sys.stdin.isatty():
        typer.echo("Type one sentence per line; end with Ctrl-D.", err=True)
    return [line.rstrip("\n") for line in sys.stdin]


def _as_json(ranked: "Sequence[Translation | Caption]") -> list[dict[str, Any]]:
    return [
        {"text": hypothesis.text, "score": hypothesis.score, "tokens": hypothesis.tokens}
        for hypothesis in ranked
    ]


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
