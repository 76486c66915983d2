"""A `tf.function` that finds its program faster."""

import pytest
import tensorflow as tf

from attention_zoo.models.compiled_function import CompiledFunction


@pytest.fixture
def added():
    weight = tf.Variable(1.0)

    def add(x, y):
        return x + weight if y is None else x + y

    return CompiledFunction(tf.function(add, autograph=False)), weight


def test_one_program_for_each_combination_of_shapes_types_and_what_is_there(added):
    add, weight = added
    inputs = [
        {"x": tf.zeros(2), "y": None},
        {"x": tf.zeros(3), "y": None},
        {"x": tf.zeros(2), "y": tf.ones(2)},
        {"x": tf.zeros(2, "int32"), "y": tf.ones(2, "int32")},
        {"x": tf.zeros(()), "y": tf.ones(2)},
    ]
    for _ in range(2):
        for arguments in inputs:
            y = weight if arguments["y"] is None else arguments["y"]
            tf.debugging.assert_equal(add(**arguments), arguments["x"] + tf.cast(y, arguments["x"].dtype))
        weight.assign_add(1.0)  # what a program reads, not what it was made with
    assert add.function.experimental_get_tracing_count() == len(inputs)


def test_inside_of_a_graph(added):
    add, _ = added
    whole = tf.function(lambda x: add(x=x, y=None), input_signature=[tf.TensorSpec((None,))])
    assert whole(tf.zeros(2)).numpy().tolist() == [1.0, 1.0]


def test_functions_that_run_eagerly_do():
    tf.config.run_functions_eagerly(True)
    try:
        eager = CompiledFunction(tf.function(lambda x: tf.constant(tf.executing_eagerly())))
        assert eager(x=tf.zeros(2)).numpy()
    finally:
        tf.config.run_functions_eagerly(False)


def test_several_devices_are_left_to_tensorflow(added, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    add = CompiledFunction(added[0].function)
    assert add(x=tf.zeros(2), y=None).shape == (2,)
    assert not add._programs
