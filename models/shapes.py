"""The few shapes that texts are padded to: every new one costs an XLA compile."""

from typing import Any

import tensorflow as tf

# Sentences are padded to a few lengths (16, 32, 64, ...) and batches to a few sizes (1, 8, 32, and doubled
# from there on).
SMALLEST_LENGTH = 16
BATCH_SIZES = (1, 8, 32)


def most_tokens(source_tokens: Any) -> Any:
    """Most tokens of a translation: room for languages that need twice as many, and for short texts."""
    return 2 * source_tokens + 20


def padded_length(length: int, most: int | None = None) -> int:
    """The length, with the end token, that a sentence of this length is padded to; `most` if that is less."""
    padded = max(SMALLEST_LENGTH, 1 << (length - 1).bit_length())
    return padded if most is None else max(length, min(padded, most))


def padded_length_in_graph(length: Any, most: int | None = None) -> Any:
    """The same for a scalar tensor."""
    lengths = tf.constant([SMALLEST_LENGTH << power for power in range(24)])
    padded = tf.reduce_min(tf.boolean_mask(lengths, lengths >= length))
    return padded if most is None else tf.maximum(length, tf.minimum(padded, most))


def padded_count(count: int, batch_size: int) -> int:
    """The number of rows that a batch of this many texts is padded to."""
    sizes = [*BATCH_SIZES, 1 << (count - 1).bit_length()]
    return min(batch_size, next(size for size in sizes if size >= count))
