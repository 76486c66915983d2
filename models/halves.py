"""The two halves of a training batch, computed at the same time on a CPU.

XLA shares out each product of a step among the cores, which then wait for each other some hundred times in a
small model's step. Half a batch each keeps two of them busy. (More parts than two have not been tried.)

TensorFlow runs functions at the same time if none of them changes a variable. The states of dropout are
therefore handed to each half, and changed when both are through.
"""

from typing import Any

import keras
import tensorflow as tf

from attention_zoo.layers.dropout import Dropout
from attention_zoo.models import parallel_rows


def can_be_halved(model: keras.Model, rows: int | None) -> bool:
    """Whether to compute batches of so many rows (None: not known yet) in halves.

    Not on a single core, nor with a GPU, and not if a layer has variables that a step may change, other than
    the states of `Dropout` here: those of `BatchNormalization`, which needs the whole batch, or of Keras's
    own dropout.
    """
    if rows == 1 or parallel_rows.parts_at_once() < 2:
        return False
    return not any(
        layer._non_trainable_variables or (layer._seed_generators and not isinstance(layer, Dropout))
        for layer in model._flatten_layers()
    )


class DropoutStates:
    """What a model's dropout draws its random numbers from, for functions that must not change it.

    Args:
        model: An `EncoderDecoder` that can be halved, built.
    """

    def __init__(self, model: keras.Model) -> None:
        self.generators = model._dropout_generators()

    def read(self) -> Any:
        """The states, uint32 (G, 2)."""
        states = [tf.cast(generator.state, "uint32") for generator in self.generators]
        return tf.stack(states) if states else tf.zeros((0, 2), "uint32")

    def advance(self, drawn: Any) -> None:
        """Takes note of how many seeds each layer has drawn, int (G,)."""
        for index, generator in enumerate(self.generators):
            generator.state.assign(generator.state + tf.cast([0, drawn[index]], generator.state.dtype))
