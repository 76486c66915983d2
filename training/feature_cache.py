"""Features of images, computed once and kept on disk."""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from attention_zoo.models import image_files
from attention_zoo.models.image_encoder import ImageEncoder
from attention_zoo.training.callbacks.progress import clock
from attention_zoo.training.image_data import CaptionedImages, read_image

_DTYPE = np.dtype("float16")
# What decides about the features, beside the weights, in the backbones that are no keras.applications.
_SETTINGS = {"patches": ["patch_size"], "self_attention_cnn": ["activation"]}
_BLOCK = 256  # images of a memory map that are read at once


def cached_features(
    encoder: ImageEncoder,
    data: CaptionedImages,
    folder: str | os.PathLike,
    batch_size: int = 32,
    console: Console | None = None,
    mirrored: bool = False,
) -> CaptionedImages:
    """Computes what the backbone of an encoder makes of each image, or reads it if that was done before.

    A frozen backbone makes the same features of an image in every epoch, and is most of the work of a small
    captioner: with the features on disk a training step takes a fraction of the time.

    The name of the file is a fingerprint of the backbone (its weights and settings) and of the images (names,
    sizes and times of files, or the bytes of an array), so that training and validation images, and
    different encoders, can share a folder. Delete the folder to free the space: H * W * C * 2 bytes an image.

    Args:
        encoder: Its `features` are computed; it must be `frozen`.
        data: The images, and their captions.
        folder: Where the files are; made if it does not exist.
        batch_size: Images that are encoded at once.
        console: Where the progress is shown: as a bar on a terminal, and as a line elsewhere. None means
            standard output, if that is a terminal.
        mirrored: Whether each image is mirrored, left to right, before, for `CaptionBatches(mirror=...)`:
            as many features again, beside the others.

    Returns:
        The same captions with the features, a memory map of float16 (N, H, W, C), which the encoder takes in
        place of images.

    Raises:
        ValueError: If the encoder is not frozen, the data are features, the batch size is not positive, an
            image file cannot be decoded, a feature is too large for float16, or the file of features is
            damaged.

    Example:
        >>> import tempfile
        >>> encoder = ImageEncoder("patches", image_size=8, patch_size=4, frozen=True)
        >>> data = CaptionedImages(np.zeros((2, 20, 30, 3), "uint8"), ["a cat", "a dog"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached_features(encoder, data, folder).images.shape
        (2, 2, 2, 48)
    """
    _check_arguments(encoder, data, batch_size)
    folder = pathlib.Path(folder)
    identity = {"encoder": _describe_encoder(encoder), "images": _describe_images(data.images)}
    if mirrored:  # only then: the others keep the names that they have
        identity["mirrored"] = True
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = folder / f"features-{fingerprint[:20]}.npy"
    shape = (len(data), *encoder.grid, encoder.feature_dim)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        description = {"fingerprint": fingerprint, "shape": shape, "dtype": _DTYPE.name, **identity}
        with _written_whole(path.with_suffix(".json")) as file:
            file.write(json.dumps(description, indent=2).encode())
        with _written_whole(path) as file:
            _write_features(file, encoder, data.images, batch_size, console, mirrored)
    try:
        features = np.load(path, mmap_mode="r")
        whole = features.shape == shape and features.dtype == _DTYPE
    except (OSError, EOFError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"cached_features: expected the features of {len(data)} images, {_DTYPE} {shape}, in {path}, "
            "which is damaged; delete it to compute them again"
        )
    return data.with_images(features)


def _check_arguments(encoder: ImageEncoder, data: CaptionedImages, batch_size: int) -> None:
    if not encoder.frozen:
        raise ValueError(
            "cached_features: expected a frozen encoder, received one whose backbone learns, so that its "
            "features change; pass frozen=True to the encoder"
        )
    if isinstance(data.images, np.ndarray) and data.images.dtype != np.uint8:
        raise ValueError(
            f"cached_features: expected image files or uint8 images, received {data.images.dtype} features "
            f"{data.images.shape}"
        )
    if batch_size < 1:
        raise ValueError(f"cached_features: expected batch_size of at least 1, received {batch_size}")


def _describe_encoder(encoder: ImageEncoder) -> dict[str, Any]:
    """What the features depend on."""
    if not encoder.built:
        encoder.build()  # its own networks have no weights before
    weights = hashlib.sha256()
    for variable in encoder.network.weights if encoder.network else []:
        array = np.asarray(variable)
        weights.update(f"{array.dtype} {array.shape}".encode())
        weights.update(array.tobytes())
    config = encoder.get_config()
    names = ["backbone", "image_size", *_SETTINGS.get(encoder.backbone, [])]
    return {
        **{name: config[name] for name in names},
        "dtype": encoder.compute_dtype,
        "weights": weights.hexdigest(),
    }


def _describe_images(images: np.ndarray | list[pathlib.Path]) -> dict[str, Any]:
    content = hashlib.sha256()
    if isinstance(images, list):
        for path in images:
            status = path.stat()
            content.update(json.dumps([path.name, status.st_size, status.st_mtime_ns]).encode())
        return {"files": len(images), "sha256": content.hexdigest()}
    for start in range(0, len(images), _BLOCK):
        content.update(images[start : start + _BLOCK].tobytes())
    return {"shape": images.shape, "sha256": content.hexdigest()}


@contextlib.contextmanager
def _written_whole(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that, whatever happens, is whole or not there."""
    # Each process has its own: two trainings may compute the same features.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_features(
    file: BinaryIO,
    encoder: ImageEncoder,
    images: np.ndarray | list[pathlib.Path],
    batch_size: int,
    console: Console | None,
    mirrored: bool,
) -> None:
    """Writes an .npy file with the features of all images."""
    # Not through a memory map: where the disk is full, writing to one kills the process without a word.
    shape = (len(images), *encoder.grid, encoder.feature_dim)
    np.lib.format.write_array_header_1_0(file, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape})

    if isinstance(images, list):
        spec = tf.TensorSpec((None, *encoder.image_size, 3), tf.float32)
    else:
        spec = tf.TensorSpec((None, *images.shape[1:]), images.dtype)

    # Not compiled with XLA, whose convolutions are slow on a CPU.
    @tf.function(input_signature=[spec])
    def encode(images: tf.Tensor) -> tf.Tensor:
        images = image_files.resize(images, encoder.image_size)  # (B, h, w, 3)
        if mirrored:
            images = tf.reverse(images, axis=[2])
        return encoder.features(images)  # (B, H, W, C)

    with _Display("mirrored images" if mirrored else "images", len(images), console) as display:
        for batch in _image_batches(images, encoder.image_size, batch_size):
            features = np.asarray(tf.cast(encode(batch), tf.float32))
            with np.errstate(over="ignore"):  # it is an error below
                half = features.astype(_DTYPE)
            if not np.all(np.isfinite(half)):
                raise ValueError(
                    f"cached_features: expected features that {_DTYPE} can hold, of at most "
                    f"{np.finfo(_DTYPE).max:g}, received {np.max(np.abs(features)):g}; check the weights of "
                    "the encoder"
                )
            file.write(half.tobytes())
            display.advance(len(half))


def _image_batches(
    images: np.ndarray | list[pathlib.Path], image_size: tuple[int, int], batch_size: int
) -> Iterator[Any]:
    """The images in order, batch by batch: uint8 (B, h, w, 3), or float32 (B, H, W, 3) from files."""
    if not isinstance(images, list):
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
        return
    dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in images])
    dataset = dataset.map(lambda path: read_image(path, image_size), num_parallel_calls=tf.data.AUTOTUNE)
    batches = iter(dataset.batch(batch_size).prefetch(2))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.InvalidArgumentError as error:
            # What `read_image` raised, between TensorFlow's words and a traceback.
            reason = error.message.partition("ValueError: ")[2].partition("\n")[0]
            raise ValueError(f"cached_features: {reason or error.message}") from None
        yield batch


class _Display:
    """Shows how many images are done: on a terminal as a bar, elsewhere in a line at the end."""

    def __init__(self, name: str, total: int, console: Console | None) -> None:
        self._name, self._total, self._done, self._start = name, total, 0, time.perf_counter()
        self._asked = console is not None
        self._console = console or Console()
        self._bar: Bar | None = None

    def __enter__(self) -> "_Display":
        if self._console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()]
            columns.append(TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)))
            self._bar = Bar(*columns, console=self._console, expand=True)
            self._task = self._bar.add_task(f"features of {self._name}", total=self._total, state="")
            self._bar.start()
        return self

    def advance(self, images: int) -> None:
        """Moves the bar."""
        self._done += images
        if self._bar:
            rate = self._rate()
            state = f"{rate:,.1f} images/s, {clock((self._total - self._done) / rate)} left"
            self._bar.update(self._task, completed=self._done, state=state)

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None and (self._bar or self._asked):
            seconds = time.perf_counter() - self._start
            self._console.print(
                f"features of {self._done:,} {self._name} in {clock(seconds)}, {self._rate():,.1f} images/s",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _rate(self) -> float:
        return self._done / (time.perf_counter() - self._start)
