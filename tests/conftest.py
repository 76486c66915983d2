"""Words that the tests of the models share, and how TensorFlow is set up for all tests."""

import os

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import WhitespaceTokenizer

# Two devices for tests of tf.distribute, before TensorFlow looks at them; all else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# What XLA compiles runs a few times here: to optimise it would take longer than it saves.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Commands leave nothing in the home of who runs the tests.
os.environ["ATTENTION_ZOO_COMPILATION_CACHE"] = ""

WORDS = ["ba", "do", "fi", "ge", "ku", "la", "mo", "ni"]
LENGTH = 6  # of every row, END included

# The files that take longest: several processes begin with them, so that none is alone with one at the end.
LONG = [
    f"test_{name}.py"
    for name in (
        "workers",
        "readme",
        "captioner",
        "distribution",
        "translator",
        "teacher_forcing",
        "compositions",
        "transformer_decoder",
        "saving",
        "run",
        "resume",
        "captioning_task",
    )
]


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    names = [*LONG, *(item.path.name for item in items)]
    items.sort(key=lambda item: names.index(item.path.name))


def random_texts(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, LENGTH))) for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizer():
    return WhitespaceTokenizer(WORDS)
