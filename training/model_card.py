"""Model cards: what a trained model is, from the record of its training and a few texts.

No TensorFlow here.
"""

import importlib.resources
import json
import pathlib
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

import pydantic
import yaml

from attention_zoo.models.presets import PRESETS
from attention_zoo.training.recipe import Recipe, Settings, built_in_recipes

# How scores are written; others under their own names. What stands in "pointing" needs no more than its own.
_NAMES = {
    "exact_match_new_captions": "exact match where no training image has the caption",
    "new_captions": "images of that kind",
    "pointing": "",
    "share": "words at which it looks at their object most",
    "chance": "the same by chance",
    "words": "words that name an object",
    "bleu": "BLEU",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "chrf": "chrF2",
    "cider_d": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "detokenized": "as text",
    "tokenized": "on the tokens between spaces",
}

_SHARES = ("exact_match", "exact_match_new_captions", "share", "chance")

# What is no part of a recipe, but of the machine that it ran on.
_LOCAL = ("output", "data.folder", "data.features", "training.backup_steps", "name", "description")


class Card(Settings):
    """What a model card says and no record knows.

    Attributes:
        data: What the model was trained on, and the terms of that.
        use: What it is for.
        limits: What it cannot do.
        example: A sentence to translate.
        reproduce: The command that trains it; None for that of the recipe, if it is a built-in one.
    """

    data: str
    use: str
    limits: str
    example: str | None = None
    reproduce: str | None = None

    @classmethod
    def load(cls, file: pathlib.Path | None, recipe: str) -> "Card":
        """Reads a card from a file, or the built-in one for the data of a recipe.

        Args:
            file: A YAML file with the keys of a card, or None.
            recipe: Name of the recipe that was trained.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no such card, or there is none for the recipe.
        """
        if file is not None:
            if not file.is_file():
                raise FileNotFoundError(f"Card: expected a YAML file, found none at {file}.")
            return cls._checked(str(file), yaml.safe_load(file.read_text(encoding="utf-8")))
        built_in = importlib.resources.files("attention_zoo.training") / "cards.yaml"
        cards = yaml.safe_load(built_in.read_text(encoding="utf-8"))
        known = [name for name in cards if recipe.startswith(name)]
        if not known:
            raise ValueError(
                f"Card: expected one for the recipe {recipe!r}, as there is for those that begin with "
                f"{', '.join(cards)}; write a YAML file with the keys {', '.join(cls.model_fields)} (data: "
                "what the model was trained on, and under which terms) and pass it as --card FILE."
            )
        return cls._checked("cards.yaml", cards[max(known, key=len)])

    @classmethod
    def _checked(cls, where: str, values: Any) -> "Card":
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
            )
            raise ValueError(f"{where}: expected the keys of a card, received others: {problems}") from None


def model_card(
    name: str, record: dict[str, Any], results: dict[str, Any], card: Card, dtype: str, tokenizers: list[str]
) -> str:
    """Writes the card of a trained model.

    Args:
        name: Of the preset.
        record: The recipe that was trained, as the run recorded it.
        results: The results.json of the run.
        card: What the record does not know.
        dtype: Of the stored weights.
        tokenizers: One sentence about each tokenizer.

    Returns:
        Markdown.
    """
    preset = PRESETS[record["model"]["preset"]]
    facts = [
        f"composition `{preset.name}`: {preset.description} ({preset.reference})",
        f"{results['parameters']:,} parameters, stored as {dtype}",
        *tokenizers,
    ]
    training = [
        f"recipe `{record['name']}`, seed {results['seed']}, {results['epochs']} epochs; all settings are in "
        "`trained_recipe.yaml`",
        f"{results['seconds']['training']:,.0f} seconds of training for {_epochs(results)}, "
        f"{results.get('devices', '1 replica on 1 worker')}, {results['processors']} processors, "
        f"{results['date'][:10]}",
        ", ".join(f"{package} {version}" for package, version in results["versions"].items()),
    ]
    speed = []
    if "speed" in results:
        took = "{input}: {milliseconds:g} ms, {processors} processors".format_map(results["speed"])
        speed.append(f"speed, after the first call, for {took}")
    measured = f"{_test(record)} Search: {_search(record)}."
    if dtype == "float16":
        measured += " They are of the weights before these were rounded to float16."
    parts = [
        f"# {name}\n",
        f"{record['description']}.\n",
        f"## How to use it\n\n```python\n{_code(name, record, card)}```\n",
        f"## The model\n\n{_items(facts)}",
        f"## Data and terms\n\n{_paragraph(card.data)}",
        f"## Scores\n\n{_paragraph(measured)}\n{_items([*_scores(results['scores']), *speed])}",
        f"## Intended use\n\n{_paragraph(card.use)}",
        f"## Limits\n\n{_paragraph(card.limits)}",
        f"## Training\n\n{_items(training)}{_reproduce(record, card)}",
    ]
    return "\n".join(parts)


def command(record: dict[str, Any]) -> str | None:
    """The command that trains a recorded recipe again; None if it is no built-in one."""
    name = record["name"]
    if name not in built_in_recipes():
        return None
    known = dict(_leaves(Recipe.load(name).model_dump(mode="json")))
    words = ["attention-zoo", "train", name]
    if "folder" in record["data"]:
        words.append("data.folder=FOLDER")
    for key, value in _leaves(record):
        if key not in _LOCAL and value != known.get(key):
            words.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return shlex.join(words)


def without_paths(settings: Any) -> Any:
    """The record of a recipe without the places of files on the machine that trained it."""
    if isinstance(settings, dict):
        return {key: without_paths(value) for key, value in settings.items() if key != "output"}
    if isinstance(settings, list):
        return [without_paths(value) for value in settings]
    is_path = isinstance(settings, str) and pathlib.PurePath(settings).is_absolute()
    return pathlib.PurePath(settings).name if is_path else settings


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, with dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _code(name: str, record: dict[str, Any], card: Card) -> str:
    kind = record["data"]["kind"]
    lines = ["import attention_zoo as az", ""]
    if kind in ("generated_dates", "text_files"):
        text = json.dumps(card.example or "A sentence.", ensure_ascii=False)
        lines += [
            f'model = az.models.Translator.from_preset("{name}")',
            f"print(model.translate({text}, {_search(record)}).text)",
        ]
    else:
        image = '"photo.jpg"'
        if kind == "generated_scenes":
            lines += ["(scene,), _ = az.training.generated_scenes.training_and_held_out(1, 1, seed=7)"]
            image = "scene.image"
        lines += [
            f'model = az.models.Captioner.from_preset("{name}")',
            f"print(model.caption({image}, {_search(record)}).text)",
        ]
    return "\n".join(lines) + "\n"


def _epochs(results: dict[str, Any]) -> str:
    """The epochs whose seconds are known: those since the last interruption."""
    last = results["epochs_in_this_process"]
    return "all epochs" if last == results["epochs"] else f"the last {last} epochs"


def _search(record: dict[str, Any]) -> str:
    search = record["search"]
    return f"beams={search['beams']}, length_penalty={search['length_penalty']}"


def _test(record: dict[str, Any]) -> str:
    data = record["data"]
    if "held_out_count" in data:
        return f"On {data['held_out_count']:,} generated examples that training did not see."
    if data.get("test"):
        test = data["test"].values() if isinstance(data["test"], dict) else data["test"]
        files = ", ".join(f"`{file}`" for file in test if file)
        return f"On the test part, {files}."
    return "On the validation part, as the data has no other."


def _scores(scores: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[str]:
    """One line for every number, with its signature; lists, such as scores by length, are left out."""
    for key, value in scores.items():
        path = (*where, _NAMES.get(key, key.replace("_", " ")))
        if isinstance(value, dict):
            yield from _scores(value, path)
        elif isinstance(value, int | float):
            score = f"{100 * value:.1f} %" if key in _SHARES else f"{value:.4g}"
            signature = scores.get(f"{key}_signature") or scores.get("signature")
            name = ", ".join(part for part in reversed(path) if part)
            yield f"{name}: {score}" + (f" (`{signature}`)" if signature else "")


def _reproduce(record: dict[str, Any], card: Card) -> str:
    again = card.reproduce or command(record)
    if again is None:
        return ""
    folder = " FOLDER is where the data is; the recipe says how to get it." if "FOLDER" in again else ""
    return f"\nTo train it again:{folder}\n\n```console\n{again.strip()}\n```\n"


def _paragraph(text: str, first: str = "", others: str = "") -> str:
    lines = textwrap.wrap(
        " ".join(text.split()),
        width=100,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"


def _items(texts: list[str]) -> str:
    return "".join(_paragraph(text, "- ", "  ") for text in texts)
