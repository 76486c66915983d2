"""Parts of batches and sums over replicas, against NumPy; whole trainings are in test_distribution.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models import replicas
from attention_zoo.training import strategies


@pytest.fixture(scope="module")
def mirrored():
    """On the logical devices that conftest.py makes; a process takes one such strategy."""
    return strategies.strategy("mirrored")


def on_each(strategy, function):
    """What a function returns on each replica, in a graph as in `fit`."""

    @tf.function
    def run():
        results = strategy.run(function)
        return keras.tree.map_structure(strategy.experimental_local_results, results)

    return run()


def replica_number():
    return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, "float32")


class TestRows:
    @pytest.mark.parametrize("rows", [1, 4, 6, 7])
    @pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4)])
    def test_stacked(self, rows, shape):
        x = np.random.default_rng(0).normal(size=(rows, *shape))
        stacked = replicas.stack_rows(tf.constant(x), 3).numpy()
        each = -(-rows // 3)
        assert stacked.shape == (3, each, *shape)
        flat = stacked.reshape(3 * each, *shape)
        np.testing.assert_array_equal(flat[:rows], x)
        np.testing.assert_array_equal(flat[rows:], np.zeros((3 * each - rows, *shape)))

    def test_nests_with_nothing_inside(self):
        x = np.arange(15).reshape(5, 3)
        batch = ({"source": tf.constant(x), "target": None}, tf.constant(x[:, 0]), None)
        parts = replicas.split_rows(batch, 2)
        assert len(parts) == 2
        for part, rows in zip(parts, (x[:3], np.append(x[3:], [[0, 0, 0]], axis=0)), strict=True):
            inputs, labels, weights = part
            assert set(inputs) == {"source", "target"}
            assert inputs["target"] is None and weights is None
            np.testing.assert_array_equal(inputs["source"], rows)
            np.testing.assert_array_equal(labels, rows[:, 0])

    def test_one_part_is_the_batch_itself(self):
        batch = (tf.zeros((2, 3)), None)
        (part,) = replicas.split_rows(batch, 1)
        assert part is batch

    def test_types_stay(self):
        batch = {"ids": tf.ones(3, tf.int32), "mask": tf.constant([True] * 3), "half": tf.ones(3, tf.float16)}
        for part in replicas.split_rows(batch, 2):
            assert {name: x.dtype for name, x in part.items()} == {name: x.dtype for name, x in batch.items()}
        assert replicas.stack_rows(batch["mask"], 2).numpy().tolist() == [[True, True], [True, False]]

    def test_sizes_that_are_not_known_before(self):
        """As in the batches of a dataset, of which the last one is smaller."""
        specification = tf.TensorSpec((None, None, 2), tf.int32)
        split = tf.function(lambda x: replicas.split_rows(x, 3), input_signature=[specification])
        for rows, expected in ((4, [[0, 1], [2, 3], [-1, -1]]), (3, [[0], [1], [2]])):
            # Row i is filled with i + 1, so that 0, the padding, is none of them.
            x = tf.tile(tf.reshape(tf.range(rows) + 1, (rows, 1, 1)), (1, 5, 2))
            for part, numbers in zip(split(x), expected, strict=True):
                assert part.shape == (len(numbers), 5, 2)
                np.testing.assert_array_equal(part, np.tile(np.reshape(numbers, (-1, 1, 1)) + 1, (1, 5, 2)))


class TestSums:
    def test_on_one_device_the_values_themselves(self):
        values = {"a": tf.constant(3.0), "b": [tf.ones((2, 2))]}
        assert replicas.sum_over_replicas(values) is values

    def test_outside_of_replicas_the_values_themselves(self, mirrored):
        with mirrored.scope():
            values = [tf.constant(3.0)]
            assert replicas.sum_over_replicas(values) is values

    def test_on_replicas_each_gets_the_sums(self, mirrored):
        def sums():
            number = replica_number()  # 0 and 1
            values = {
                "scalar": number + 3,
                "whole": tf.cast(number, "int32")[None],
                "rows": (tf.stack([number, 1 - 2 * number]), tf.zeros((0, 2))),
                "table": tf.reshape(tf.range(6.0), (2, 3)) * (number + 1),
            }
            summed = replicas.sum_over_replicas(values)
            keras.tree.map_structure(lambda x, y: x.shape.assert_is_compatible_with(y.shape), values, summed)
            return summed

        results = on_each(mirrored, sums)
        assert [float(x) for x in results["scalar"]] == [7, 7]
        assert [x.numpy().tolist() for x in results["whole"]] == [[1]] * 2
        assert [x.numpy().tolist() for x in results["rows"][0]] == [[1, 0]] * 2
        assert [x.shape for x in results["rows"][1]] == [(0, 2)] * 2
        assert [x.numpy().tolist() for x in results["table"]] == [[[0, 3, 6], [9, 12, 15]]] * 2


class TestReducedGradients:
    """Two replicas that have the same gradient, 3 for a rate of 0.5: Keras's sum would move by 3, not 1.5."""

    def step(self, strategy, wrap=lambda optimizer: optimizer, scale=1.0, reduced=True):
        with strategy.scope():
            variable = keras.Variable(10.0)
            optimizer = wrap(keras.optimizers.SGD(0.5))
            optimizer.build([variable])
        if reduced:
            replicas.prepare_optimizer(optimizer, strategy)

        def update():
            optimizer.apply([tf.constant(3.0 * scale)], [variable])
            return tf.identity(variable.value)

        return [float(value) for value in on_each(strategy, update)]

    def test_are_not_summed_again(self, mirrored):
        assert self.step(mirrored) == [8.5, 8.5]

    def test_without_it_keras_sums(self, mirrored):
        """Else it is not needed any more."""
        assert self.step(mirrored, reduced=False) == [7.0, 7.0]

    def test_with_scaled_losses(self, mirrored):
        def wrap(optimizer):
            return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)

        assert self.step(mirrored, wrap, scale=4.0) == [8.5, 8.5]

    def test_on_one_device(self):
        assert self.step(strategies.strategy("one_device")) == [8.5]


def test_one_process_is_not_several_workers(mirrored):
    assert not replicas.is_multi_worker(mirrored)
    assert not replicas.is_multi_worker(strategies.strategy("one_device"))
