"""Preset folders: a trained model as plain files, checked when they are read, none of which is ever executed.

config.json    format, kind of the model, sizes, and the configuration that Keras makes it from
weights.npz    the weights, as float32 or float16
assets/        vocabularies of the tokenizers
README.md      the model card
SHA256SUMS     checksums of all other files; `sha256sum -c SHA256SUMS` reads them too
"""

import hashlib
import io
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np

from attention_zoo._version import __version__
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.saving import written_whole
from attention_zoo.models.trained_preset import CONFIG, FORMAT_VERSION

CARD = "README.md"

_WEIGHTS, _CHECKSUMS = "weights.npz", "SHA256SUMS"
_DTYPES = ("float32", "float16")
# What a configuration may name besides the classes of this library: modules of Keras whose classes hold
# numbers, no code.
_PLAIN_MODULES = ("keras", "keras.constraints", "keras.initializers", "keras.random", "keras.regularizers")


def save(
    model: EncoderDecoder,
    folder: str | os.PathLike,
    dtype: str = "float32",
    description: str = "",
    files: Mapping[str, str] | None = None,
) -> None:
    """Writes a model into a folder that `load` reads.

    Args:
        model: A `Translator` or `Captioner`.
        folder: Where to write; must not exist.
        dtype: Of the stored weights, "float32", which keeps them as they are, or "float16".
        description: One sentence for listings.
        files: Texts of further files by name; "README.md" is the card, of which there is a short one else.

    Raises:
        FileExistsError: If `folder` exists.
        ValueError: If the dtype is another, a weight is too large for it, or the model has parts that `load`
            would refuse.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"save_preset: expected dtype {' or '.join(_DTYPES)}, received {dtype!r}")
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"save_preset: expected a folder that does not exist yet, received {folder}; choose another or "
            "remove it first"
        )
    model.check_vocabularies()
    model.build()
    with written_whole(folder) as temporary:
        config, weights = _split(model, dtype, temporary)
        np.savez_compressed(temporary / _WEIGHTS, **weights)
        facts = {
            "format_version": FORMAT_VERSION,
            "class": type(model).__name__,
            "description": description,
            "parameters": model.count_params(),
            "weights": dtype,
            "versions": {"attention-zoo": __version__, "keras": keras.__version__},
            "model": config,
        }
        _write(temporary / CONFIG, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        for name, text in {CARD: _short_card(folder.name, model, facts), **(files or {})}.items():
            _write(temporary / name, text)
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        lines = [f"{_checksum(path)}  {path.relative_to(temporary).as_posix()}\n" for path in written]
        _write(temporary / _CHECKSUMS, "".join(lines))


def load(folder: str | os.PathLike, model_class: type[EncoderDecoder] = EncoderDecoder) -> EncoderDecoder:
    """Reads a model that `save` wrote.

    Only classes of this library and a few of Keras that hold numbers are made, whatever the folder names.

    Args:
        folder: The folder.
        model_class: What the model must be.

    Returns:
        The model, with its weights, not compiled.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is no preset, is damaged or of a newer version, or holds another model.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"from_preset: expected the folder of a preset, found none at {folder}")
    if not (folder / CONFIG).is_file() or not (folder / _CHECKSUMS).is_file():
        raise ValueError(
            f"from_preset: expected a folder written by save_preset, with {CONFIG} and {_CHECKSUMS} in it, "
            f"received {folder}"
        )
    names = _check_files(folder)
    facts = _read_config(folder)
    _check_classes(facts["model"], str(folder / CONFIG))
    try:
        model = _make(folder, names, facts)
    except ImportError:  # something is not installed: no fault of the folder
        raise
    except Exception as error:  # what does not fit may fail anywhere in NumPy, Keras or the tokenizers
        raise ValueError(
            f"from_preset: expected a model that this version can make, received {folder}, written by "
            f"attention-zoo {facts['versions'].get('attention-zoo')}, which it cannot: {error}"
        ) from error
    if not isinstance(model, model_class):
        raise ValueError(
            f"from_preset: expected a preset for a {model_class.__name__}, received one for a "
            f"{type(model).__name__}, {folder}; use {type(model).__name__}.from_preset"
        )
    model.check_vocabularies()
    return model


# === Writing ===


def _split(
    model: EncoderDecoder, dtype: str, folder: pathlib.Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the weights of a model; its assets are written into the folder."""
    file = folder / "model.keras"
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
            arrays = _arrays(weights)
        for name in archive.namelist():
            if name.startswith("assets/"):
                archive.extract(name, folder)
    file.unlink()
    config.pop("compile_config", None)
    encoder = config["config"]["encoder"]["config"]
    if encoder.get("pretrained"):  # the path of a file on the machine of whoever trained the model
        encoder["pretrained"] = pathlib.Path(encoder["pretrained"]).name
    _check_classes(config, f"a {type(model).__name__}")
    return config, {name: _stored(name, array, dtype) for name, array in arrays.items()}


def _arrays(file: h5py.File) -> dict[str, np.ndarray]:
    """The arrays of a file of weights by their paths, without the state of an optimizer."""
    arrays = {}

    def add(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer/"):
            bfloat16 = item.attrs.get("dtype") == "bfloat16"  # which NumPy does not store
            arrays[path] = (
                np.array(item, ml_dtypes.bfloat16).astype("float32") if bfloat16 else np.array(item)
            )

    file.visititems(add)
    return arrays


def _stored(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if np.isfinite(array).all() and not np.isfinite(stored).all():
        raise ValueError(
            f"save_preset: expected weights within the range of {dtype}, received {np.abs(array).max():g} in "
            f"{name}; take float32"
        )
    return stored


def _short_card(name: str, model: EncoderDecoder, facts: dict[str, Any]) -> str:
    """A card that says what can be known of a model alone."""
    return f"""# {name}

{facts["description"] or "A model of Attention Zoo."}

A `{facts["class"]}` of `{type(model.encoder).__name__}` and `{type(model.decoder).__name__}` with
{facts["parameters"]:,} parameters, stored as {facts["weights"]} by attention-zoo {__version__}.

```python
import attention_zoo as az

model = az.models.{facts["class"]}.from_preset("FOLDER")
```
"""


def _write(path: pathlib.Path, text: str) -> None:
    path.write_bytes(text.encode())  # the same bytes on every system


# === Reading ===


def _check_files(folder: pathlib.Path) -> list[str]:
    """Compares all files with their checksums; returns their names."""
    names = []
    for line in (folder / _CHECKSUMS).read_text(encoding="utf-8").splitlines():
        checksum, _, name = line.partition("  ")
        path = folder / name
        if ".." in pathlib.PurePath(name).parts or not path.is_file():
            raise ValueError(
                f"from_preset: expected the file {name} in {folder}, as {_CHECKSUMS} names it; it is "
                "missing: get the folder again"
            )
        if _checksum(path) != checksum:
            raise ValueError(
                f"from_preset: expected {path} as it was written; it was changed or is damaged, as its "
                f"checksum is another than that in {_CHECKSUMS}: get the folder again"
            )
        names.append(name)
    for name in (CONFIG, _WEIGHTS):
        if name not in names:
            raise ValueError(f"from_preset: expected {name} among the files of {folder / _CHECKSUMS}")
    return names


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = facts["format_version"]
        facts["model"], facts["versions"]["keras"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"from_preset: expected {folder / CONFIG} to describe a preset: {error!r}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"from_preset: expected format version {FORMAT_VERSION} in {folder / CONFIG}, received "
            f"{version}; install a newer attention-zoo"
        )
    return facts


def _check_classes(config: Any, where: str) -> None:
    """Raises ValueError if a configuration names a class that is neither ours nor a plain one of Keras."""
    if isinstance(config, list):
        for item in config:
            _check_classes(item, where)
    elif isinstance(config, dict):
        if "class_name" in config and not _is_ours(config) and not _is_plain(config):
            raise ValueError(
                f"preset: expected nothing but classes of attention_zoo and of {', '.join(_PLAIN_MODULES)} "
                f"in {where}, received {config.get('module')}.{config['class_name']}; others are neither "
                "stored nor loaded"
            )
        for item in config.values():
            _check_classes(item, where)


def _is_ours(config: dict[str, Any]) -> bool:
    name = str(config.get("registered_name"))
    return name.startswith("attention_zoo>") and keras.saving.get_registered_object(name) is not None


def _is_plain(config: dict[str, Any]) -> bool:
    return config.get("registered_name") is None and config.get("module") in _PLAIN_MODULES


def _make(folder: pathlib.Path, names: list[str], facts: dict[str, Any]) -> keras.Model:
    """Has Keras read the parts of the folder from a file as it writes them itself."""
    with tempfile.TemporaryDirectory() as temporary:
        file = pathlib.Path(temporary, "model.keras")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": facts["versions"]["keras"]}))
            archive.writestr("config.json", json.dumps(facts["model"]))
            archive.writestr("model.weights.h5", _as_hdf5(folder / _WEIGHTS))
            for name in names:
                if name.startswith("assets/"):
                    archive.write(folder / name, name)
        return keras.saving.load_model(file, compile=False, safe_mode=True)


def _as_hdf5(path: pathlib.Path) -> bytes:
    """The weights as the file that Keras reads, floats as float32."""
    buffer = io.BytesIO()
    with np.load(path, allow_pickle=False) as weights, h5py.File(buffer, "w") as file:
        for name in weights.files:
            array = weights[name]
            file[name] = array.astype("float32") if array.dtype == np.float16 else array
    return buffer.getvalue()


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
