"""A batch in parts that are computed at the same time, on the cores of a CPU.

XLA shares out large products among the cores, and the steps of a search in a small model have none but the
last one, the logits. But the sources of a batch do not depend on each other: each core can search for some.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from attention_zoo.models.cores import usable_cores

SMALLEST_PART = 4  # hypotheses: fewer are not worth a core of their own
LARGEST_MATRIX = 2**18  # weights: products with larger ones keep all cores busy


def count_parts(decoder: keras.layers.Layer, rows: int, hypotheses: int = 1) -> int:
    """The number of equal parts to search in.

    Args:
        decoder: The decoder of the model, built.
        rows: Rows of the batch.
        hypotheses: Kept for each row.

    Returns:
        At most one part for each core; 1 where there is a GPU or the decoder is large.
    """
    most = min(rows, rows * hypotheses // SMALLEST_PART)
    if most < 2 or _largest_matrix(decoder) > LARGEST_MATRIX:
        return 1
    most = min(most, parts_at_once())
    return next((parts for parts in range(most, 1, -1) if rows % parts == 0), 1)


def in_parts(function: Callable, parts: int, shared: Sequence[str] = ()) -> Callable:
    """A function that computes a batch in parts.

    Args:
        function: Compiled function of named tensors (B, ...) to a nest of tensors (B, ...); None stands for
            what is not there.
        parts: Number of parts, which divides B.
        shared: Names of the arguments that every part gets as they are.

    Returns:
        A function of the same arguments with the same results.
    """

    def compute(**tensors: Any) -> Any:
        pieces = {
            name: [x] * parts if x is None or name in shared else tf.split(x, parts)
            for name, x in tensors.items()
        }
        # No part needs another one, and so TensorFlow runs them at the same time.
        results = [function(**{name: of[part] for name, of in pieces.items()}) for part in range(parts)]
        return keras.tree.map_structure(_joined, *results)

    return tf.function(compute, autograph=False)


def _joined(*pieces: Any) -> Any:
    """Parts (B / parts, ...) as one, (B, ...)."""
    return None if pieces[0] is None else tf.concat(pieces, axis=0)


def _largest_matrix(decoder: keras.layers.Layer) -> int:
    """The most weights that a step multiplies by at once, but for the logits."""
    shapes = [weight.shape for weight in decoder.weights]
    return max(math.prod(shape) for shape in shapes if decoder.vocabulary_size not in shape)


def parts_at_once() -> int:
    """How many parts TensorFlow computes at the same time."""
    if tf.config.list_logical_devices("GPU"):
        return 1
    threading = tf.config.threading
    asked = [  # 0: as many as there are cores
        threading.get_intra_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0),
        threading.get_inter_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTEROP_THREADS") or 0),
    ]
    return min(number or usable_cores() for number in asked)
