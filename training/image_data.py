"""Images and their captions."""

import collections
import csv
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import tensorflow as tf

from attention_zoo.models import image_files
from attention_zoo.models.tokenizer import read_lines

logger = logging.getLogger("attention_zoo")

_NUMBERED = re.compile(r"([^\t]+)#\d+(?:\t(.*))?")
# The separator before the comment is missing in one row of the Flickr30k file that is passed around.
_BARS = re.compile(r"([^|]+)\|\s*\d+\s*\|?(.*)")
# What TensorFlow writes around a reason.
_NODES = re.compile(r"\{\{.*?\}\} | \[Op:.*", re.DOTALL)


class CaptionedImages:
    """Images, each with one or more captions.

    White space at the ends of captions is removed, and blank captions are left out. Images without a caption
    are left out as well; `dropped` counts them, and the log says so. Where every image has one, an array is
    kept as it is, without a copy.

    Args:
        images: uint8 (N, h, w, 3), RGB; or their features, float (N, H, W, C), C other than 3, as
            `ImageEncoder.features` returns them; or N paths of image files. An array may be an `np.memmap`,
            which is never read as a whole: each of its images must have a caption.
        captions: N lists of strings; or N strings, one for each image.

    Attributes:
        images: The array, or list[pathlib.Path], of the images that are kept.
        captions: list[list[str]], their captions.
        dropped: Number of images left out.

    Raises:
        ValueError: If the images are no such array or paths, there are not as many captions as images, a
            caption is no string, or no image with a caption is left.
        FileNotFoundError: If image files are missing.

    Example:
        >>> data = CaptionedImages(np.zeros((2, 8, 8, 3), "uint8"), [["a cat", "it sits"], ["a dog"]])
        >>> len(data), data[0][1], data[1:].captions
        (2, ['a cat', 'it sits'], [['a dog']])
        >>> data.with_images(np.zeros((2, 4, 4, 64), "float16")).images.shape
        (2, 4, 4, 64)
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[str | os.PathLike],
        captions: Sequence[Sequence[str]] | Sequence[str],
    ) -> None:
        images, captions = _checked_images(images), _checked_captions(captions)
        if len(images) != len(captions):
            raise ValueError(
                f"CaptionedImages: expected the captions of each image, received {len(images)} images and "
                f"captions of {len(captions)}"
            )
        kept = [number for number, texts in enumerate(captions) if texts]
        self.dropped = len(images) - len(kept)
        if not kept:
            raise ValueError(
                f"CaptionedImages: expected images with captions, received {len(images)} images, none with a "
                "caption that is not blank"
            )
        if self.dropped:
            images = _chosen(images, kept)
            logger.warning(
                "CaptionedImages: left out %d of %d images without a caption.", self.dropped, len(captions)
            )
        if isinstance(images, list):
            _check_files(images)
        self.images: np.ndarray | list[pathlib.Path] = images
        self.captions: list[list[str]] = [captions[number] for number in kept]

    @classmethod
    def from_files(
        cls,
        images_folder: str | os.PathLike,
        captions_file: str | os.PathLike,
        names: str | os.PathLike | Sequence[str] | None = None,
    ) -> "CaptionedImages":
        r"""Reads the captions of image files, as Flickr8k and Flickr30k have them.

        The first line of the file tells which of these it is:

        - `name.jpg#0<TAB>caption`, without a header (Flickr8k.token.txt, results_20130124.token);
        - CSV with the header `image,caption` (Kaggle's captions.txt);
        - `name.jpg<TAB>caption` with the header `image<TAB>caption`;
        - `name.jpg| 0| caption` with the header `image_name| comment_number| comment` (Kaggle's results.csv).

        Args:
            images_folder: Where the images are.
            captions_file: UTF-8 text, plain or gzipped (`.gz`).
            names: The images to keep, in this order: names, or the path of a file with one name per line, as
                the official lists for training, validation and test are. None keeps all, in the order in
                which they first appear.

        Returns:
            The images, as paths, and their captions.

        Raises:
            FileNotFoundError: If the folder, a file or images are missing.
            ValueError: If a file has another layout, is not UTF-8, or is damaged, or names are repeated or
                have no captions.
        """
        captions = _read_captions(captions_file)
        if names is not None:
            captions = _named(captions, names, captions_file)
        return cls._in_folder(images_folder, list(captions), list(captions.values()), captions_file)

    @classmethod
    def from_coco(
        cls, images_folder: str | os.PathLike, annotations_file: str | os.PathLike
    ) -> "CaptionedImages":
        """Reads image files and their captions as MS COCO has them (captions_train2017.json).

        Args:
            images_folder: Where the images are.
            annotations_file: JSON with "images", each with "id" and "file_name", and "annotations", each with
                "image_id" and "caption". The order is that of the images.

        Returns:
            The images, as paths, and their captions.

        Raises:
            FileNotFoundError: If the folder, the file or images are missing.
            ValueError: If the file is no such JSON.
        """
        path = pathlib.Path(annotations_file)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a JSON file of captions, found none")
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:  # neither JSON nor Unicode
            raise ValueError(f"{path}: expected JSON, received something else ({error})") from None
        try:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            captions: dict[Any, list[str]] = {number: [] for number in names}
            for annotation in content["annotations"]:
                captions[annotation["image_id"]].append(annotation["caption"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{path}: expected "images" with id and file_name, and "annotations" with the image_id of '
                f"one of them and a caption, as in COCO's captions_train2017.json; received other JSON "
                f"({type(error).__name__}: {error})"
            ) from None
        return cls._in_folder(images_folder, list(names.values()), list(captions.values()), path)

    @classmethod
    def _in_folder(
        cls,
        folder: str | os.PathLike,
        names: Sequence[str],
        captions: Sequence[Sequence[str]],
        source: str | os.PathLike,
    ) -> "CaptionedImages":
        """The images `names` of a folder with the captions that `source` has for them."""
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
        try:
            return cls([folder / name for name in names], captions)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{source}: {error}") from None

    def with_images(self, images: np.ndarray | Sequence[str | os.PathLike]) -> "CaptionedImages":
        """The same captions with other images, such as the features of these.

        Args:
            images: As many, in the same order.

        Returns:
            The images with the captions.

        Raises:
            ValueError: If there are not as many images, or they are none.
            FileNotFoundError: If image files are missing.
        """
        return CaptionedImages(images, self.captions)

    def __len__(self) -> int:
        return len(self.captions)

    @overload
    def __getitem__(self, index: int) -> tuple[np.ndarray | pathlib.Path, list[str]]: ...

    @overload
    def __getitem__(self, index: slice) -> "CaptionedImages": ...

    def __getitem__(
        self, index: int | slice
    ) -> "tuple[np.ndarray | pathlib.Path, list[str]] | CaptionedImages":
        """One image and its captions, or those of a slice as CaptionedImages, which share the array."""
        if isinstance(index, slice):
            return CaptionedImages(self.images[index], self.captions[index])
        return self.images[index], self.captions[index]


def read_image(path: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Reads an image file, for `tf.data`: an error names the file, which TensorFlow's own does not.

    Args:
        path: string (), the path, or "" for an image that is all zero.
        image_size: H and W to which the image is resized.

    Returns:
        float32 (H, W, 3), from 0 to 255. Where the file cannot be read or decoded, the data set raises
        `tf.errors.InvalidArgumentError` with the path.
    """

    @tf.autograph.experimental.do_not_convert
    def read(path: tf.Tensor) -> tf.Tensor:
        name = path.numpy().decode()
        with tf.device("CPU:0"):
            if not name:
                return tf.zeros((*image_size, 3))
            try:
                return image_files.resize(image_files.decode(tf.io.read_file(path)), image_size)
            except (tf.errors.OpError, ValueError) as error:
                reason = _NODES.sub("", str(error))
                raise ValueError(
                    f"{name}: expected an image (JPEG, PNG, GIF or BMP) that can be decoded, received a "
                    f"damaged or another file ({reason}); replace it, or leave the image out"
                ) from None

    return tf.ensure_shape(tf.py_function(read, [path], tf.float32), (*image_size, 3))


def _checked_images(images: Any) -> np.ndarray | list[pathlib.Path]:
    """The images, if their type is right; whether files exist is not looked at."""
    if isinstance(images, np.ndarray):
        colours = images.ndim == 4 and images.shape[-1] == 3
        features = images.ndim == 4 and images.shape[-1] != 3
        if not (
            (colours and images.dtype == np.uint8)
            or (features and np.issubdtype(images.dtype, np.floating) and images.shape[-1])
        ):
            raise ValueError(
                "CaptionedImages: expected uint8 images (N, height, width, 3), or float features (N, height, "
                f"width, channels) of other than 3 channels, received {images.dtype} {images.shape}; add an "
                "axis to a single image, and convert others to RGB from 0 to 255"
            )
        return images
    if isinstance(images, str | bytes | os.PathLike):
        raise ValueError(
            f"CaptionedImages: expected an array or a list of paths, received the single path {images!r}; "
            "put it into a list, or read a folder with from_files"
        )
    if not isinstance(images, Sequence):
        raise ValueError(
            "CaptionedImages: expected images as a NumPy array or a list of paths, received "
            f"{type(images).__name__}"
        )
    for number, image in enumerate(images):
        if not isinstance(image, str | os.PathLike):
            raise ValueError(
                f"CaptionedImages: expected a list of paths, received {type(image).__name__} as image "
                f"{number}; put images of one size into one array with np.stack"
            )
    return [pathlib.Path(image) for image in images]


def _checked_captions(captions: Any) -> list[list[str]]:
    """The captions of each image, those that are not blank."""
    if isinstance(captions, str | bytes) or not isinstance(captions, Sequence):
        raise ValueError(
            "CaptionedImages: expected captions as a list of lists of strings, or a list of strings, "
            f"received {captions!r}"
        )
    one_each = all(isinstance(texts, str) for texts in captions)
    checked = []
    for number, texts in enumerate([[text] for text in captions] if one_each else captions):
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise ValueError(
                f"CaptionedImages: expected a list of captions for each image, received {texts!r} for image "
                f"{number}; if all have one, pass strings alone"
            )
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(
                    f"CaptionedImages: expected captions as strings, received {text!r} for image {number}"
                )
        stripped = [text.strip() for text in texts]
        checked.append([text for text in stripped if text])
    return checked


def _chosen(images: np.ndarray | list[pathlib.Path], kept: list[int]) -> np.ndarray | list[pathlib.Path]:
    if isinstance(images, list):
        return [images[number] for number in kept]
    if isinstance(images, np.memmap):
        # Choosing rows would read them all into memory, which is what a memory map is to avoid.
        first = sorted(set(range(len(images))) - set(kept))[:3]
        raise ValueError(
            f"CaptionedImages: expected captions of each image of a memory map, received none for "
            f"{len(images) - len(kept)} of {len(images)}, the first being {first}; leave these images out "
            "of the file"
        )
    return images[kept]


def _check_files(paths: list[pathlib.Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"CaptionedImages: expected {len(paths)} image files, found {len(missing)} of them missing: "
            f"{_some(missing)}; check the folder, or leave them out"
        )


def _some(items: Sequence[Any], most: int = 3) -> str:
    """The first few, as 'a, b, c and 5 more'."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def _read_captions(path: str | os.PathLike) -> dict[str, list[str]]:
    """Image name -> captions, in the order of the file."""
    lines = read_lines(path)
    header, rows = lines[0], enumerate(lines[1:], 2)
    if header == "image,caption":
        found = _read_csv(path, lines)
    elif header == "image\tcaption":
        # Without a tab the caption is blank: white space at the end of lines is gone.
        found = ((line.partition("\t")[0], line.partition("\t")[2]) for _, line in rows if line)
    elif [part.strip() for part in header.split("|")] == ["image_name", "comment_number", "comment"]:
        found = _read_rows(path, rows, _BARS, "name| number| caption")
    elif _NUMBERED.fullmatch(header):
        found = _read_rows(path, enumerate(lines, 1), _NUMBERED, "name#number<TAB>caption")
    else:
        raise ValueError(
            f"{path}: expected captions as name#number<TAB>caption, or below one of the headers "
            "image,caption or image<TAB>caption or image_name| comment_number| comment; received the first "
            f"line {header[:80]!r}"
        )
    captions: dict[str, list[str]] = {}
    for name, caption in found:
        captions.setdefault(name.strip(), []).append(caption)
    return captions


def _read_csv(path: str | os.PathLike, lines: list[str]) -> Iterable[tuple[str, str]]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    next(reader)  # the header
    try:
        for row in reader:
            if len(row) == 2:
                yield row[0], row[1]
            elif row:
                raise csv.Error(f"{len(row)} fields")
    except csv.Error as error:
        raise ValueError(
            f'{path}: expected a name and a caption, with quotes (") around one that has a comma in it, '
            f"received in line {reader.line_num}: {lines[reader.line_num - 1][:80]!r} ({error})"
        ) from None


def _read_rows(
    path: str | os.PathLike, rows: Iterable[tuple[int, str]], pattern: re.Pattern[str], layout: str
) -> Iterable[tuple[str, str]]:
    for number, line in rows:
        match = pattern.fullmatch(line)
        if match:
            yield match[1], match[2] or ""
        elif line:
            raise ValueError(f"{path}: expected {layout}, received in line {number}: {line[:80]!r}")


def _named(
    captions: dict[str, list[str]], names: str | os.PathLike | Sequence[str], source: str | os.PathLike
) -> dict[str, list[str]]:
    """The captions of some images, in the order of their names."""
    origin = "names"
    if isinstance(names, str | os.PathLike):
        origin, names = str(names), [line.strip() for line in read_lines(names) if line.strip()]
    if len(set(names)) < len(names):
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        raise ValueError(f"{origin}: expected each image once, received more than once {_some(repeated)}")
    missing = [name for name in names if name not in captions]
    if missing:
        raise ValueError(
            f"{origin}: expected names of images that have captions in {source}, received {len(missing)} of "
            f"{len(names)} that have none: {_some(missing)}"
        )
    return {name: captions[name] for name in names}
