"""Where random numbers start from: the seed of each call, on each replica, and in each part of a batch."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

_scope = threading.local()


def next_seed(generator: keras.random.SeedGenerator) -> Any:
    """The next seed of a generator, integer (2,); within `part_of_batch`, of the state that it has there."""
    part = getattr(_scope, "part", None)
    return generator.next() if part is None else part.next_seed(generator)


def entries_before(size: Any) -> Any:
    """How many entries the parts of the batch before this one have, if each has `size` of them.

    The random number of entry i of a part is that of entry `entries_before(size) + i` of the whole.

    Returns:
        uint32 scalar; 0 outside of `part_of_batch`.
    """
    part = getattr(_scope, "part", None)
    return 0 if part is None else ops.cast(part.number, "uint32") * ops.cast(size, "uint32")


@contextlib.contextmanager
def part_of_batch(
    number: Any, states: Any, generators: Sequence[keras.random.SeedGenerator]
) -> Iterator[list[int]]:
    """A scope that draws for a part of a batch what the whole batch would draw, and changes no state.

    Several parts can then be computed at the same time: TensorFlow never runs a function that changes a
    variable beside another one that needs it.

    Args:
        number: Integer, how many parts of the same size come before.
        states: uint32 (G, 2), of each generator, for all parts the same: a layer's seed, and the number of
            its call.
        generators: Those; others draw as ever.

    Yields:
        How many seeds each generator has given so far, which its number is to be raised by in the end.

    Example:
        >>> generator = keras.random.SeedGenerator(7)
        >>> with part_of_batch(1, np.array([[7, 5]], "uint32"), [generator]) as drawn:
        ...     seeds = [next_seed(generator).tolist() for _ in range(2)]
        ...     before = int(entries_before(100))
        >>> seeds, drawn, before
        ([[7, 5], [7, 6]], [2], 100)
    """
    outer = getattr(_scope, "part", None)
    _scope.part = _Part(number, states, generators)
    try:
        yield _scope.part.drawn
    finally:
        _scope.part = outer


class _Part:
    def __init__(self, number: Any, states: Any, generators: Sequence[keras.random.SeedGenerator]) -> None:
        self.number = number
        self.states = states
        self.generators = generators
        self.drawn = [0] * len(generators)

    def next_seed(self, generator: keras.random.SeedGenerator) -> Any:
        for index, known in enumerate(self.generators):
            if known is generator:
                self.drawn[index] += 1
                return self.states[index] + np.array([0, self.drawn[index] - 1], "uint32")
        return generator.next()


def replica_seed(seed: Any) -> Any:
    """Makes a seed that all replicas share each replica's own; that of the first stays as it is.

    Args:
        seed: Integer (2,), as `next_seed` returns it.

    Returns:
        Integer (2,); the seed itself where there are no replicas.
    """
    if keras.backend.backend() != "tensorflow":
        return seed
    import tensorflow as tf  # tf.distribute is TensorFlow's alone

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = ops.cast(context.replica_id_in_sync_group, "uint32")
    # Far from the small numbers that layers and calls are counted with.
    return ops.cast(seed, "uint32") + ops.stack([replica * np.uint32(0x9E3779B1), np.uint32(0)])
