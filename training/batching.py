"""Parallel text to batches of ids, in a few fixed shapes and an order that can be repeated exactly."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from attention_zoo.models.sentencepiece_tokenizer import SentencePieceTokenizer
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID, Tokenizer
from attention_zoo.training.text_data import ParallelText

logger = logging.getLogger("attention_zoo")

# Automatic buckets are chosen among these quantiles of the lengths, closer where the tail is long.
_QUANTILES = (*(share / 20 for share in range(1, 20)), 0.98, 0.99, 1.0)
# Each shape costs a compilation. A bucket that spares less than this share of an epoch, or not even one batch
# in it, does not pay.
_WORTHWHILE = 0.015


class Bucket(NamedTuple):
    """Pairs of similar length, padded, and how they are cut into batches.

    members: (N,), their numbers in the text; source: int32 (N + 1, S), labels: int32 (N + 1, T), or (N + 1,
    1 + K, T) with candidates; the last row is zero and fills up batches.
    """

    members: np.ndarray
    source: np.ndarray
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

    The text is tokenized once, and its ids stay in memory. With `subword_dropout` it is tokenized anew, at
    random, for every epoch; what then is too long for its bucket stays as it is without dropout.

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
        subword_dropout: Share of the merges that are left out at random in sources and targets, see
            `SentencePieceTokenizer.tokenize_with_dropout`; 0 for none.
        seed: Seed of the order and of the sub-words.

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
        subword_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, number in (("batch_tokens", batch_tokens), ("max_buckets", max_buckets)):
            if number < 1:
                raise ValueError(f"TranslationBatches: expected {name} of at least 1, received {number}")
        if seed < 0:
            raise ValueError(f"TranslationBatches: expected a seed of at least 0, received {seed}")
        self._sides = ((text.sources, source_tokenizer), (text.targets, target_tokenizer))
        if subword_dropout:
            _check_subword_dropout(subword_dropout, self._sides)
        self.batch_tokens = batch_tokens
        self.shuffle = shuffle
        self.subword_dropout = subword_dropout
        self.seed = seed
        with tf.device("CPU:0"):
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")

        limits = (max_source_length, max_target_length)
        plain = [with_end(tokenizer.tokenize(tf.constant(texts))) for texts, tokenizer in self._sides]
        plain_lengths = lengths = drawn_lengths = _lengths(plain)  # (pairs, 2)
        if subword_dropout:
            # Room for what the first epochs draw: few of those that later ones draw are longer.
            for epoch in range(3):
                drawn_lengths = np.minimum(_lengths(self._draw(epoch)), limits)
                lengths = np.maximum(lengths, drawn_lengths)
        fits = np.all(plain_lengths <= limits, axis=1)
        if buckets is None:
            buckets = choose_buckets(lengths[fits], batch_tokens, max_buckets)
        else:
            buckets = _checked_buckets(buckets)
        numbers = bucket_numbers(lengths, buckets)
        numbers = np.where(numbers == len(buckets), bucket_numbers(plain_lengths, buckets), numbers)
        numbers = np.where(fits, numbers, len(buckets))

        self.dropped = int(np.sum(numbers == len(buckets)))
        if self.dropped == len(text):
            raise ValueError(
                f"TranslationBatches: expected pairs of at most {max_source_length} source and "
                f"{max_target_length} target tokens that fit into one of the buckets {buckets}, received "
                f"{len(text)} pairs that are all longer; the shortest target has "
                f"{plain_lengths[:, 1].min()} tokens"
            )
        if self.dropped:
            logger.warning("TranslationBatches: dropped %d of %d pairs, too long.", self.dropped, len(text))

        self.buckets: list[tuple[int, int]] = []
        self._buckets: list[Bucket] = []
        for number, shape in enumerate(buckets):
            members = np.flatnonzero(numbers == number)
            if members.size:
                self.buckets.append(shape)
                self._buckets.append(_make_bucket(plain, members, shape, batch_tokens))
        self._pairs = len(text) - self.dropped
        self.steps_per_epoch = sum(bucket.batches for bucket in self._buckets)
        self.shapes = [
            (bucket.rows, *shape) for bucket, shape in zip(self._buckets, self.buckets, strict=True)
        ]
        positions = sum(
            bucket.batches * rows * (source + target)
            for bucket, (rows, source, target) in zip(self._buckets, self.shapes, strict=True)
        )
        self.padding_share = 1.0 - float(drawn_lengths[numbers < len(buckets)].sum()) / positions

    def dataset(self) -> tf.data.Dataset:
        """The batches as a dataset of one epoch; each time it is iterated is one epoch.

        Returns:
            tf.data.Dataset of known cardinality `steps_per_epoch`.
        """
        ids = tf.TensorSpec((None, None), tf.int32)
        return epoch_dataset(self._batches, ({"source": ids, "target": ids}, ids), self.steps_per_epoch)

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
        drawn = self._draw(epoch) if self.subword_dropout else None
        buckets = [_with_tokens(bucket, *drawn) for bucket in self._buckets] if drawn else self._buckets
        for bucket, rows in batches_of(buckets, random):
            labels = bucket.labels[rows]
            yield {"source": bucket.source[rows], "target": shifted(labels)}, labels

    def _draw(self, epoch: int) -> list[tf.RaggedTensor]:
        """Sources and targets of all pairs, with END, as sub-word dropout cuts them in an epoch."""
        seeds = np.random.SeedSequence([self.seed, epoch]).generate_state(len(self._sides))
        return [
            with_end(tokenizer.tokenize_with_dropout(texts, self.subword_dropout, int(seed)))
            for (texts, tokenizer), seed in zip(self._sides, seeds, strict=True)
        ]


def epoch_dataset(batches: Callable[[], Iterator[Any]], signature: Any, steps: int) -> tf.data.Dataset:
    """A dataset of known cardinality of what `batches` yields in an epoch."""
    # Each batch is a few NumPy look-ups in memory: a generator is fast enough and easy to read.
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)


def batches_of(
    buckets: Sequence[Bucket], random: np.random.Generator | None
) -> Iterator[tuple[Bucket, np.ndarray]]:
    """The batches of one epoch: each a bucket and the rows of it, in random order or from first to last."""
    batches = []
    for bucket in buckets:
        pairs = len(bucket.members)
        order = np.full(bucket.batches * bucket.rows, pairs)  # `pairs` is the zero row
        order[:pairs] = random.permutation(pairs) if random else np.arange(pairs)
        batches += [(bucket, rows) for rows in order.reshape(bucket.batches, bucket.rows)]
    for index in random.permutation(len(batches)) if random else range(len(batches)):
        yield batches[index]


def with_end(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    """Appends END to every row."""
    return tf.concat([ids, tf.fill([ids.nrows(), 1], END_ID)], axis=1)


def bucket_numbers(lengths: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
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
        counts = np.bincount(bucket_numbers(lengths, buckets), minlength=len(buckets))
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
    sides: Sequence[tf.RaggedTensor], members: np.ndarray, shape: tuple[int, int], batch_tokens: int
) -> Bucket:
    """Pads the pairs `members` to `shape`."""
    source, labels = (padded_rows(ids, members, length) for ids, length in zip(sides, shape, strict=True))
    return cut_bucket(members, source, labels, most=batch_tokens // max(shape))


def cut_bucket(members: np.ndarray, source: np.ndarray, labels: np.ndarray, most: int) -> Bucket:
    """A bucket of these rows, cut into batches of at most so many of them, but at least one."""
    # Spread evenly over the batches: 9 pairs, of which 8 would fit, are 5 + 4 and not 8 + 1 and 7 zero rows.
    batches = -(-len(members) // max(1, most))
    return Bucket(members, source, labels, rows=-(-len(members) // batches), batches=batches)


def _with_tokens(bucket: Bucket, sources: tf.RaggedTensor, targets: tf.RaggedTensor) -> Bucket:
    """The bucket with other tokens of the same texts; those that are too long for it stay as they are."""
    return bucket._replace(
        source=_where_it_fits(sources, bucket.members, bucket.source),
        labels=_where_it_fits(targets, bucket.members, bucket.labels),
    )


def _where_it_fits(ids: tf.RaggedTensor, members: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """The rows `members` of `ids`, padded like `otherwise`, (N + 1, L), which gives those that are longer."""
    length = otherwise.shape[1]
    fits = np.append(ids.row_lengths().numpy()[members] <= length, False)
    return np.where(fits[:, None], padded_rows(ids, members, length), otherwise)


def padded_rows(ids: tf.RaggedTensor, members: np.ndarray, length: int) -> np.ndarray:
    """The rows `members` and a row of zeros: (N + 1, length)."""
    rows = tf.gather(ids, members).to_tensor(PAD_ID, shape=(None, length)).numpy()
    return np.pad(rows, ((0, 1), (0, 0)))


def shifted(labels: np.ndarray) -> np.ndarray:
    """What teacher forcing feeds: START, and the labels one position later, without END, (..., T)."""
    target = np.zeros_like(labels)
    target[..., 1:] = np.where(labels[..., :-1] == END_ID, PAD_ID, labels[..., :-1])
    target[..., 0] = np.where(labels[..., 0] != PAD_ID, START_ID, PAD_ID)
    return target


def _lengths(sides: Sequence[tf.RaggedTensor]) -> np.ndarray:
    """Tokens of the source and the target of each pair: (pairs, 2)."""
    return np.stack([ids.row_lengths() for ids in sides], axis=1)


def _check_subword_dropout(rate: float, sides: Sequence[tuple[Sequence[str], Tokenizer]]) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"TranslationBatches: expected subword_dropout from 0 to below 1, received {rate}")
    for _, tokenizer in sides:
        if not isinstance(tokenizer, SentencePieceTokenizer):
            raise ValueError(
                "TranslationBatches: expected SentencePieceTokenizers for subword_dropout, received a "
                f"{type(tokenizer).__name__}"
            )
