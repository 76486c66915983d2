"""One small trained translator that the tests of the models share: XLA compiles are what takes time here."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import Translator, WhitespaceTokenizer
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID

# Two devices for tests of tf.distribute, before TensorFlow looks at them; all else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

WORDS = ["ba", "do", "fi", "ge", "ku", "la", "mo", "ni"]
LENGTH = 6  # of every row, END included


def random_texts(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, LENGTH))) for _ in range(count)]


def copy_task(tokenizer, texts):
    """Batches that teach to say what was read."""
    ids = [row[: LENGTH - 1] for row in tokenizer.tokenize(texts).to_list()]

    def padded(rows):
        return np.array([row + [PAD_ID] * (LENGTH - len(row)) for row in rows], "int32")

    labels = padded([[*row, END_ID] for row in ids])
    return {"source": labels, "target": padded([[START_ID, *row] for row in ids])}, labels


@pytest.fixture(scope="session")
def tokenizer():
    return WhitespaceTokenizer(WORDS)


@pytest.fixture(scope="session")
def training(tokenizer):
    """A translator that learned to copy, and the history of its training. Tests must not train it on."""
    keras.utils.set_random_seed(1)
    model = Translator.from_preset(
        "bahdanau",
        tokenizer,
        tokenizer,
        encoder={"embedding_dim": 24, "units": 16, "dropout": 0.1},
        decoder={"embedding_dim": 24, "units": 32, "dropout": 0.1, "attention": {"units": 16}},
        max_source_length=40,
    )
    model.compile(keras.optimizers.Adam(0.01))
    inputs, labels = copy_task(tokenizer, random_texts(1024, seed=2))
    history = model.fit(
        inputs, labels, batch_size=64, epochs=20, verbose=0,
        validation_data=copy_task(tokenizer, random_texts(64, seed=3)),
    )  # fmt: skip
    return model, history


@pytest.fixture(scope="session")
def translator(training):
    return training[0]
