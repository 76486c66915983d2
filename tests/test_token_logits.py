"""Logits of all tokens, from vectors in rows and in columns."""

import re

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from attention_zoo.models.token_logits import in_blocks, token_logits
from attention_zoo.ops.linear import bfloat16_products

V, D = 600, 64  # not a whole number of blocks of 64


@pytest.mark.parametrize("size", [V, 640, 10])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_change_nothing(rows, dtype, size):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(size, D)).astype("float32")
    x = ops.cast(generator.normal(size=(1, rows, D)), dtype)
    expected = ops.matmul(ops.cast(x, "float32"), kernel.T)
    for blocks in (None, in_blocks(kernel, dtype)):
        logits = token_logits(x, kernel, blocks)
        assert logits.dtype == "float32"
        np.testing.assert_allclose(logits, expected, atol=1e-4 if dtype == "float32" else 0.5)


WAYS = {
    "blocks": f"f32[10,{64 * D}]",
    "rows": f"f32[{V},{D}]",
    "rounded rows": f"bf16[{V},{D}]",
}


@pytest.mark.parametrize(
    ("rows", "rounding", "way"),
    [(4, False, "blocks"), (1, False, "rows"), (16, True, "rounded rows")],
)
def test_the_loop_carries_the_matrix_as_it_multiplies_it(rows, rounding, way):
    @tf.function(jit_compile=True, autograph=False)
    def search(x, kernel):
        blocks = in_blocks(kernel, "float32")
        with bfloat16_products(rounding):
            return tf.while_loop(
                lambda i, x: i < 5,
                lambda i, x: (i + 1, x + token_logits(x, kernel, blocks)[..., :D]),
                (0, x),
            )[1]

    arguments = tf.ones((1, rows, D)), tf.ones((V, D))
    program = search.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    # The product of blocks is in a loop of its own, of a single round.
    assert len(re.findall(r" while\(", program)) == (2 if way == "blocks" else 1)
    (loop,) = re.findall(r" = \((.*)\) while\(", program[program.index("ENTRY") :])
    carried = re.findall(r"\w+\[[\d,]+\]", loop)
    assert [name for name, shape in WAYS.items() if shape in carried] == [way]
