"""Measures attention layers beside those of Keras, on the device that a backend finds (a GPU, or processors).

    python benchmarks/layers.py [--backend jax] [--policy float32] [--rounds 5] [--only causal]

The layers are written in `keras.ops`: this needs Keras and TensorFlow, or Keras and JAX alone. A time is
that of forward and backward pass, compiled with XLA: the gradients of the sum of the squared outputs for the
inputs and all weights. The two take turns; a number is the median of the rounds, and in a round that of five
runs. Where Keras has the same layer, it gets the same weights, and the table says how far the outputs are
apart at most, relative to the largest of them.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import machine
import numpy as np
from samples import summarize, table

RUNS = 5  # in a round


class Case(NamedTuple):
    """What is compared.

    Attributes:
        ours: Makes the output of Attention Zoo's layer from the inputs.
        theirs: Makes that of Keras's, with as many weights; None where it has no such layer.
        shapes: Of the inputs.
    """

    ours: Callable
    theirs: Callable | None
    shapes: list[tuple[int, ...]]


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backend", choices=["tensorflow", "jax"], help="of Keras; its own choice if left out"
    )
    parser.add_argument("--policy", default="float32", help="what is computed in, e.g. mixed_bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the layers in whose names this occurs")
    options = parser.parse_args(arguments)
    if options.backend:
        os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    if options.backend not in (None, keras.backend.backend()):
        parser.error(f"--backend: Keras is imported already, with {keras.backend.backend()}")
    chosen = {name: case for name, case in cases().items() if options.only in name}
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, received {options.rounds}")
    if not chosen:
        parser.error(f"--only: expected a part of one of {'; '.join(cases())}, received {options.only!r}")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(options.policy)
    try:
        rows = [measure(name, case, options.rounds) for name, case in chosen.items()]
    finally:
        keras.config.set_dtype_policy(before)
    print(table(["layer", "inputs", "Attention Zoo, ms", "Keras, ms", "of ours", "outputs differ by"], rows))
    print(f"\n{_device()}, Keras {keras.__version__} on {keras.backend.backend()}, {options.policy}.")


def cases() -> dict[str, Case]:
    """What is measured, by name."""
    import keras

    from attention_zoo import layers

    def heads(layer: Callable, **arguments: Any) -> Callable:
        return lambda x: layer(8, 64)(x, x, **arguments)

    def both_heads(shape: tuple[int, ...], **arguments: Any) -> Case:
        ours, theirs = (heads(place.MultiHeadAttention, **arguments) for place in (layers, keras.layers))
        return Case(ours, theirs, [shape])

    def keras_additive(query: Any, value: Any) -> Any:
        projected = [keras.layers.Dense(256, use_bias=False)(x) for x in (query, value)]
        return keras.layers.AdditiveAttention()([projected[0], value, projected[1]])

    return {
        "MultiHeadAttention, 8 x 64": both_heads((64, 64, 512)),
        "MultiHeadAttention, 8 x 64, causal": both_heads((64, 64, 512), use_causal_mask=True),
        "MultiHeadAttention, 8 x 64, causal, long": both_heads((1, 2048, 512), use_causal_mask=True),
        "LuongAttention, dot": Case(
            lambda query, value: layers.LuongAttention()(query, value),
            lambda query, value: keras.layers.Attention()([query, value]),
            [(64, 32, 512), (64, 32, 512)],
        ),
        "AdditiveAttention, 256": Case(
            lambda query, value: layers.AdditiveAttention(256)(query, value),
            keras_additive,
            [(64, 32, 256), (64, 32, 512)],
        ),
        "SpatialAttention, 512": Case(
            lambda query, value: layers.SpatialAttention(512)(query, value),
            None,
            [(64, 16, 512), (64, 7, 7, 1280)],
        ),
        "ConvSelfAttention": Case(lambda x: layers.ConvSelfAttention()(x), None, [(16, 32, 32, 64)]),
    }


def measure(name: str, case: Case, rounds: int) -> list[str]:
    """A row of the table."""
    import keras

    random = np.random.default_rng(1)
    inputs = [keras.ops.convert_to_tensor(random.normal(size=shape), "float32") for shape in case.shapes]
    models, difference = {}, ""
    for version, build in (("ours", case.ours), ("theirs", case.theirs)):
        if build is not None:
            places = [keras.Input(batch_shape=shape) for shape in case.shapes]
            models[version] = keras.Model(places, build(*places))
    if case.theirs:
        # Keras keeps the heads apart in its weights.
        pairs = zip(models["ours"].get_weights(), models["theirs"].get_weights(), strict=True)
        models["theirs"].set_weights([mine.reshape(its.shape) for mine, its in pairs])
        ours, theirs = (keras.ops.convert_to_numpy(model(inputs)) for model in models.values())
        difference = f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"
    steps = {version: _gradients(model) for version, model in models.items()}
    times: dict[str, list[float]] = {version: [] for version in steps}
    for step in steps.values():
        step(inputs)  # compiles
    for _ in range(rounds):
        for version, step in steps.items():
            times[version].append(statistics.median(_milliseconds(step, inputs) for _ in range(RUNS)))
    found = {version: summarize((ms, None) for ms in medians) for version, medians in times.items()}
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in case.shapes)
    if "theirs" not in found:
        return [name, shapes, str(found["ours"]), "", "", ""]
    ratio = f"{found['theirs'].median / found['ours'].median:.2f}x"
    return [name, shapes, str(found["ours"]), str(found["theirs"]), ratio, difference]


def _gradients(model: Any) -> Callable:
    """A compiled function of the inputs that returns when all gradients are there."""
    import keras

    weights = model.trainable_variables
    if keras.backend.backend() == "jax":
        import jax

        state = [variable.value for variable in model.non_trainable_variables]

        def loss(values: Any, inputs: Any) -> Any:
            output = model.stateless_call(values, state, inputs)[0]
            return keras.ops.sum(keras.ops.square(output))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1)))
        values = [variable.value for variable in weights]
        return lambda inputs: jax.block_until_ready(compiled(values, inputs))

    import tensorflow as tf

    @tf.function(jit_compile=True)
    def gradients(inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(tf.square(model(inputs)))
        return loss, tape.gradient(loss, [*weights, *inputs])

    # One program computes all of them: when the loss is there, so are they.
    return lambda inputs: gradients(inputs)[0].numpy()


def _milliseconds(step: Callable, inputs: Any) -> float:
    start = time.perf_counter()
    step(inputs)
    return 1000 * (time.perf_counter() - start)


def _device() -> str:
    import keras

    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return machine.description() if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpu)["device_name"]
    return machine.description()


if __name__ == "__main__":
    main()
