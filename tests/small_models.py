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


def make_batch(rows=6, seed=0, empty=1, length=T, vocabulary_size=V):
    """Sentences of different lengths to copy; the last rows, as many as `empty`, are nothing but padding."""
    random = np.random.default_rng(seed)
    labels = np.zeros((rows, length), "int32")
    for row in labels[: rows - empty]:
        count = random.integers(1, length)
        row[:count] = random.integers(4, vocabulary_size, count)
        row[count] = END_ID
    return {"source": labels, "target": shifted(labels)}, labels


def shifted(labels):
    """What a decoder reads that shall say these labels."""
    target = np.zeros_like(labels)
    target[:, 1:] = np.where(labels[:, :-1] == END_ID, 0, labels[:, :-1])
    target[labels.any(axis=1), 0] = START_ID
    return target
