"""Folders that are both: a SavedModel to serve, and a Keras model to train on."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator

import keras

# Keras finds classes by their registered names, so whatever a saved model may hold is imported here; the
# layers come with `composition`.
from attention_zoo.models import (  # noqa: F401
    ensemble,
    marian_tokenizer,
    sentencepiece_tokenizer,
    whitespace_tokenizer,
)
from attention_zoo.models.captioner import Captioner
from attention_zoo.models.encoder_decoder import EncoderDecoder
from attention_zoo.models.trained_preset import CONFIG
from attention_zoo.models.translator import Translator

# TensorFlow copies what lies in assets.extra along with a SavedModel and does not look at it.
KERAS_FILE = pathlib.PurePath("assets.extra", "model.keras")


def load(path: str | os.PathLike) -> EncoderDecoder:
    """Loads a model to go on training, translate or export.

    Args:
        path: A folder that `export` wrote, or a `.keras` file that `save` wrote; or a folder that
            `save_preset` wrote, which holds nothing of the training.

    Returns:
        The model, compiled if the saved one was, optimizer state included.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If what is there is no model of this library, or is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"load: expected a model folder or a .keras file, found nothing at {path}")
    if (path / CONFIG).is_file():
        from attention_zoo.models import preset_folder

        return preset_folder.load(path)
    file = path / KERAS_FILE if path.is_dir() else path
    if not file.exists():
        raise ValueError(
            f"load: expected a folder written by export(), with {KERAS_FILE} in it, received {path}; a "
            "SavedModel of another origin can be served with tf.saved_model.load, not trained"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(f"load: expected {file} to be a whole .keras file (a zip archive); it is damaged")
    try:
        model = keras.saving.load_model(file)
        if isinstance(model, Translator | Captioner):
            model.check_vocabularies()
    except ImportError:  # something is not installed: no fault of the file
        raise
    except Exception as error:  # a damaged file may fail anywhere in Keras, zip, JSON, HDF5 or the tokenizers
        raise ValueError(
            f"load: expected {file} to hold a model of this library; it is damaged, or of another origin: "
            f"{error}"
        ) from error
    if not isinstance(model, EncoderDecoder):
        raise ValueError(
            f"load: expected a model of this library, received a {type(model).__name__} in {file}; load it "
            "with keras.saving.load_model"
        )
    return model


@contextlib.contextmanager
def written_whole(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to write into, renamed to `folder` when all is written and removed if that fails.

    Raises:
        FileExistsError: If `folder` exists and is not empty.
    """
    folder = pathlib.Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"export: expected a folder that does not exist yet or is empty, received {folder}; "
            "choose another or remove it first"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
