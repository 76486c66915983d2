"""Parallel text to batches of ids, in a few fixed shapes and an order that can be repeated exactly."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID, Tokenizer
from attention_zoo.training.text_data import ParallelText

logger = logging.getLogger("attention_zoo")

# Automatic buckets are chosen among these quantiles of the lengths, closer where the tail is long.
_QUANTILES = (*(share / 20 for share in range(1, 20)), 0.98, 0.99, 1.0)
# Each shape costs a compilation. A bucket that spares less than this share of an epoch, or not even one batch
# in it, does not pay.
_WORTHWHILE = 0.015


class _Bucket(NamedTuple):
    """Pairs of similar length, padded, and how they are cut into batches.

    source: int32 (N + 1, S), target and labels: int32 (N + 1, T); the last row is zero and fills up batches.
    """

    source: np.ndarray
    target: np.ndarray
    labels: np.ndarray
    rows: int
    batches: int


class TranslationBatches:
    """Batches of token ids for teacher forcing, for `fit`.

    An element is `({"source": int32 (B, S), "target": int32 (B, T)}, labels int32 (B, T))`, where source is
    the pieces and END, target is START and the pieces, labels are the pieces and END, all padded with 0.

    Pairs of similar length share a bucket, and all batches of a bucket have one shape: XLA compiles a
    training step anew for every shape, which takes seconds. Rows that fill up an incomplete batch are all
    zero; loss and metrics ignore them. The order of an epoch (which pairs share a batch, and the order of the
    batches) depends on `seed` and `epoch` alone, so that a resumed training sees the batches that the
    uninterrupted one would have seen.

    The text is tokenized once, and its ids stay in memory.

    Args:
        text: The pairs.
        source_tokenizer: Tokenizer of the sources.
        target_tokenizer: Tokenizer of the targets.
        batch_tokens: Tokens in a batch, padding included, of that side which has more; at most, but at least
            one pair. All batches of a bucket hold the same number of pairs.
        buckets: Shapes (S, T), END included; a pair goes to the first, from the smallest on, that holds it.
            None chooses at most `max_buckets` from the lengths in the text.
        max_buckets: Most shapes to choose. More mean less padding and more compilations.
        max_source_length: Pairs with a longer source are dropped. Tokens, END included.
        max_target_length: Likewise for the target.
        shuffle: Whether each epoch has its own random order. Otherwise the order is always the same.
        seed: Seed of the order.

    Attributes:
        epoch: tf.Variable, int64: number of the epoch that the next iterator starts; each iterator adds 1.
            Set it (`batches.epoch.assign(7)`) to see the batches of that epoch.
        shapes: list of (B, S, T), the shapes of the batches.
        buckets: list of (S, T), those given or chosen, empty ones left out.
        steps_per_epoch: Number of batches in every epoch.
        dropped: Number of pairs that are too long.
        padding_share: Share of the positions of an epoch, source and target, that hold no token.

    Raises:
        ValueError: If an argument is out of range, or all pairs are too long.

    Example:
        >>> from attention_zoo.models import WhitespaceTokenizer
        >>> words = WhitespaceTokenizer(["a", "b"])
        >>> text = ParallelText(["a b", "b"], ["b", "a a"])
        >>> batches = TranslationBatches(text, words, words, batch_tokens=6, shuffle=False)
        >>> inputs, labels = next(iter(batches.dataset()))
        >>> inputs["source"].numpy().tolist(), inputs["target"].numpy().tolist(), labels.numpy().tolist()
        ([[4, 5, 2], [5, 2, 0]], [[1, 5, 0], [1, 4, 4]], [[5, 2, 0], [4, 4, 2]])
    """

    def __init__(
        self,
        text: ParallelText,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        batch_tokens: int,
        buckets: Sequence[tuple[int, int]] | None = None,
        max_buckets: int = 5,
        max_source_length: int = 256,
        max_target_length: int = 256,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        for name, number in (("batch_tokens", batch_tokens), ("max_buckets", max_buckets)):
            if number < 1:
                raise ValueError(f"TranslationBatches: expected {name} of at least 1, received {number}")
        if seed < 0:
            raise ValueError(f"TranslationBatches: expected a seed of at least 0, received {seed}")
        self.batch_tokens = batch_tokens
        self.shuffle = shuffle
        self.seed = seed
        with tf.device("CPU:0"):
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")

        sources = with_end(source_tokenizer.tokenize(tf.constant(text.sources)))
        targets = with_end(target_tokenizer.tokenize(tf.constant(text.targets)))
        lengths = np.stack([sources.row_lengths(), targets.row_lengths()], axis=1)  # (pairs, 2)
        fits = np.all(lengths <= (max_source_length, max_target_length), axis=1)
        if buckets is None:
            buckets = choose_buckets(lengths[fits], batch_tokens, max_buckets)
        else:
            buckets = _checked_buckets(buckets)
        numbers = np.where(fits, _bucket_numbers(lengths, buckets), len(buckets))

        self.dropped = int(np.sum(numbers == len(buckets)))
        if self.dropped == len(text):
            raise ValueError(
                f"TranslationBatches: expected pairs of at most {max_source_length} source and "
                f"{max_target_length} target tokens that fit into one of the buckets {buckets}, received "
                f"{len(text)} pairs that are all longer; the shortest target has {lengths[:, 1].min()} tokens"
            )
        if self.dropped:
            logger.warning("TranslationBatches: dropped %d of %d pairs, too long.", self.dropped, len(text))

        self.buckets: list[tuple[int, int]] = []
        self._buckets: list[_Bucket] = []
        for number, shape in enumerate(buckets):
            members = np.flatnonzero(numbers == number)
            if members.size:
                self.buckets.append(shape)
                self._buckets.append(_make_bucket(sources, targets, members, shape, batch_tokens))
        self._pairs = len(text) - self.dropped
        self.steps_per_epoch = sum(bucket.batches for bucket in self._buckets)
        self.shapes = [
            (bucket.rows, *shape) for bucket, shape in zip(self._buckets, self.buckets, strict=True)
        ]
        positions = sum(
            bucket.batches * rows * (source + target)
            for bucket, (rows, source, target) in zip(self._buckets, self.shapes, strict=True)
        )
        self.padding_share = 1.0 - float(lengths[numbers < len(buckets)].sum()) / positions

    def dataset(self) -> tf.data.Dataset:
        """The batches as a dataset of one epoch; each time it is iterated is one epoch.

        Returns:
            tf.data.Dataset of known cardinality `steps_per_epoch`.
        """
        ids = tf.TensorSpec((None, None), tf.int32)
        # Each batch is two or three NumPy look-ups in memory: a generator is fast enough and easy to read.
        dataset = tf.data.Dataset.from_generator(
            self._batches, output_signature=({"source": ids, "target": ids}, ids)
        )
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))
        return dataset.prefetch(4)

    def summary(self) -> str:
        """Size, shapes and padding, in one line."""
        shapes = ", ".join(f"{rows}x({source}, {target})" for rows, source, target in self.shapes)
        return (
            f"{self._pairs:,} pairs in {self.steps_per_epoch:,} batches of {shapes}; "
            f"{self.padding_share:.0%} padding; {self.dropped:,} pairs dropped as too long"
        )

    def _batches(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The batches of one epoch."""
        # Read when the iterator starts, not when the dataset is made.
        epoch = int(self.epoch.numpy())
        self.epoch.assign(epoch + 1)
        random = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        batches = []
        for bucket in self._buckets:
            pairs = len(bucket.source) - 1
            order = np.full(bucket.batches * bucket.rows, pairs)  # `pairs` is the zero row
            order[:pairs] = random.permutation(pairs) if random else np.arange(pairs)
            batches += [(bucket, rows) for rows in order.reshape(bucket.batches, bucket.rows)]
        for index in random.permutation(len(batches)) if random else range(len(batches)):
            bucket, rows = batches[index]
            yield {"source": bucket.source[rows], "target": bucket.target[rows]}, bucket.labels[rows]


def with_end(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    """Appends END to every row."""
    return tf.concat([ids, tf.fill([ids.nrows(), 1], END_ID)], axis=1)


def _bucket_numbers(lengths: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The first bucket that holds each pair; len(buckets) where none does. (pairs, 2) -> (pairs,)."""
    numbers = np.full(len(lengths), len(buckets))
    for number in reversed(range(len(buckets))):
        numbers[np.all(lengths <= buckets[number], axis=1)] = number
    return numbers


def choose_buckets(lengths: np.ndarray, batch_tokens: int, most: int) -> list[tuple[int, int]]:
    """A few shapes between which the pairs divide well.

    Args:
        lengths: int (pairs, 2), source and target lengths.
        batch_tokens: As in `TranslationBatches`.
        most: Most shapes.

    Returns:
        Shapes (S, T), each as tight as its pairs allow, growing on both sides.
    """
    if not len(lengths):
        return []
    quantiles = np.quantile(lengths, _QUANTILES, axis=0, method="higher")
    buckets = sorted({(int(source), int(target)) for source, target in quantiles})

    def positions(buckets: list[tuple[int, int]]) -> int:
        counts = np.bincount(_bucket_numbers(lengths, buckets), minlength=len(buckets))
        return int(counts @ np.sum(buckets, axis=1))

    # Leave out, one by one, the bucket that spares least, until each one pays. The last one holds all pairs.
    while len(buckets) > 1:
        fewer = min((buckets[:i] + buckets[i + 1 :] for i in range(len(buckets) - 1)), key=positions)
        spared = positions(fewer) - positions(buckets)
        worthwhile = max(2 * batch_tokens, _WORTHWHILE * positions(buckets))
        if len(buckets) <= most and spared >= worthwhile:
            break
        buckets = fewer
    return buckets


def _checked_buckets(buckets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The user's buckets, from small to large."""
    for bucket in buckets:
        if len(bucket) != 2 or min(bucket) < 1:
            raise ValueError(
                f"TranslationBatches: expected buckets (source length, target length), received {bucket}"
            )
    if not buckets:
        raise ValueError("TranslationBatches: expected at least one bucket, received none")
    return sorted(((int(source), int(target)) for source, target in buckets), key=sum)


def _make_bucket(
    sources: tf.RaggedTensor,
    targets: tf.RaggedTensor,
    members: np.ndarray,
    shape: tuple[int, int],
    batch_tokens: int,
) -> _Bucket:
    """Pads the pairs `members` to `shape`."""
    zero_row = ((0, 1), (0, 0))
    source = np.pad(tf.gather(sources, members).to_tensor(PAD_ID, (None, shape[0])).numpy(), zero_row)
    labels = np.pad(tf.gather(targets, members).to_tensor(PAD_ID, (None, shape[1])).numpy(), zero_row)
    # The target is the labels one position later, without END.
    target = np.zeros_like(labels)
    target[:-1, 0] = START_ID
    target[:, 1:] = np.where(labels[:, :-1] == END_ID, PAD_ID, labels[:, :-1])
    # Spread evenly over the batches: 9 pairs, of which 8 would fit, are 5 + 4 and not 8 + 1 and 7 zero rows.
    batches = -(-len(members) // max(1, batch_tokens // max(shape)))
    return _Bucket(source, target, labels, rows=-(-len(members) // batches), batches=batches)
