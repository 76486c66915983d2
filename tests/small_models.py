"""A model that compiles quickly, and batches for it."""

import keras
import numpy as np

from attention_zoo.layers import AdditiveAttention
from attention_zoo.models import EncoderDecoder, RNNDecoder, RNNEncoder
from attention_zoo.models.tokenizer import END_ID, START_ID

V, T = 9, 4


def make_model(dropout=0.0, seed=1, attention=True, dtype=None, **compile_arguments):
    keras.utils.set_random_seed(seed)
    model = EncoderDecoder(
        RNNEncoder(V, 5, 4, dropout=dropout, dtype=dtype),
        RNNDecoder(
            V, 5, 6, AdditiveAttention(4, dtype=dtype) if attention else None, dropout=dropout, dtype=dtype
        ),
        dtype=dtype,
    )
    model.build()
    if compile_arguments:
        model.compile(**{"optimizer": keras.optimizers.Adam(0.02), **compile_arguments})
    return model


def make_batch(rows=6, seed=0):
    """Sentences of different lengths to copy; the last row is nothing but padding."""
    random = np.random.default_rng(seed)
    labels = np.zeros((rows, T), "int32")
    for row in labels[:-1]:
        count = random.integers(1, T)
        row[:count] = random.integers(4, V, count)
        row[count] = END_ID
    target = np.zeros_like(labels)
    target[:, 0] = START_ID
    target[:, 1:] = np.where(labels[:, :-1] == END_ID, 0, labels[:, :-1])
    target[-1] = 0
    return {"source": labels, "target": target}, labels
