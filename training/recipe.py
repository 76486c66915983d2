"""Recipes: one YAML file describes one training, and is checked completely before anything starts.

No TensorFlow here, so that a wrong key is reported at once.
"""

import difflib
import importlib.resources
import importlib.util
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import yaml

from attention_zoo.models.presets import PRESETS
from attention_zoo.models.trained_preset import find_folder, trained_presets

Count = Annotated[int, pydantic.Field(gt=0)]
Positive = Annotated[float, pydantic.Field(gt=0)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]
# YAML has lists only: the two sides of a parallel corpus are a pair, the widths of a CNN a tuple.
FilePair = Annotated[tuple[str, str], pydantic.Field(strict=False)]
Counts = Annotated[tuple[Count, ...], pydantic.Field(strict=False, min_length=1)]


PARTS = ("training", "validation", "test")

# What a recipe may change in the attention of a preset: arguments of the layers of that name.
ATTENTION_ARGUMENTS = {
    "AdditiveAttention": ("units", "normalize", "dropout", "seed"),
    "LuongAttention": ("score", "units", "scale", "dropout", "seed"),
    "SpatialAttention": ("units", "gate", "dropout", "seed"),
}

# What a recipe may change in the encoder and the decoder of a preset, by class; in an ImageEncoder, the keys
# of ImagePart.
_TRANSFORMER_ARGUMENTS = (
    "layers",
    "units",
    "feed_forward_units",
    "num_heads",
    "positions",
    "max_positions",
    "activation",
    "normalize_first",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "num_key_value_heads",
    "scale_embeddings",
    "equal_start",
    "position_order",
    "max_wavelength",
)
PART_ARGUMENTS = {
    "RNNEncoder": ("embedding_dim", "units", "layers", "cell", "bidirectional", "dropout"),
    "RNNDecoder": (
        "embedding_dim",
        "units",
        "attention",
        "query_state",
        "layers",
        "cell",
        "readout_units",
        "readout_activation",
        "tie_embeddings",
        "dropout",
    ),
    "TransformerEncoder": _TRANSFORMER_ARGUMENTS,
    "TransformerDecoder": (*_TRANSFORMER_ARGUMENTS, "tie_embeddings", "output_bias"),
}


class Settings(pydantic.BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, values keep their YAML type."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)
    # Of parts that have other keys in recipes for another task: "translation" or "captioning".
    task: ClassVar[str | None] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        # extra="forbid" would refuse them too, but without saying which keys exist.
        if isinstance(values, dict):
            for key in values:
                check_choice(f"key for {cls.task}" if cls.task else "key", key, cls.model_fields)
        return values


class GeneratedDates(Settings):
    """Dates as people write them -> ISO dates, generated on the fly."""

    kind: Literal["generated_dates"]
    training_count: Count
    held_out_count: Count


class GeneratedScenes(Settings):
    """Pictures of coloured shapes -> sentences about them, generated on the fly."""

    kind: Literal["generated_scenes"]
    training_count: Count
    held_out_count: Count
    image_size: Annotated[int, pydantic.Field(ge=48)] = 64


class DataFiles(Settings):
    """Base of data in files: paths in it are relative to `folder`."""

    folder: str = "."

    def files(self) -> list[str]:
        """Returns the files that must be there."""
        raise NotImplementedError

    def folders(self) -> list[str]:
        """Returns the folders that must be there."""
        return []

    def _path(self, path: str) -> str:
        return str(pathlib.Path(self.folder, path))


class TextFiles(DataFiles):
    """Parallel text: line i of the source file is translated by line i of the target file."""

    kind: Literal["text_files"]
    training: FilePair
    validation: FilePair
    test: FilePair

    def paths(self, part: Literal["training", "validation", "test"]) -> tuple[str, str]:
        """Returns the source and the target path of one part."""
        source, target = getattr(self, part)
        return self._path(source), self._path(target)

    def files(self) -> list[str]:
        """Returns the files that must be there."""
        return [path for part in PARTS for path in self.paths(part)]


class CaptionFile(Settings):
    """The captions of one part of the data, and the names of its images; null means all in the file."""

    captions: str
    names: str | None = None


class ImageFiles(DataFiles):
    """A folder of images and files of captions, as Flickr8k and Flickr30k have them.

    `features` is a folder for what the frozen network makes of the images, relative to the current one;
    null computes it anew in every step.
    """

    kind: Literal["captioned_images"]
    images: str
    training: CaptionFile
    validation: CaptionFile
    test: CaptionFile | None = None
    features: str | None = None

    def paths(self, part: Literal["training", "validation", "test"]) -> tuple[str, str, str | None]:
        """Returns the folder of images, the file of captions and the list of names of one part."""
        settings = getattr(self, part)
        names = None if settings.names is None else self._path(settings.names)
        return self._path(self.images), self._path(settings.captions), names

    def files(self) -> list[str]:
        """Returns the files that must be there."""
        paths = [path for part in PARTS if getattr(self, part) for path in self.paths(part)[1:]]
        return [path for path in dict.fromkeys(paths) if path is not None]

    def folders(self) -> list[str]:
        """Returns the folders that must be there."""
        return [self._path(self.images)]


class CocoPart(Settings):
    """The folder of images and the file of annotations of one part of the data."""

    images: str
    captions: str


class CocoFiles(DataFiles):
    """Images and captions in the layout of MS COCO; `features` as in ImageFiles."""

    kind: Literal["coco"]
    training: CocoPart
    validation: CocoPart
    test: CocoPart | None = None
    features: str | None = None

    def paths(self, part: Literal["training", "validation", "test"]) -> tuple[str, str]:
        """Returns the folder of images and the file of annotations of one part."""
        settings = getattr(self, part)
        return self._path(settings.images), self._path(settings.captions)

    def files(self) -> list[str]:
        """Returns the files that must be there."""
        return [self.paths(part)[1] for part in PARTS if getattr(self, part)]

    def folders(self) -> list[str]:
        """Returns the folders that must be there."""
        return list(dict.fromkeys(self.paths(part)[0] for part in PARTS if getattr(self, part)))


class SentencePiece(Settings):
    """Sub-words learned from the training text."""

    kind: Literal["sentencepiece"]
    model_type: Literal["unigram", "bpe", "char"] = "unigram"
    vocabulary_size: Count
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc"
    split_digits: bool = False


class Whitespace(Settings):
    """Words between spaces, for text that is already tokenized."""

    kind: Literal["whitespace"]
    vocabulary_size: Count


TokenizerSettings = Annotated[SentencePiece | Whitespace, pydantic.Field(discriminator="kind")]


class Tokenizers(Settings):
    """How the two sides are cut into tokens."""

    task: ClassVar[str] = "translation"

    joint: bool = False
    source: TokenizerSettings
    target: TokenizerSettings | None = None

    @pydantic.model_validator(mode="after")
    def _joint_has_one(self) -> "Tokenizers":
        if self.joint and self.target is not None:
            raise ValueError(
                "expected no 'target' together with 'joint: true' (one tokenizer serves both sides), "
                "received both; remove one of them."
            )
        return self


class CaptionTokenizers(Settings):
    """How captions are cut into tokens; images need none."""

    task: ClassVar[str] = "captioning"

    captions: TokenizerSettings


class Part(Settings):
    """What to change in the encoder or decoder of a preset: arguments of its class, see PART_ARGUMENTS."""

    units: Count | None = None
    layers: Count | None = None
    dropout: Rate | None = None
    tie_embeddings: bool | None = None
    # Of recurrent ones.
    embedding_dim: Count | None = None
    cell: Literal["gru", "lstm"] | None = None
    bidirectional: bool | None = None
    attention: dict[str, Any] | None = None
    query_state: Literal["previous", "current"] | None = None
    readout_units: Count | None = None
    readout_activation: Literal["tanh", "maxout"] | None = None
    # Of Transformers.
    feed_forward_units: Count | None = None
    num_heads: Count | None = None
    num_key_value_heads: Count | None = None
    positions: Literal["sinusoidal", "learned", "rotary"] | None = None
    max_positions: Count | None = None
    activation: str | None = None
    normalize_first: bool | None = None
    attention_dropout: Rate | None = None
    activation_dropout: Rate | None = None
    scale_embeddings: bool | None = None
    equal_start: bool | None = None
    position_order: Literal["interleaved", "halves"] | None = None
    max_wavelength: Positive | None = None
    output_bias: bool | None = None


class ImagePart(Settings):
    """What to change in the image encoder of a preset: arguments of ImageEncoder."""

    backbone: str | None = None
    image_size: Count | Counts | None = None
    pretrained: str | None = None
    frozen: bool | None = None
    units: Count | None = None
    positions: bool | None = None
    layers: Annotated[int, pydantic.Field(ge=0)] | None = None
    num_heads: Count | None = None
    feed_forward_units: Count | None = None
    activation: str | None = None
    normalize_first: bool | None = None
    dropout: Rate | None = None
    attention_dropout: Rate | None = None
    widths: Counts | None = None
    attention_stages: Annotated[int, pydantic.Field(ge=0)] | None = None
    patch_size: Count | None = None


class Model(Settings):
    """A preset and what to change in it; what is not set stays as the preset says."""

    preset: str
    encoder: Part | ImagePart
    decoder: Part = Part()
    start: str | None = None
    start_share: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None

    @pydantic.field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str) -> str:
        check_choice("name", preset, PRESETS)
        if PRESETS[preset].task != cls.task:
            names = [name for name, known in PRESETS.items() if known.task == cls.task]
            raise ValueError(
                f"expected a preset for {cls.task}, as the data is, one of {', '.join(names)}; received "
                f"{preset!r}, which is for {PRESETS[preset].task}."
            )
        return preset

    @pydantic.model_validator(mode="after")
    def _share_has_start(self) -> "Model":
        if self.start_share and not self.start:
            raise ValueError(
                f"expected model.start with start_share, received start_share={self.start_share} alone; name "
                "the trained model whose weights are mixed in, or remove it."
            )
        return self

    @pydantic.model_validator(mode="after")
    def _changes_fit_preset(self) -> "Model":
        preset = PRESETS[self.preset]
        for name, changes, part in (
            ("encoder", self.encoder, preset.encoder),
            ("decoder", self.decoder, preset.decoder),
        ):
            for key in changes.model_fields_set:
                if not isinstance(changes, ImagePart):
                    check_choice(f"key in {name}, a {part['class']}", key, PART_ARGUMENTS[part["class"]])
        changes, attention = self.decoder.attention or {}, preset.decoder.get("attention")
        if changes and not attention:
            raise ValueError(
                f"expected no decoder.attention, as preset {self.preset!r} has no attention, received "
                f"{changes}; remove it, or take another preset."
            )
        for key in changes:
            check_choice("key in decoder.attention", key, ATTENTION_ARGUMENTS[attention["class"]])
        return self


class TranslatorModel(Model):
    """A preset for translation, and what to change in it."""

    task: ClassVar[str] = "translation"

    encoder: Part = Part()
    share_embeddings: bool = False


class CaptionerModel(Model):
    """A preset for captioning, and what to change in it."""

    task: ClassVar[str] = "captioning"

    encoder: ImagePart = ImagePart()
    doubly_stochastic: NonNegative | None = None

    @pydantic.model_validator(mode="after")
    def _penalty_has_attention(self) -> "CaptionerModel":
        if self.doubly_stochastic and not has_attention(self.preset):
            raise ValueError(
                f"expected no doubly_stochastic, as preset {self.preset!r} has no attention, received "
                f"{self.doubly_stochastic}; remove it, or take another preset."
            )
        return self


class Training(Settings):
    """How the weights are learned."""

    epochs: Count
    peak_learning_rate: Positive
    schedule: Literal["constant", "inverse_square_root"] = "inverse_square_root"
    warmup_steps: Count = 400
    cooldown_epochs: Count | None = None
    label_smoothing: Rate = 0.0
    r_drop: NonNegative | None = None
    clip_norm: Positive | None = None
    precision: Literal["float32", "bfloat16_products", "mixed_bfloat16", "mixed_float16"] | None = None
    micro_batches: Count | None = None
    backup_steps: Count | None = None
    keep: Literal["last", "best", "average"] = "last"
    average_last: Count = 5
    patience: Count | None = None

    @pydantic.model_validator(mode="after")
    def _cooldown_fits(self) -> "Training":
        if self.cooldown_epochs and self.cooldown_epochs > self.epochs:
            raise ValueError(
                f"expected cooldown_epochs of at most epochs={self.epochs}, received "
                f"{self.cooldown_epochs}; train for longer, or cool down sooner."
            )
        return self


class TranslatorTraining(Training):
    """How the weights of a translator are learned."""

    task: ClassVar[str] = "translation"

    batch_tokens: Count
    max_buckets: Count = 5
    subword_dropout: Rate | None = None
    teacher: str | None = None
    back_translator: str | None = None
    risk: Positive | None = None
    candidates: Count | None = None

    @pydantic.model_validator(mode="after")
    def _risk_is_alone(self) -> "TranslatorTraining":
        if (self.risk is None) != (self.candidates is None):
            raise ValueError(
                f"expected risk and candidates, or neither, received risk={self.risk} and "
                f"candidates={self.candidates}; set both."
            )
        others = [
            key for key in ("r_drop", "subword_dropout", "teacher", "back_translator") if getattr(self, key)
        ]
        if self.risk and others:
            raise ValueError(
                f"expected risk without {others[0]}, received risk={self.risk} and "
                f"{others[0]}={getattr(self, others[0])}; train with one after the other."
            )
        return self


class CaptionerTraining(Training):
    """How the weights of a captioner are learned."""

    task: ClassVar[str] = "captioning"

    batch_size: Count
    captions: Literal["one", "all"] = "one"
    mirror: bool | None = None


class Search(Settings):
    """How translations or captions are searched for when the trained model is evaluated and exported."""

    beams: Count = 1
    length_penalty: NonNegative = 0.0


class TranslatorEvaluation(Settings):
    """How held-out translations are scored."""

    task: ClassVar[str] = "translation"

    metric: Literal["exact_match", "bleu"]
    every_epochs: Count = 1
    tokenized: bool = False
    by_length: bool = False


class CaptionerEvaluation(Settings):
    """How captions of held-out images are scored."""

    task: ClassVar[str] = "captioning"

    metric: Literal["exact_match", "captions"]
    every_epochs: Count = 1


class Recipe(Settings):
    """One training, from data to score: a TranslationRecipe or a CaptioningRecipe.

    Example:
        >>> from attention_zoo.training import Recipe
        >>> Recipe.load("dates", ["training.epochs=1"]).training.epochs
        1
    """

    name: Annotated[str, pydantic.Field(pattern=r"^[\w.-]+$")]
    description: str
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 1
    output: str | None = None
    data: Annotated[
        GeneratedDates | TextFiles | GeneratedScenes | ImageFiles | CocoFiles,
        pydantic.Field(discriminator="kind"),
    ]
    tokenizers: Settings
    model: Model
    training: Training
    search: Search = Search()
    evaluation: Settings

    @property
    def folder(self) -> pathlib.Path:
        """Everything a run writes goes here: `output`, or `runs/<name>`."""
        return pathlib.Path(self.output or f"runs/{self.name}")

    @classmethod
    def load(cls, recipe: str, overrides: Sequence[str] = ()) -> "Recipe":
        """Reads and checks a recipe.

        Args:
            recipe: Name of a built-in recipe, or path of a YAML file.
            overrides: Changes as `key=value` with dotted keys, such as `training.epochs=3`. Values are YAML.

        Returns:
            The recipe, completely checked except for its data files and modules (see `check_requirements`).

        Raises:
            FileNotFoundError: No such recipe.
            ValueError: The YAML does not parse, or a key or a value is wrong.
        """
        values = _parse_yaml(recipe, _read(recipe))
        if not isinstance(values, dict):
            raise ValueError(f"{recipe}: expected a YAML mapping of keys, received {values!r}.")
        for override in overrides:
            _apply_override(values, override)
        try:
            return _recipe_class(values).model_validate(values)
        except pydantic.ValidationError as error:
            problems = "\n".join(f"  {_explain(problem, values)}" for problem in error.errors())
            raise ValueError(f"Recipe {recipe!r} is not valid:\n{problems}") from None

    def check_requirements(self) -> None:
        """Looks, before hours are spent, for everything that the run will need at its end too.

        Raises:
            FileNotFoundError: A data file is missing.
            ImportError: Something that scores or draws is not installed.
        """
        needed = []
        if self.evaluation.metric in ("bleu", "captions") or getattr(self.training, "risk", None):
            needed.append(("sacrebleu", "eval"))
        if has_attention(self.model.preset):
            needed.append(("matplotlib", "plot"))
        for module, extra in needed:
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f"Recipe {self.name!r}: expected {module}, received no such module; "
                    f"pip install 'attention-zoo[{extra}]'."
                )
        if isinstance(self.data, DataFiles):
            self._check_files(self.data)
        for key, model in self._trained_models().items():
            if model and not trained_model(model).exists():
                raise FileNotFoundError(
                    f"Recipe {self.name!r}: expected {key} to be a trained model, found nothing at {model}; "
                    f"train that one first, or point elsewhere with {key}=FOLDER, or take a preset with "
                    f"weights: {', '.join(trained_presets())}."
                )

    def _trained_models(self) -> dict[str, str | None]:
        """The trained models that the run needs, by their keys."""
        return {"model.start": self.model.start}

    def _check_files(self, data: DataFiles) -> None:
        missing = [path for path in data.files() if not pathlib.Path(path).is_file()]
        missing += [path for path in data.folders() if not pathlib.Path(path).is_dir()]
        if missing:
            raise FileNotFoundError(
                f"Recipe {self.name!r}: expected its data files, received missing: {', '.join(missing)}. "
                f"Paths are relative to the current folder ({pathlib.Path.cwd()}); point elsewhere with "
                "data.folder=FOLDER."
            )


class TranslationRecipe(Recipe):
    """One training of a Translator."""

    task: ClassVar[str] = "translation"

    tokenizers: Tokenizers
    model: TranslatorModel
    training: TranslatorTraining
    evaluation: TranslatorEvaluation

    @pydantic.model_validator(mode="after")
    def _risk_has_start(self) -> "TranslationRecipe":
        if self.training.risk and not self.model.start:
            raise ValueError(
                "model.start: expected a trained model, whose candidates are weighed, with "
                f"training.risk={self.training.risk}, received none; name one."
            )
        return self

    def _trained_models(self) -> dict[str, str | None]:
        helpers = {f"training.{key}": getattr(self.training, key) for key in ("teacher", "back_translator")}
        return {**super()._trained_models(), **helpers}


class CaptioningRecipe(Recipe):
    """One training of a Captioner."""

    task: ClassVar[str] = "captioning"

    tokenizers: CaptionTokenizers
    model: CaptionerModel
    training: CaptionerTraining
    evaluation: CaptionerEvaluation

    @pydantic.model_validator(mode="after")
    def _features_stay(self) -> "CaptioningRecipe":
        changes = self.model.encoder.model_dump(exclude_unset=True)
        encoder = {**PRESETS[self.model.preset].encoder, **changes}
        if not isinstance(self.data, GeneratedScenes) and self.data.features and not encoder.get("frozen"):
            raise ValueError(
                "data.features: expected null, as the network that makes them is trained, received "
                f"{self.data.features!r}; remove it, or set model.encoder.frozen to true."
            )
        return self

    @pydantic.model_validator(mode="after")
    def _sides_stay(self) -> "CaptioningRecipe":
        if self.training.mirror and isinstance(self.data, GeneratedScenes):
            raise ValueError(
                "training.mirror: expected null for generated scenes, whose captions say what is left and "
                "right, received true."
            )
        return self


def trained_model(name: str) -> pathlib.Path:
    """Returns where a trained model is: a preset with weights, by its name, or a folder."""
    return find_folder(name) or pathlib.Path(name)


def has_attention(preset: str) -> bool:
    """Returns whether the decoder of a preset has attention; all Transformers do."""
    return bool(PRESETS[preset].decoder.get("attention", True))


def built_in_recipes() -> dict[str, str]:
    """Returns the recipes that come with the library: name -> YAML text."""
    folder = importlib.resources.files("attention_zoo.training") / "recipes"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name
    )
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def check_choice(what: str, received: Any, allowed: Iterable[str]) -> None:
    """Raises a ValueError that lists the choices and the nearest one, unless `received` is among them."""
    allowed = list(allowed)
    if received not in allowed:
        raise ValueError(
            f"unknown {what}: expected one of {', '.join(allowed)}, received {received!r}."
            + _nearest(str(received), allowed)
        )


def _nearest(received: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(received, list(allowed), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _read(recipe: str) -> str:
    """Returns the YAML text of a built-in recipe or of a file."""
    recipes = built_in_recipes()
    if recipe in recipes:
        return recipes[recipe]
    path = pathlib.Path(recipe)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    raise FileNotFoundError(
        f"Recipe: expected a YAML file or one of the built-in recipes ({', '.join(recipes)}), received "
        f"{recipe!r}.{_nearest(recipe, recipes)}"
    )


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(where: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: expected YAML, received text that does not parse: {error}") from None


def _apply_override(values: dict, override: str) -> None:
    """Sets one dotted key; parts on the way that are absent are created and checked later."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"Override: expected key=value such as training.epochs=3, received {override!r}.")
    *parents, last = key.split(".")
    inner = values
    for depth, parent in enumerate(parents, start=1):
        if inner.get(parent) is None:
            inner[parent] = {}
        inner = inner[parent]
        if not isinstance(inner, dict):
            path = ".".join(parents[:depth])
            raise ValueError(
                f"Override {override!r}: {path} is a single value ({inner!r}) and has no keys below it."
            )
    inner[last] = _parse_yaml(override, text)


def _recipe_class(values: dict) -> type[Recipe]:
    """Goes by the data; what has no known kind of it is refused in either class."""
    kind = values["data"].get("kind") if isinstance(values.get("data"), dict) else None
    captioning = kind in ("generated_scenes", "captioned_images", "coco")
    return CaptioningRecipe if captioning else TranslationRecipe


def _explain(problem: dict, values: dict) -> str:
    """Turns one pydantic error into 'key: expected ..., received ...'."""
    path = []
    inner: Any = values
    for part in problem["loc"]:  # names of union members stand in `loc` too, but are no keys
        if isinstance(inner, dict) and part in inner:
            path.append(part)
            inner = inner[part]
        elif isinstance(part, int):
            path.append(str(part))
    if problem["type"] == "missing":
        path.append(problem["loc"][-1])
    where = ".".join(path)
    prefix = f"{where}: " if where else ""
    received, context = problem["input"], problem.get("ctx", {})
    if problem["type"] == "missing":
        return f"{prefix}expected a value, received none; add the key."
    if problem["type"] == "value_error":
        return f"{prefix}{context['error']}"
    if problem["type"] == "union_tag_not_found":
        return f"{prefix}expected the key 'kind', received {received!r}."
    if problem["type"] == "union_tag_invalid":
        tag, allowed = context["tag"], re.findall(r"'([^']*)'", context["expected_tags"])
        return f"{prefix}expected kind: {' or '.join(allowed)}, received {tag!r}.{_nearest(tag, allowed)}"
    # "Input should be a valid dictionary or instance of Training" -> "a valid dictionary"
    expected = re.sub(r"^(Input|String) should (be )?| or instance of \w+$", "", problem["msg"])
    hint = ""
    if problem["type"] == "literal_error":
        hint = _nearest(str(received), re.findall(r"'([^']*)'", context["expected"]))
    return f"{prefix}expected {expected}, received {received!r}.{hint}"
