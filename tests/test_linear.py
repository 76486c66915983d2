import re

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from attention_zoo.layers.dense import Dense
from attention_zoo.ops.linear import bfloat16_products, linear


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def rounded(x):
    """To 8 significant bits, the nearest, by arithmetic of float32."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def product_and_gradients(x, weight, upstream, in_rows=False, active=True, bias=None):
    @tf.function(jit_compile=True)
    def compute(upstream, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            with bfloat16_products(active):
                product = linear(*inputs, in_rows=in_rows)
            loss = tf.reduce_sum(tf.cast(product, "float32") * upstream)
        return product, *tape.gradient(loss, inputs)

    values = (upstream, x, weight) if bias is None else (upstream, x, weight, bias)
    return compute(*[tf.convert_to_tensor(value) for value in values])


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_any_rank(shape):
    x, weight = random(*shape), random(4, 5, seed=1)
    np.testing.assert_allclose(linear(x, weight), x @ weight, atol=1e-6)
    np.testing.assert_allclose(linear(x, weight.T, in_rows=True), x @ weight, atol=1e-6)
    bias = random(5, seed=2)
    np.testing.assert_allclose(linear(x, weight, bias), x @ weight + bias, atol=1e-6)
    np.testing.assert_allclose(linear(x, weight.T, bias, in_rows=True), x @ weight + bias, atol=1e-6)


# Sizes of 1 and odd ones are those for which XLA might take another way.
@pytest.mark.parametrize(
    ("batch", "length", "width", "units"),
    [(2, 32, 64, 40), (4, 8, 24, 100), (1, 1, 64, 6), (3, 1, 5, 7), (5, 5, 33, 3), (1, 2, 2, 1)],
)
@pytest.mark.parametrize("in_rows", [False, True])
def test_products_of_rounded_numbers(batch, length, width, units, in_rows):
    x, weight, upstream, bias = (
        random(batch, length, width),
        random(width, units, seed=1),
        random(batch, length, units, seed=2),
        random(units, seed=3),
    )
    given = weight.T if in_rows else weight
    product, for_x, for_weight = product_and_gradients(x, given, upstream, in_rows)
    np.testing.assert_allclose(product, rounded(x) @ rounded(weight), atol=2e-5)
    with_bias, *others, for_bias = product_and_gradients(x, given, upstream, in_rows, bias=bias)
    np.testing.assert_allclose(with_bias, product + bias, atol=1e-6)
    for gradient, other in zip(others, (for_x, for_weight), strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-6)
    np.testing.assert_allclose(for_bias, rounded(upstream).sum((0, 1)), atol=2e-5)
    np.testing.assert_allclose(for_x, rounded(upstream) @ rounded(weight).T, atol=2e-5)
    expected = np.einsum("bti,btj->ij", rounded(x), rounded(upstream))
    np.testing.assert_allclose(for_weight, expected.T if in_rows else expected, atol=2e-5)
    assert product.dtype == for_x.dtype == for_weight.dtype == "float32"


@pytest.mark.parametrize("in_rows", [False, True])
def test_only_within_the_scope_and_while_it_is_active(in_rows):
    x, weight, upstream = random(4, 6), random(6, 8, seed=1), random(4, 8, seed=2)
    given = weight.T if in_rows else weight
    product, for_x, for_weight = product_and_gradients(x, given, upstream, in_rows, active=False)
    np.testing.assert_allclose(product, x @ weight, atol=1e-6)
    np.testing.assert_allclose(for_x, upstream @ weight.T, atol=1e-6)
    expected = x.T @ upstream
    np.testing.assert_allclose(for_weight, expected.T if in_rows else expected, atol=1e-6)
    with bfloat16_products(), bfloat16_products(False):
        pass
    np.testing.assert_allclose(linear(x, weight), x @ weight, atol=1e-6)
    difference = rounded(x) @ rounded(weight) - x @ weight
    assert np.abs(difference).max() > 1e-3  # which the others would have missed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype(dtype):
    x, weight, upstream = random(4, 6), random(6, 8, seed=1), random(4, 8, seed=2)
    results = product_and_gradients(ops.cast(x, dtype), ops.cast(weight, dtype), upstream)
    assert all(result.dtype == dtype for result in results)
    expected = x @ weight, upstream @ weight.T, x.T @ upstream
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(ops.cast(result, "float32"), value, atol=0.1)


@pytest.mark.parametrize("in_rows", [False, True])
def test_the_program_multiplies_numbers_of_bfloat16(in_rows):
    @tf.function(jit_compile=True)
    def compute(x, weight, upstream):
        with tf.GradientTape() as tape, bfloat16_products():
            tape.watch([x, weight])
            product = linear(x, weight, in_rows=in_rows)
        return product, tape.gradient(product, [x, weight], upstream)

    weight = tf.ones((96, 128) if in_rows else (128, 96))
    arguments = tf.ones((64, 128)), weight, tf.ones((64, 96))
    program = compute.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    types = dict(re.findall(r"%?([\w.-]+) = (\w+)\[", program))
    products = re.findall(r" = f32\[.* dot\(%?([\w.-]+), %?([\w.-]+)\)", program)
    assert [[types[operand] for operand in product] for product in products] == [["bf16", "bf16"]] * 3


def test_dense_is_that_of_keras():
    layer = Dense(5, activation="relu")
    x = random(2, 3, 4)
    output = layer(x)
    np.testing.assert_allclose(
        output, np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0), atol=1e-6
    )
    assert Dense(2, use_bias=False)(x).shape == (2, 3, 2)
