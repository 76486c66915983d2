"""The command line: `attention-zoo train | translate | evaluate | plot | export | presets | recipes`.

TensorFlow is imported inside the commands that need it, so that help and mistakes answer at once.
"""

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
from rich.table import Table

from attention_zoo._version import __version__
from attention_zoo.models.presets import PRESETS
from attention_zoo.training.recipe import Recipe, built_in_recipes

if TYPE_CHECKING:
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
        if ctx.params.get("debug"):
            traceback.print_exception(problem)
        typer.echo(f"Error: {problem}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    help="Train, run and look into attention models for translation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name of a finished run, or folder or .keras file of a model.")
]
BeamsOption = Annotated[int, typer.Option("--beams", "-b", min=1, help="Hypotheses kept alive; 1 is greedy.")]
LengthPenaltyOption = Annotated[
    float,
    typer.Option("--length-penalty", min=0.0, help="Exponent alpha; larger prefers longer translations."),
]


class HeadsPart(enum.StrEnum):
    """Which attention of a Transformer `plot --heads` draws."""

    cross = "cross"
    self = "self"
    encoder = "encoder"


class OutputFormat(enum.StrEnum):
    """How `translate` prints."""

    text = "text"
    json = "json"


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
) -> None:
    """Train, evaluate, export and draw what a recipe describes."""
    loaded = Recipe.load(recipe, overrides or [])
    loaded.check_requirements()
    _import_tensorflow()
    from attention_zoo.training.run import train as run_recipe

    run_recipe(loaded, fresh=fresh)


@app.command()
def translate(
    model: ModelOption,
    text: Annotated[
        list[str] | None, typer.Argument(help="Sentences; without any, standard input, one per line.")
    ] = None,
    beams: BeamsOption = 4,
    n_best: Annotated[
        int, typer.Option("--n-best", min=1, help="Translations per sentence; at most --beams.")
    ] = 1,
    length_penalty: LengthPenaltyOption = 1.0,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw --n-best translations at random instead of searching.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="Of --sample: below 1 more careful, above 1 bolder.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Of --sample: draw among so many tokens only.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Of --sample: draw among the tokens of this probability.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of --sample: the same seed gives the same translations.")
    ] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="text, or one JSON object per line.")
    ] = OutputFormat.text,
) -> None:
    """Translate sentences."""
    if n_best > beams and not sample:
        raise ValueError(f"--n-best: expected at most --beams ({beams}), received {n_best}; raise --beams.")
    path = _find_model(model)
    sentences = text or _read_standard_input()
    drawing = {"sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    translations = _load(path).translate(
        sentences,
        beams=beams,
        n_best=n_best,
        length_penalty=length_penalty,
        **(drawing if sample else {}),
    )
    for number, (sentence, best) in enumerate(zip(sentences, translations, strict=True)):
        ranked = [best, *best.alternatives]
        if output_format == OutputFormat.json:
            typer.echo(json.dumps(_as_json(sentence, ranked), ensure_ascii=False))
        elif n_best == 1:
            typer.echo(best.text)
        else:
            for hypothesis in ranked:
                typer.echo(f"{number}\t{hypothesis.score:.4f}\t{hypothesis.text}")


@app.command()
def evaluate(
    model: ModelOption,
    source: Annotated[pathlib.Path, typer.Option("--source", help="Sentences to translate, one per line.")],
    reference: Annotated[pathlib.Path, typer.Option("--reference", help="Their translations, one per line.")],
    tokenized: Annotated[
        bool,
        typer.Option("--tokenized", help="The text is tokenized already: also print BLEU on its tokens."),
    ] = False,
    beams: BeamsOption = 4,
    length_penalty: LengthPenaltyOption = 1.0,
) -> None:
    """Translate a file and score it with BLEU and chrF."""
    path = _find_model(model)
    for file in (source, reference):
        if not file.is_file():
            raise FileNotFoundError(f"Expected a text file, received {str(file)!r}, which does not exist.")
    translator = _load(path)
    from attention_zoo.training.evaluation import evaluate_translations
    from attention_zoo.training.text_data import ParallelText

    text = ParallelText.from_files(source, reference)
    translations = translator.translate(text.sources, beams=beams, length_penalty=length_penalty)
    hypotheses = [translation.text for translation in translations]
    typer.echo(f"As text (detokenized)\n{evaluate_translations(hypotheses, text.targets)}")
    if tokenized:
        scores = evaluate_translations(hypotheses, text.targets, tokenized=True)
        typer.echo(f"As tokens between spaces\n{scores}")


@app.command()
def plot(
    model: ModelOption,
    text: Annotated[str, typer.Argument(help="The sentence to translate.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="The picture to write.")],
    beams: BeamsOption = 4,
    heads: Annotated[
        HeadsPart | None,
        typer.Option(help="Draw every head of one layer: to the source, to the translation, in the encoder."),
    ] = None,
    layer: Annotated[int, typer.Option(min=1, help="Number of the layer, with --heads.")] = 1,
) -> None:
    """Draw where the model looked while it translated a sentence."""
    path = _find_model(model)
    translation = _load(path).translate(text, beams=beams, return_attention=True)
    if heads is None:
        translation.plot(output)
    else:
        translation.plot_heads(output, part=heads.value, layer=layer - 1)
    typer.echo(f"{translation.text}\nWrote {output}")


@app.command()
def export(
    model: ModelOption,
    folder: Annotated[pathlib.Path, typer.Argument(help="Where to write the SavedModel.")],
    beams: BeamsOption = 4,
) -> None:
    """Write a SavedModel that takes strings and returns translations."""
    path = _find_model(model)
    _load(path).export(folder, beams=beams)
    typer.echo(f"Wrote {folder}")


@app.command()
def presets() -> None:
    """List the prebuilt models."""
    table = Table("name", "description", "reference", box=None)
    for preset in PRESETS.values():
        table.add_row(preset.name, preset.description, preset.reference)
    Console().print(table)


@app.command()
def recipes() -> None:
    """List the built-in recipes."""
    table = Table("name", "description", box=None)
    for name in built_in_recipes():
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
    runs = sorted(path.parent.parent.name for path in pathlib.Path("runs").glob("*/model/saved_model.pb"))
    raise FileNotFoundError(
        f"--model: expected the folder of a SavedModel, a .keras file or a finished run (here: "
        f"{', '.join(runs) or 'none'}), received {model!r}; train one with 'attention-zoo train RECIPE'."
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


def _load(path: pathlib.Path) -> "Translator":
    _import_tensorflow()
    from attention_zoo.models.saving import load

    return load(path)


def _read_standard_input() -> list[str]:
    if sys.stdin.isatty():
        typer.echo("Type one sentence per line; end with Ctrl-D.", err=True)
    return [line.rstrip("\n") for line in sys.stdin]


def _as_json(source: str, ranked: "Sequence[Translation]") -> dict[str, Any]:
    return {
        "source": source,
        "source_tokens": ranked[0].source_tokens,
        "translations": [
            {"text": hypothesis.text, "score": hypothesis.score, "tokens": hypothesis.tokens}
            for hypothesis in ranked
        ],
    }


if __name__ == "__main__":
    main()
