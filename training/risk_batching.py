"""References and candidates to batches for minimum risk training."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from attention_zoo.models.tokenizer import Tokenizer
from attention_zoo.training.batching import (
    batches_of,
    bucket_numbers,
    choose_buckets,
    cut_bucket,
    epoch_dataset,
    padded_rows,
    shifted,
    with_end,
)
from attention_zoo.training.text_data import ParallelText

logger = logging.getLogger("attention_zoo")


class RiskBatches:
    """Batches of token ids for minimum risk training, for `fit` after `compile(risk=...)`.

    An element is `({"source": int32 (B, S), "target": int32 (B, 1 + K, T), "costs": float32 (B, K)}, labels
    int32 (B, 1 + K, T))`: of every source the reference and K candidates. Rows, padding, order and epochs are
    as in `TranslationBatches`. What a source has fewer candidates than K is padding.

    Args:
        text: The pairs of sources and references.
        candidates: For each source at most K translations, such as the K best of a search.
        costs: (N, K), what each of them costs.
        source_tokenizer: Tokenizer of the sources.
        target_tokenizer: Tokenizer of the references and candidates.
        batch_tokens: Tokens in a batch, padding included, of references and candidates together; at most, but
            at least one source with all of its own.
        max_buckets: Most shapes to choose. More mean less padding and more compilations.
        max_source_length: Longer sources are dropped. Tokens, END included.
        max_target_length: Likewise sources of which the reference or a candidate is longer.
        seed: Seed of the order.

    Attributes:
        epoch: tf.Variable, int64, see `TranslationBatches`.
        shapes: list of (B, S, 1 + K, T), the shapes of the batches.
        steps_per_epoch: Number of batches in every epoch.
        dropped: Number of sources that are dropped.

    Raises:
        ValueError: If there are not as many candidates and costs as sources, a source has more than K, or all
            are too long.

    Example:
        >>> from attention_zoo.models import WhitespaceTokenizer
        >>> words = WhitespaceTokenizer(["a", "b"])
        >>> text = ParallelText(["a b"], ["b a"])
        >>> batches = RiskBatches(text, [["b", "a b"]], [[0.4, 0.5]], words, words, batch_tokens=9)
        >>> inputs, labels = next(iter(batches.dataset()))
        >>> inputs["source"].numpy().tolist(), labels.numpy().tolist()
        ([[4, 5, 2]], [[[5, 4, 2], [5, 2, 0], [4, 5, 2]]])
    """

    def __init__(
        self,
        text: ParallelText,
        candidates: Sequence[Sequence[str]],
        costs: Sequence[Sequence[float]] | np.ndarray,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        batch_tokens: int,
        max_buckets: int = 5,
        max_source_length: int = 256,
        max_target_length: int = 256,
        seed: int = 0,
    ) -> None:
        costs = np.asarray(costs, "float32")
        if costs.ndim != 2 or not len(candidates) == len(costs) == len(text):
            raise ValueError(
                f"RiskBatches: expected candidates and costs (sources, K) of {len(text)} sources, received "
                f"candidates of {len(candidates)} and costs of shape {costs.shape}"
            )
        most = max(map(len, candidates))
        if most > costs.shape[1]:
            raise ValueError(
                f"RiskBatches: expected at most K = {costs.shape[1]} candidates of a source, as there are "
                f"costs, received {most}"
            )
        self.seed = seed
        with tf.device("CPU:0"):
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")
        sources = with_end(source_tokenizer.tokenize(tf.constant(text.sources)))
        outputs = _Outputs(text.targets, candidates, costs.shape[1], target_tokenizer)
        lengths = np.stack([sources.row_lengths(), outputs.lengths], axis=1)  # (N, 2)
        fits = np.all(lengths <= (max_source_length, max_target_length), axis=1)
        self.dropped = int(np.sum(~fits))
        if self.dropped == len(text):
            raise ValueError(
                f"RiskBatches: expected sources of at most {max_source_length} tokens with outputs of at "
                f"most {max_target_length}, received {len(text)} that are all longer"
            )
        if self.dropped:
            logger.warning("RiskBatches: dropped %d of %d sources, too long.", self.dropped, len(text))
        room = max(1, batch_tokens // outputs.count)
        shapes = choose_buckets(lengths[fits], room, max_buckets)
        numbers = np.where(fits, bucket_numbers(lengths, shapes), len(shapes))
        self._costs = np.pad(costs, ((0, 1), (0, 0)))  # (N + 1, K), the last row for what fills up batches
        self._buckets = []
        for number, (source_length, target_length) in enumerate(shapes):
            members = np.flatnonzero(numbers == number)
            source = padded_rows(sources, members, source_length)
            labels = outputs.padded(members, target_length)
            self._buckets.append(cut_bucket(members, source, labels, most=room // target_length))
        self.steps_per_epoch = sum(bucket.batches for bucket in self._buckets)
        self.shapes = [
            (bucket.rows, bucket.source.shape[1], *bucket.labels.shape[1:]) for bucket in self._buckets
        ]
        self._count = len(text) - self.dropped

    def dataset(self) -> tf.data.Dataset:
        """The batches as a dataset of one epoch; each time it is iterated is one epoch.

        Returns:
            tf.data.Dataset of known cardinality `steps_per_epoch`.
        """
        ids, outputs = tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None, None), tf.int32)
        costs = tf.TensorSpec((None, None), tf.float32)
        signature = ({"source": ids, "target": outputs, "costs": costs}, outputs)
        return epoch_dataset(self._batches, signature, self.steps_per_epoch)

    def summary(self) -> str:
        """Size and shapes, in one line."""
        shapes = ", ".join(f"{rows}x({source}, {n}x{target})" for rows, source, n, target in self.shapes)
        return (
            f"{self._count:,} sources, each with a reference and {self._costs.shape[1]} candidates, in "
            f"{self.steps_per_epoch:,} batches of {shapes}; {self.dropped:,} dropped as too long"
        )

    def _batches(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The batches of one epoch."""
        # Read when the iterator starts, not when the dataset is made.
        epoch = int(self.epoch.numpy())
        self.epoch.assign(epoch + 1)
        for bucket, rows in batches_of(self._buckets, np.random.default_rng([self.seed, epoch])):
            labels = bucket.labels[rows]
            costs = self._costs[np.append(bucket.members, -1)[rows]]
            yield {"source": bucket.source[rows], "target": shifted(labels), "costs": costs}, labels


class _Outputs:
    """References and candidates of N sources, as ids: `count` = 1 + K of each."""

    def __init__(
        self,
        references: Sequence[str],
        candidates: Sequence[Sequence[str]],
        most: int,
        tokenizer: Tokenizer,
    ) -> None:
        self.count = 1 + most
        texts = [text for pair in zip(references, candidates, strict=True) for text in (pair[0], *pair[1])]
        self._ids = with_end(tokenizer.tokenize(tf.constant(texts)))
        owned = 1 + np.array([len(of_one) for of_one in candidates])  # outputs of each source
        self._first = np.cumsum(owned) - owned  # where they begin
        self._owned = owned
        self.lengths = np.maximum.reduceat(self._ids.row_lengths().numpy(), self._first)  # (N,)

    def padded(self, members: np.ndarray, length: int) -> np.ndarray:
        """Those of the sources `members`, and a row of zeros: int32 (members + 1, 1 + K, length)."""
        place = np.arange(self.count)
        there = place < self._owned[members, None]  # (members, 1 + K)
        numbers = np.where(there, self._first[members, None] + place, 0).reshape(-1)
        rows = padded_rows(self._ids, numbers, length)[:-1].reshape(-1, self.count, length)
        return np.pad(rows * there[..., None], ((0, 1), (0, 0), (0, 0)))
