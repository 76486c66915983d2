"""Captioned images to batches, in a few fixed shapes and an order that can be repeated exactly."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from attention_zoo.models.tokenizer import PAD_ID, Tokenizer
from attention_zoo.training.batching import choose_buckets, shifted, with_end
from attention_zoo.training.image_data import CaptionedImages, read_image

logger = logging.getLogger("attention_zoo")


class CaptionBatches:
    """Batches of images and token ids for teacher forcing, for `fit`.

    An element is `({"source": images (B, ...), "target": int32 (B, T)}, labels int32 (B, T))`, where target
    is START and the pieces of a caption, labels are the pieces and END, both padded with 0. Images from
    arrays keep their type and shape; files are read, decoded and resized in parallel, to float32
    (B, H, W, 3).

    In an epoch each image comes once, with one of its captions drawn at random, or once with each; with
    `mirror`, a row drawn at random in half of the cases sees it mirrored, left to right. The rows
    of an epoch are shuffled, sorted by length, cut into batches, and each batch is padded to the smallest of
    a few widths: XLA compiles a training step anew for every shape, which takes seconds. Then the batches are
    shuffled. All have the same number of rows; rows that fill up are all zero, the image included, and loss
    and metrics ignore them. All this depends on `seed` and `epoch` alone, so that a resumed training sees the
    batches that the uninterrupted one would have seen.

    The captions are tokenized once, and their ids stay in memory; of the images, those of a few batches do,
    and what `data` itself holds.

    Args:
        data: The images and captions.
        tokenizer: Tokenizer of the captions.
        batch_size: Images in a batch, at most: they are spread evenly over the batches.
        image_size: Height and width to which files are resized, or one number for both. Arrays stay as they
            are.
        captions: "one" for one caption of each image in an epoch, "all" for each of its captions.
        mirror: Whether half of the rows, drawn at random, see their image mirrored: with few images, a model
            that looks at them in two ways learns less of them by heart. Not for captions that tell left from
            right. Features cannot be mirrored: where `data` holds such, pass those of the mirrored images, an
            array of the same shape (`cached_features(..., mirrored=True).images`). Needs `shuffle`.
        max_widths: Most values of T, chosen from the lengths of all captions. More mean less padding and more
            compilations.
        max_caption_length: Longer captions are dropped. Tokens, END included.
        shuffle: Whether each epoch has its own captions and order. Otherwise "one" takes the first caption,
            and the order is always the same.
        seed: Seed of the draw and of the order.

    Attributes:
        epoch: tf.Variable, int64: number of the epoch that the next iterator starts; each iterator adds 1.
            Set it (`batches.epoch.assign(7)`) to see the batches of that epoch.
        shapes: list of (B, T), the shapes that the ids of a batch may have.
        steps_per_epoch: Number of batches in every epoch.
        dropped: Number of captions that are too long. An image of which all are does not occur.
        padding_share: Share of the positions of the captions that hold no token, in epoch 0.

    Raises:
        ValueError: If an argument is out of range, all captions are too long, the images are files and
            there is no image size, or features are to be mirrored.

    Example:
        >>> from attention_zoo.models import WhitespaceTokenizer
        >>> data = CaptionedImages(np.zeros((2, 8, 8, 3), "uint8"), [["a b b", "b"], ["b"]])
        >>> batches = CaptionBatches(data, WhitespaceTokenizer(["a", "b"]), batch_size=2, shuffle=False)
        >>> inputs, labels = next(iter(batches.dataset()))
        >>> inputs["source"].shape, inputs["target"].numpy().tolist(), labels.numpy().tolist()
        (TensorShape([2, 8, 8, 3]), [[1, 5, 0, 0], [1, 4, 5, 5]], [[5, 2, 0, 0], [4, 5, 5, 2]])
    """

    def __init__(
        self,
        data: CaptionedImages,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int | Sequence[int] | None = None,
        captions: str = "one",
        mirror: bool | np.ndarray = False,
        max_widths: int = 4,
        max_caption_length: int = 50,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("max_widths", max_widths)):
            if number < 1:
                raise ValueError(f"CaptionBatches: expected {name} of at least 1, received {number}")
        if seed < 0:
            raise ValueError(f"CaptionBatches: expected a seed of at least 0, received {seed}")
        if captions not in ("one", "all"):
            raise ValueError(f'CaptionBatches: expected captions as "one" or "all", received {captions!r}')
        self.captions = captions
        self.shuffle = shuffle
        self.seed = seed
        self._images = data.images
        self.mirror = _checked_mirror(mirror, data.images, shuffle)
        self._image_size = _checked_image_size(image_size, isinstance(data.images, list))
        with tf.device("CPU:0"):
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")

        ids = with_end(tokenizer.tokenize(tf.constant([text for texts in data.captions for text in texts])))
        lengths = ids.row_lengths().numpy()
        owners = np.repeat(np.arange(len(data)), [len(texts) for texts in data.captions])
        fits = lengths <= max_caption_length
        self.dropped = int(np.sum(~fits))
        if not np.any(fits):
            raise ValueError(
                f"CaptionBatches: expected captions of at most {max_caption_length} tokens, END included, "
                f"received {len(fits)} that are all longer; the shortest has {lengths.min()}"
            )
        if self.dropped:
            logger.warning("CaptionBatches: dropped %d of %d captions, too long.", self.dropped, len(fits))

        # One row for each caption, and a last one, all zero, that fills up batches.
        labels = tf.ragged.boolean_mask(ids, fits).to_tensor(PAD_ID).numpy()
        self._labels = np.pad(labels, ((0, 1), (0, 0)))  # (captions + 1, longest)
        self._lengths = np.append(lengths[fits], 0)  # (captions + 1,)
        self._owners = owners[fits]  # (captions,)
        # Of each image that occurs: its first row, and how many it has.
        numbers, self._first, self._counts = np.unique(self._owners, return_index=True, return_counts=True)

        rows = len(numbers) if captions == "one" else len(self._owners)
        # Spread evenly: 9 rows, of which 8 would fit, are 5 + 4 and not 8 + 1 and 7 zero rows.
        self.steps_per_epoch = -(-rows // batch_size)
        self._batch_size = -(-rows // self.steps_per_epoch)
        self._widths = _choose_widths(lengths[fits], self._batch_size, max_widths)
        self.shapes = [(self._batch_size, width) for width in self._widths]
        first = self._epoch_rows(0)
        positions = sum(len(rows) * self._width(rows) for rows in first)
        self.padding_share = 1.0 - float(self._lengths[np.concatenate(first)].sum()) / positions

    def dataset(self) -> tf.data.Dataset:
        """The batches as a dataset of one epoch; each time it is iterated is one epoch.

        Returns:
            tf.data.Dataset of known cardinality `steps_per_epoch`. Where a file cannot be decoded, iterating
            raises `tf.errors.InvalidArgumentError` with its path.
        """
        rows, files = self._batch_size, isinstance(self._images, list)
        ids = tf.TensorSpec((rows, None), tf.int32)
        inputs = {"target": ids}
        if files:
            inputs["source"] = tf.TensorSpec((rows,), tf.string)
            inputs["mirrored"] = tf.TensorSpec((rows,), tf.bool)
        else:
            inputs["source"] = tf.TensorSpec((rows, *self._images.shape[1:]), self._images.dtype)
        # Each batch is a few NumPy look-ups in memory: a generator is fast enough and easy to read.
        dataset = tf.data.Dataset.from_generator(self._batches, output_signature=(inputs, ids))
        if files:
            # One by one, so that no more images are in work than there are threads.
            dataset = dataset.unbatch().map(self._with_image, num_parallel_calls=tf.data.AUTOTUNE)
            dataset = dataset.batch(rows, drop_remainder=True)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))
        return dataset.prefetch(2)

    def summary(self) -> str:
        """Size, shapes and padding, in one line."""
        shapes = ", ".join(f"{rows}x{width}" for rows, width in self.shapes)
        which = "one" if self.captions == "one" else "each"
        return (
            f"{len(self._counts):,} images with {which} of {len(self._owners):,} captions in "
            f"{self.steps_per_epoch:,} batches of {shapes}; {self.padding_share:.0%} padding; "
            f"{self.dropped:,} captions dropped as too long"
        )

    def _epoch_rows(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch: int (B,) each."""
        random = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        if self.captions == "all":
            order = np.arange(len(self._owners))
        elif random:
            order = self._first + random.integers(self._counts)
        else:
            order = self._first
        if random:
            order = random.permutation(order)
        zero_row = len(self._owners)
        missing = self.steps_per_epoch * self._batch_size - len(order)
        order = np.append(order, np.full(missing, zero_row))
        # Stable: rows of one length stay shuffled. The zero rows come first, where padding costs least.
        order = order[np.argsort(self._lengths[order], kind="stable")]
        batches = order.reshape(self.steps_per_epoch, self._batch_size)
        return list(random.permutation(batches) if random else batches)

    def _width(self, rows: np.ndarray) -> int:
        """The smallest width that holds the captions of a batch."""
        longest = self._lengths[rows].max()
        return next(width for width in self._widths if width >= longest)

    def _batches(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The batches of one epoch, with paths instead of images where these are files."""
        # Read when the iterator starts, not when the dataset is made.
        epoch = int(self.epoch.numpy())
        self.epoch.assign(epoch + 1)
        coin = np.random.default_rng([self.seed, epoch, 1])  # 1: not the numbers that the order is drawn with
        for rows in self._epoch_rows(epoch):
            labels = self._labels[rows, : self._width(rows)]  # (B, T)
            real = rows < len(self._owners)
            mirrored = real & (coin.random(len(rows)) < 0.5) & (self.mirror is not False)
            yield {**self._inputs(rows, real, mirrored), "target": shifted(labels)}, labels

    def _inputs(self, rows: np.ndarray, real: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """The images of rows, those that are not real being zero; or their paths, "" for zero."""
        numbers = self._owners[np.where(real, rows, 0)]
        if isinstance(self._images, list):
            paths = np.array([str(self._images[number]) for number in numbers], object)
            return {"source": np.where(real, paths, ""), "mirrored": mirrored}
        images = np.zeros((len(rows), *self._images.shape[1:]), self._images.dtype)
        images[real] = self._images[numbers[real]]
        if isinstance(self.mirror, np.ndarray):
            images[mirrored] = self.mirror[numbers[mirrored]]
        else:
            images[mirrored] = images[mirrored, :, ::-1]
        return {"source": images}

    def _with_image(self, inputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tuple[dict[str, Any], Any]:
        """A row with its image (H, W, 3) in place of the path."""
        image = read_image(inputs["source"], self._image_size)
        image = tf.where(inputs["mirrored"], image[:, ::-1], image)
        return {"source": image, "target": inputs["target"]}, labels


def _checked_mirror(mirror: Any, images: np.ndarray | list[Any], shuffle: bool) -> bool | np.ndarray:
    if mirror is False:
        return False
    if not shuffle:
        raise ValueError("CaptionBatches: expected mirror with shuffle=True, received shuffle=False")
    received = f"an array {mirror.dtype} {mirror.shape}" if isinstance(mirror, np.ndarray) else repr(mirror)
    if isinstance(images, list) or images.dtype == np.uint8:
        if mirror is not True:
            raise ValueError(f"CaptionBatches: expected mirror as True or False, received {received}")
    elif received != f"an array {images.dtype} {images.shape}":
        raise ValueError(
            "CaptionBatches: expected mirror as the features of the mirrored images, an array "
            f"{images.dtype} {images.shape}, received {received}; cached_features(mirrored=True) makes them"
        )
    return mirror


def _checked_image_size(image_size: int | Sequence[int] | None, files: bool) -> tuple[int, int] | None:
    if image_size is None:
        if files:
            raise ValueError(
                "CaptionBatches: expected an image_size to resize image files to, received None; pass that "
                "of the encoder"
            )
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise ValueError(
            "CaptionBatches: expected image_size as one or two integers of at least 1, received "
            f"{image_size!r}"
        )
    return size


def _choose_widths(lengths: np.ndarray, batch_size: int, most: int) -> list[int]:
    """A few widths between which the captions divide well, the last one that of the longest."""
    sides = np.stack([lengths, lengths], axis=1)  # (captions, 2)
    return [width for width, _ in choose_buckets(sides, batch_size * int(lengths.max()), most)]
