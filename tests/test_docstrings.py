"""The examples in docstrings say what happens."""

import doctest
import importlib
import pathlib

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = {"np": np, "keras": keras, "ops": keras.ops}  # what every example may take for granted


def modules_with_examples():
    paths = [
        path for folder in ("attention_zoo", "models", "training") for path in (ROOT / folder).rglob("*.py")
    ]
    examples = [path.relative_to(ROOT) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.with_suffix("").parts) for path in examples)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    module = importlib.import_module(f"attention_zoo.{name.removeprefix('attention_zoo.')}")
    results = doctest.testmod(module, extraglobs=NAMES)
    assert results.attempted > 0
    assert results.failed == 0
