"""Logits of all tokens, from vectors in rows and in columns."""

import re

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from attention_zoo.models import token_logits as module
from attention_zoo.models.token_logits import in_columns, token_logits

V, D = 640, 64


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_change_nothing(rows, dtype):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(V, D)).astype("float32")
    x = ops.cast(generator.normal(size=(1, rows, D)), dtype)
    expected = ops.matmul(ops.cast(x, "float32"), kernel.T)
    for columns in (None, in_columns(kernel, dtype)):
        logits = token_logits(x, kernel, columns)
        assert logits.dtype == "float32"
        np.testing.assert_allclose(logits, expected, atol=1e-4 if dtype == "float32" else 0.5)


@pytest.mark.parametrize(("rows", "most_weights"), [(4, V * D), (4, V * D - 1), (1, V * D)])
def test_columns_serve_a_few_rows_of_a_small_matrix(rows, most_weights, monkeypatch):
    monkeypatch.setattr(module, "MOST_WEIGHTS", most_weights)

    @tf.function(jit_compile=True, autograph=False)
    def search(x, kernel):
        columns = in_columns(kernel, "float32")
        return tf.while_loop(
            lambda i, x: i < 5,
            lambda i, x: (i + 1, x + token_logits(x, kernel, columns)[..., :D]),
            (0, x),
        )[1]

    arguments = tf.ones((1, rows, D)), tf.ones((V, D))
    program = search.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    (loop,) = re.findall(r" = \((.*)\) while\(", program)  # what it carries
    few = rows == 4 and most_weights == V * D
    assert (f"f32[{D},{V}]" in loop, f"f32[{V},{D}]" in loop) == (few, not few)
