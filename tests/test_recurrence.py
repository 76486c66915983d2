import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import random
from keras import ops

from attention_zoo.ops import recurrence
from attention_zoo.ops.recurrence import scan


def make_step(kernel):
    """A recurrence over nests of several dtypes; where the gate is closed, the state stays."""

    def step(state, inputs):
        moved = ops.tanh(ops.matmul(state["hidden"], kernel) + inputs["x"])
        hidden = ops.where(inputs["gate"], moved, state["hidden"])
        count = state["count"] + 1
        return {"hidden": hidden, "count": count}, (hidden, [count, ops.sum(hidden, axis=-1)])

    return step


def python_loop(step, inputs, state):
    outputs = []
    for t in range(inputs["x"].shape[0]):
        state, output = step(state, {name: x[t] for name, x in inputs.items()})
        outputs.append(output)
    return state, tf.nest.map_structure(lambda *xs: ops.stack(xs), *outputs)


def with_gradients(loop, x, gate, hidden, kernel):
    """Last state, outputs, and the gradients for everything that is differentiable."""
    with tf.GradientTape() as tape:
        tape.watch([x, hidden, kernel])
        state = {"hidden": hidden, "count": ops.convert_to_tensor(10)}
        last, outputs = loop(make_step(kernel), {"x": x, "gate": gate}, state)
        loss = ops.sum(ops.sin(outputs[0])) + ops.sum(outputs[1][1] ** 2) + ops.sum(last["hidden"])
    return last, outputs, tape.gradient(loss, [x, hidden, kernel])


def example(length, batch):
    """Inputs (x, gate), first state and kernel."""
    x, gate = random(length, batch, 3), random(length, batch, 1) > -0.5
    return [tf.constant(a) for a in (x, gate, random(batch, 3), random(3, 3))]


def assert_equal_nests(actual, expected):
    tf.nest.assert_same_structure(actual, expected)
    for x, y in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_running_sums_by_hand():
    last, sums = scan(lambda total, x: (total + x, 10 * total), ops.array([1, 2, 3]), ops.array(5))
    np.testing.assert_array_equal(sums, [50, 60, 80])
    assert int(last) == 11


@pytest.mark.parametrize("length", [1, 4])
def test_equals_a_python_loop(length):
    inputs = example(length, batch=2)
    assert_equal_nests(with_gradients(scan, *inputs), with_gradients(python_loop, *inputs))


@pytest.mark.parametrize("xla", [False, True])
def test_compiles_with_unknown_batch_and_length(xla):
    signature = [
        tf.TensorSpec((None, None, 3)),
        tf.TensorSpec((None, None, 1), tf.bool),
        tf.TensorSpec((None, 3)),
        tf.TensorSpec((3, 3)),
    ]
    compiled = tf.function(
        lambda *inputs: with_gradients(scan, *inputs), input_signature=signature, jit_compile=xla
    )
    for length, batch in ((4, 2), (1, 1)):
        inputs = example(length, batch)
        assert_equal_nests(compiled(*inputs), with_gradients(python_loop, *inputs))


def test_static_shapes_survive():
    """Layers after the loop are built from the width of its outputs."""

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 3))])
    def run(x):
        _, outputs = scan(lambda state, x: (state + x, (state, x[:, :1])), x, tf.zeros((2, 3)))
        assert [tuple(y.shape) for y in outputs] == [(None, 2, 3), (None, 2, 1)]
        return outputs

    run(tf.ones((4, 2, 3)))


def test_other_backends_scan_through_keras(monkeypatch):
    """Keras' scan, here on TensorFlow without XLA, takes the arguments that ours gives it."""
    inputs, state = {"x": random(3, 2), "y": random(3, 2, seed=1)}, [random(2), random(2, seed=1)]

    def step(state, inputs):
        state = [state[0] + inputs["x"], state[1] * inputs["y"]]
        return state, [state[0], state[0] - state[1]]

    ours = scan(step, inputs, state)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(recurrence, "_tensorflow_scan", None)
    assert_equal_nests(scan(step, inputs, state), ours)


def test_weights_are_read_once():
    """Else the backward pass would need a copy of them for every position."""
    kernel = keras.Variable(random(3, 3))
    x, gate, hidden, _ = example(length=4, batch=2)

    @tf.function(autograph=False)
    def run():
        state = {"hidden": hidden, "count": ops.convert_to_tensor(10)}
        with tf.GradientTape() as tape:
            _, outputs = scan(make_step(kernel), {"x": x, "gate": gate}, state, weights=[kernel])
            loss = ops.sum(outputs[0])
        return tape.gradient(loss, kernel.value)

    graph = run.get_concrete_function().graph.as_graph_def()
    loops = [f for f in graph.library.function if "while_body" in f.signature.name]
    assert len(loops) >= 2  # forward and backward
    assert not [node.name for f in loops for node in f.node_def if node.op == "ReadVariableOp"]
    assert [node for node in graph.node if node.op == "ReadVariableOp"]
